//! A login: what it gives, why it fails, and the one that is in force.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::resource_api::ApiError;
use super::session::Session;
use crate::cdn_manager::{CdnConfigError, CdnManager};
use crate::model_cache::OfflineError;
use crate::threads::lock;

/// Why a login failed.
#[derive(Debug)]
pub enum LoginError {
    /// The Resource API refused, or could not be reached.
    Api(ApiError),
    /// The Resource API is away, and the offline login failed.
    Offline(ApiError, OfflineError),
    /// Logged in, but the CDN configuration could not be fetched.
    CdnConfigUnavailable(String),
    /// Logged in, but the CDN configuration is unusable.
    CdnConfig(CdnConfigError),
}

impl fmt::Display for LoginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Api(error) => write!(f, "login failed: {error}"),
            Self::Offline(away, refusal) => write!(f, "login failed: {away}; offline: {refusal}"),
            Self::CdnConfigUnavailable(reason) => {
                write!(f, "logged in, but the CDN configuration cannot be read: {reason}")
            }
            Self::CdnConfig(error) => write!(f, "logged in, but {error}"),
        }
    }
}

impl LoginError {
    /// Whether the same login may succeed once the Resource API answers again.
    pub(super) fn is_away(&self) -> bool {
        match self {
            Self::Api(error) | Self::Offline(error, _) => error.is_away(),
            Self::CdnConfigUnavailable(_) => true,
            Self::CdnConfig(_) => false,
        }
    }
}

impl From<ApiError> for LoginError {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

/// A successful login: the session, and the CDN after its configuration was first needed.
pub(super) struct Login {
    pub(super) session: Arc<Session>,
    pub(super) cdn: Mutex<Option<Arc<CdnManager>>>,
}

impl Login {
    pub(super) fn new(session: Session) -> Self {
        Self { session: Arc::new(session), cdn: Mutex::default() }
    }
}

/// The login that is in force, if any. Others can wait for it.
#[derive(Default)]
pub(super) struct CurrentLogin {
    login: Mutex<Option<Arc<Login>>>,
    changed: Condvar,
}

impl CurrentLogin {
    pub(super) fn get(&self) -> Option<Arc<Login>> {
        lock(&self.login).clone()
    }

    pub(super) fn replace(&self, login: Login) {
        *lock(&self.login) = Some(Arc::new(login));
        self.changed.notify_all();
    }

    /// A person's login stays in force.
    pub(super) fn set_unless_there_is_one(&self, login: Login) {
        lock(&self.login).get_or_insert_with(|| Arc::new(login));
        self.changed.notify_all();
    }

    /// Waits for a login, at most this long. Returns whether there is one.
    pub(super) fn wait(&self, at_most: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(lock(&self.login), at_most, |login| login.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.is_some()
    }
}

/// The background login as others see it.
#[derive(Default)]
pub(super) struct BackgroundLogin {
    pub(super) thread: Option<JoinHandle<()>>,
    /// Why the last try failed.
    pub(super) problem: Option<String>,
}
