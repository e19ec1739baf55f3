//! A login that stays good: the token is renewed before it expires and when it is refused, once for all who need it.

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::SystemTime;

use super::resource_api::{ApiError, ResourceApi};
use super::token::Token;
use crate::credentials::Credentials;
use crate::secret::Secret;
use crate::user::{Role, User};

/// Proven credentials and their current token.
pub struct Session {
    credentials: Credentials,
    /// Apart from the token, whose lock is held during a login.
    user: RwLock<User>,
    /// None until the Resource API is there, for a login without it.
    token: Mutex<Option<Token>>,
}

impl Session {
    /// Logs in.
    pub fn open(api: &ResourceApi, credentials: Credentials) -> Result<Self, ApiError> {
        let token = api.login(&credentials)?;
        log::info!("logged in as {} (role {}, id {})", token.user.email, token.user.role, token.user.id);
        Ok(Self { credentials, user: RwLock::new(token.user.clone()), token: Mutex::new(Some(token)) })
    }

    /// A session of credentials that were proven without the Resource API. The first call that reaches it logs in.
    pub fn offline(credentials: Credentials) -> Self {
        let user = User { id: String::new(), email: credentials.email.clone(), role: Role::None };
        Self { credentials, user: RwLock::new(user), token: Mutex::new(None) }
    }

    /// The credentials that were proven.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Who is logged in. While the Resource API has not been reached, only the email is known.
    pub fn user(&self) -> User {
        self.user.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes a call with a good token. If the API refuses the token, logs in again and makes the call once more.
    pub fn call<T>(&self, api: &ResourceApi, call: impl Fn(&Secret) -> Result<T, ApiError>) -> Result<T, ApiError> {
        let bearer = self.fresh_token(api)?;
        match call(&bearer) {
            Err(ApiError::Unauthorized(_)) => call(&self.renewed_token(api, &bearer)?),
            result => result,
        }
    }

    /// The current token, renewed first if it is about to expire.
    fn fresh_token(&self, api: &ResourceApi) -> Result<Secret, ApiError> {
        let mut token = self.token();
        match &*token {
            Some(token) if !token.is_stale(SystemTime::now()) => Ok(token.bearer.clone()),
            _ => self.renew(api, &mut token),
        }
    }

    /// A newer token than `refused`. The lock is held during the login, so callers that come with the same refused token
    /// wait for the first one's and share it.
    fn renewed_token(&self, api: &ResourceApi, refused: &Secret) -> Result<Secret, ApiError> {
        let mut token = self.token();
        match &*token {
            Some(token) if token.bearer.expose() != refused.expose() => Ok(token.bearer.clone()),
            _ => self.renew(api, &mut token),
        }
    }

    fn renew(&self, api: &ResourceApi, token: &mut Option<Token>) -> Result<Secret, ApiError> {
        let new = api.login(&self.credentials)?;
        *self.user.write().unwrap_or_else(PoisonError::into_inner) = new.user.clone();
        let bearer = new.bearer.clone();
        *token = Some(new);
        Ok(bearer)
    }

    fn token(&self) -> MutexGuard<'_, Option<Token>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
