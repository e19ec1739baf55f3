//! A login that stays good: its token is renewed before it expires and when it is refused, once for all calls that need it.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use zeroize::Zeroizing;

use super::resource_api::{ApiError, ResourceApi};
use super::token::Token;
use crate::credentials::Credentials;
use crate::secret::Secret;
use crate::security::{AesKey, decrypt_whole};
use crate::threads::lock;
use crate::user::{Role, User};

/// Proven credentials and their current token.
pub struct Session {
    api: Arc<ResourceApi>,
    credentials: Credentials,
    /// Apart from the token, whose lock is held during a login.
    user: RwLock<User>,
    /// None after an offline login, until the Resource API has been reached.
    token: Mutex<Option<Token>>,
}

/// A file from the Resource API.
pub struct Fetched {
    /// As it came, encrypted with the API key.
    pub encrypted: Zeroizing<Vec<u8>>,
    /// The content.
    pub plain: Zeroizing<Vec<u8>>,
}

impl Session {
    /// Logs in.
    pub fn open(api: Arc<ResourceApi>, credentials: Credentials) -> Result<Self, ApiError> {
        let token = api.login(&credentials)?;
        log::info!("logged in as {} (role {}, id {})", token.user.email, token.user.role, token.user.id);
        Ok(Self { api, credentials, user: RwLock::new(token.user.clone()), token: Mutex::new(Some(token)) })
    }

    /// A session whose credentials were proven offline. The first call that reaches the Resource API logs in.
    pub fn offline(api: Arc<ResourceApi>, credentials: Credentials) -> Self {
        let user = User { id: String::new(), email: credentials.email.clone(), role: Role::None };
        Self { api, credentials, user: RwLock::new(user), token: Mutex::new(None) }
    }

    /// Who is logged in. Until the Resource API has been reached, only the email is known.
    pub fn user(&self) -> User {
        self.user.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The key with which the Resource API encrypts files for this session.
    pub fn api_key(&self) -> AesKey {
        self.api.api_key(&self.credentials)
    }

    /// Makes a call with a good token. If the API refuses the token, logs in again and makes the call once more.
    pub fn call<T>(&self, call: impl Fn(&ResourceApi, &Secret) -> Result<T, ApiError>) -> Result<T, ApiError> {
        let bearer = self.fresh_token()?;
        match call(&self.api, &bearer) {
            Err(ApiError::Unauthorized(_)) => call(&self.api, &self.renewed_token(&bearer)?),
            result => result,
        }
    }

    /// Fetches a file and decrypts it with the API key.
    pub fn fetch(&self, folder: &str, file_name: &str) -> Result<Fetched, ApiError> {
        let encrypted = self.call(|api, token| api.resource(token, &self.credentials, folder, file_name))?;
        match decrypt_whole(&encrypted, &self.api_key()) {
            Ok(plain) => Ok(Fetched { encrypted, plain: Zeroizing::new(plain) }),
            Err(error) => {
                Err(ApiError::BadAnswer(format!("{file_name}: {error} (check HARDWARE_SALT and API_KEY_SALT)")))
            }
        }
    }

    /// The current token, renewed first if it is about to expire.
    fn fresh_token(&self) -> Result<Secret, ApiError> {
        let mut token = lock(&self.token);
        match &*token {
            Some(token) if !token.is_stale(SystemTime::now()) => Ok(token.bearer.clone()),
            _ => self.renew(&mut token),
        }
    }

    /// A newer token than `refused`. The lock is held during the login, so callers with the same refused token share one login.
    fn renewed_token(&self, refused: &Secret) -> Result<Secret, ApiError> {
        let mut token = lock(&self.token);
        match &*token {
            Some(token) if token.bearer.expose() != refused.expose() => Ok(token.bearer.clone()),
            _ => self.renew(&mut token),
        }
    }

    fn renew(&self, token: &mut Option<Token>) -> Result<Secret, ApiError> {
        let new = self.api.login(&self.credentials)?;
        *self.user.write().unwrap_or_else(PoisonError::into_inner) = new.user.clone();
        let bearer = new.bearer.clone();
        *token = Some(new);
        Ok(bearer)
    }
}
