//! The user: the claims that this program uses of the Resource API's token.

use std::fmt;

use serde::{Deserialize, Deserializer};

/// The account of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// User id, a UUID as text (claim `nameid`).
    pub id: String,
    /// Email address (claim `unique_name`).
    pub email: String,
    /// What the account may do (claim `role`).
    pub role: Role,
}

/// Roles of the Resource API, with its numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// No role, or an unknown one.
    #[default]
    None = 0,
    /// Operates a box.
    Operator = 10,
    /// Validates results.
    Validator = 20,
    /// A companion computer.
    CompanionPC = 30,
    /// Administers accounts.
    Admin = 40,
    /// Uploads resources.
    ResourceUploader = 50,
    /// Administers the Resource API.
    ApiAdmin = 1000,
}

impl Role {
    const ALL: [Self; 7] = [
        Self::None,
        Self::Operator,
        Self::Validator,
        Self::CompanionPC,
        Self::Admin,
        Self::ResourceUploader,
        Self::ApiAdmin,
    ];

    fn from_number(number: u64) -> Self {
        Self::ALL.into_iter().find(|role| *role as u64 == number).unwrap_or_default()
    }

    fn from_name(name: &str) -> Self {
        Self::ALL
            .into_iter()
            .find(|role| role.to_string() == name)
            .or_else(|| name.parse().ok().map(Self::from_number))
            .unwrap_or_default()
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// From a name or a number, quoted or not. Anything else is [`Role::None`], so that a new role does not lock a box out.
impl<'de> Deserialize<'de> for Role {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        Ok(match &value {
            serde_json::Value::String(name) => Self::from_name(name),
            other => other.as_u64().map(Self::from_number).unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Role;

    #[test]
    fn a_role_is_a_name_or_a_number() {
        for (json, role) in [
            ("\"Operator\"", Role::Operator),
            ("10", Role::Operator),
            ("\"10\"", Role::Operator),
            ("1000", Role::ApiAdmin),
            ("\"CompanionPC\"", Role::CompanionPC),
            ("\"Emperor\"", Role::None),
            ("11", Role::None),
            ("-1", Role::None),
            ("null", Role::None),
            ("[10]", Role::None),
        ] {
            assert_eq!(serde_json::from_str::<Role>(json).unwrap(), role, "{json}");
        }
    }
}
