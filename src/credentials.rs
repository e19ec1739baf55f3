//! The email and password of a Resource API account.

use serde::Deserialize;
use zeroize::Zeroizing;

use crate::secret::{Secret, json_object};

/// What a person types to log in, as the JSON bodies of `/login` and `/unlock` carry it.
#[derive(Clone, Debug, Deserialize)]
pub struct Credentials {
    /// The account's email address.
    pub email: String,
    /// The account's password.
    pub password: Secret,
}

impl Credentials {
    /// The JSON body of a login, here and at the Resource API.
    pub fn to_json(&self) -> Zeroizing<Vec<u8>> {
        json_object([("email", &self.email), ("password", self.password.expose())])
    }
}
