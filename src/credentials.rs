//! The email and password of a Resource API account.

use serde::Deserialize;
use zeroize::Zeroizing;

use crate::secret::{Secret, json_object};

/// A login, as in the JSON bodies of `/login` and `/unlock`.
#[derive(Clone, Debug, Deserialize)]
pub struct Credentials {
    /// The account's email address.
    pub email: String,
    /// The account's password.
    pub password: Secret,
}

impl Credentials {
    /// Whether these are the same.
    pub fn are(&self, other: &Self) -> bool {
        self.email == other.email && self.password.matches(other.password.expose())
    }

    /// The JSON body of a login, here and at the Resource API.
    pub fn to_json(&self) -> Zeroizing<Vec<u8>> {
        json_object([("email", &self.email), ("password", self.password.expose())])
    }
}
