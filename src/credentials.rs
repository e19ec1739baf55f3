//! The email and password of a Resource API account.

use serde::Deserialize;

use crate::secret::Secret;

/// What a person types to log in, as the JSON bodies of `/login` and `/unlock` carry it.
#[derive(Clone, Debug, Deserialize)]
pub struct Credentials {
    /// The account's email address.
    pub email: String,
    /// The account's password.
    pub password: Secret,
}
