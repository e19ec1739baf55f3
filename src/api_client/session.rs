//! A login that stays good: its token is renewed before it expires and when it is refused, once for all calls that need it.

use std::sync::{Arc, Mutex, RwLock};
use std::time::{Instant, SystemTime};

use zeroize::Zeroizing;

use super::resource_api::{ApiError, ResourceApi};
use super::token::Token;
use crate::credentials::Credentials;
use crate::model_cache::OfflineParts;
use crate::secret::Secret;
use crate::security::{AesKey, decrypt_whole};
use crate::threads::{lock, read, write};
use crate::user::{Role, User};

/// Proven credentials and their current token.
pub struct Session {
    api: Arc<ResourceApi>,
    credentials: Credentials,
    /// What an account loses that is refused.
    offline_parts: Arc<OfflineParts>,
    /// Apart from the token, whose lock is held during a login.
    user: RwLock<User>,
    token: Mutex<CurrentToken>,
}

#[derive(Default)]
struct CurrentToken {
    /// None after an offline login, until the Resource API has been reached.
    token: Option<Token>,
    /// When the last renewal failed, and why.
    failed: Option<(Instant, ApiError)>,
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
    pub fn open(
        api: Arc<ResourceApi>,
        offline_parts: Arc<OfflineParts>,
        credentials: Credentials,
    ) -> Result<Self, ApiError> {
        let session = Self::offline(api, offline_parts, credentials);
        session.renew(&mut lock(&session.token))?;
        let user = session.user();
        log::info!("logged in as {} (role {}, id {})", user.email, user.role, user.id);
        Ok(session)
    }

    /// A session whose credentials were proven offline. The first call that reaches the Resource API logs in.
    pub fn offline(api: Arc<ResourceApi>, offline_parts: Arc<OfflineParts>, credentials: Credentials) -> Self {
        let user = User { id: String::new(), email: credentials.email.clone(), role: Role::None };
        Self { api, credentials, offline_parts, user: RwLock::new(user), token: Mutex::default() }
    }

    /// Who is logged in. Until the Resource API has been reached, only the email is known.
    pub fn user(&self) -> User {
        read(&self.user).clone()
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
        self.token_unless(|token| token.is_stale(SystemTime::now()))
    }

    /// A newer token than `refused`.
    fn renewed_token(&self, refused: &Secret) -> Result<Secret, ApiError> {
        self.token_unless(|token| token.bearer.expose() == refused.expose())
    }

    /// The current token, renewed first if it is of no use. The lock is held during the login, so callers share one login, even
    /// one that fails: who has waited for it does not make the next caller wait again.
    fn token_unless(&self, is_useless: impl Fn(&Token) -> bool) -> Result<Secret, ApiError> {
        let asked = Instant::now();
        let mut current = lock(&self.token);
        match (&current.token, &current.failed) {
            (Some(token), _) if !is_useless(token) => Ok(token.bearer.clone()),
            (_, Some((at, error))) if *at > asked => Err(error.clone()),
            _ => self.renew(&mut current),
        }
    }

    /// Logs in. Credentials that the Resource API refuses open nothing from then on, not even offline.
    fn renew(&self, current: &mut CurrentToken) -> Result<Secret, ApiError> {
        match self.api.login(&self.credentials) {
            Ok(token) => {
                self.offline_parts.accept(&self.api_key());
                *write(&self.user) = token.user.clone();
                let bearer = token.bearer.clone();
                *current = CurrentToken { token: Some(token), failed: None };
                Ok(bearer)
            }
            Err(error) => {
                if error.refuses_credentials() && self.offline_parts.is_on() {
                    self.offline_parts.revoke(&self.api_key());
                }
                current.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }
}
