//! The time without the Resource API (`OFFLINE_HOURS`): small parts that it gave out before are used again, and prove who
//! logs in.
//!
//! What proves a password is that the API key made of it (and of the email and this hardware) opens a kept small part: to
//! the bytes whose SHA-256 the cache's record of the big part holds anyway. Nothing is stored for that purpose. Whoever has a
//! box's storage and its salts can try passwords on a kept part as fast as SHA-384 goes; that is the price of working offline.
//!
//! It is used only when the Resource API is away, never when it refuses. A refusal removes what is kept: of the file that was
//! refused, or, at a login, of all that these credentials open.

use std::io::{self, Read};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use zeroize::Zeroizing;

use super::load::LoadError;
use super::session::Session;
use super::{ApiClient, ApiError, Fetched, Login, LoginError, small_name};
use crate::credentials::Credentials;
use crate::model_cache::{Entry, KeptParts, Refusal, Version};
use crate::names::{FileName, Folder};
use crate::security::{AesKey, decrypt_whole, sha256_hex};
use crate::threads;

/// How often expired small parts are removed.
const SWEEP: Duration = Duration::from_secs(600);

/// A model's small part, decrypted.
pub(super) struct SmallPart {
    pub(super) plain: Zeroizing<Vec<u8>>,
    pub(super) source: Source,
}

/// Where a small part is from.
pub(super) enum Source {
    /// The Resource API, just now; what is to be done when the model has been loaded.
    Api(Keep),
    /// It was kept; why the Resource API was not asked with success.
    Kept(ApiError),
}

/// Keeps a small part once its big part is in the cache.
pub(super) struct Keep {
    kept: Arc<KeptParts>,
    entry: Entry,
    encrypted: Zeroizing<Vec<u8>>,
    key: AesKey,
}

impl Keep {
    pub(super) fn now(&self) {
        if !self.kept.is_on() {
            return;
        }
        let hash = hash_with(&self.key);
        let expected = hash(&self.encrypted);
        self.kept.keep(&self.entry, &self.encrypted, |old| hash(old) == expected);
    }

    /// `big`, at whose good end the small part is kept if all of it is in the cache.
    pub(super) fn at_end_of(self, big: impl Read + Send, version: Arc<Version>) -> impl Read + Send {
        KeepingReader { big, keep: Some((self, version)) }
    }
}

struct KeepingReader<R> {
    big: R,
    keep: Option<(Keep, Arc<Version>)>,
}

impl<R: Read> Read for KeepingReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.big.read(out)?;
        if count == 0
            && !out.is_empty()
            && let Some((keep, version)) = self.keep.take()
            && version.is_complete()
        {
            keep.now();
        }
        Ok(count)
    }
}

/// Decrypts a small part with `key` and hashes it.
fn hash_with(key: &AesKey) -> impl Fn(&[u8]) -> Option<String> {
    |encrypted| decrypt_whole(encrypted, key).ok().map(|plain| sha256_hex(&Zeroizing::new(plain)))
}

/// Starts the thread that removes expired small parts, where some are kept.
pub(super) fn sweep_now_and_then(kept: &Arc<KeptParts>) {
    if !kept.is_on() {
        return;
    }
    let kept = Arc::clone(kept);
    let sweeper = threads::spawn("offline", move || {
        loop {
            thread::sleep(SWEEP);
            if let Err(error @ Refusal::Storage(_)) = kept.remove_expired() {
                log::warn!("{error}");
            }
        }
    });
    if let Err(error) = sweeper {
        log::warn!("expired small parts are removed when they are asked for only: {error}");
    }
}

impl ApiClient {
    /// Logs in at the Resource API. Credentials that it refuses open nothing any more, not even when it is away later.
    pub(super) fn open_session(&self, credentials: &Credentials) -> Result<Session, ApiError> {
        Session::open(&self.api, credentials.clone()).inspect_err(|error| {
            if self.kept.is_on() && matches!(error, ApiError::Business { .. } | ApiError::Unauthorized(_)) {
                self.kept.revoke(hash_with(&self.api_key(credentials)));
            }
        })
    }

    /// The login without the Resource API, which is away as `away` says.
    pub(super) fn login_offline(&self, credentials: Credentials, away: ApiError) -> Result<Login, LoginError> {
        if !self.kept.is_on() {
            return Err(LoginError::Api(away));
        }
        match self.kept.prove(hash_with(&self.api_key(&credentials))) {
            Ok(()) => {
                log::warn!("logged in offline as {}: {away}", credentials.email);
                Ok(Login::new(Session::offline(credentials)))
            }
            Err(refusal) => Err(LoginError::Offline(away, refusal)),
        }
    }

    /// The small part of a model from the Resource API or, while that is away, the kept one.
    pub(super) fn small_part(
        &self,
        login: &Login,
        folder: &Folder,
        file_name: &FileName,
        entry: &Entry,
    ) -> Result<SmallPart, LoadError> {
        match self.fetch(login, folder, &small_name(file_name)) {
            Ok(Fetched { encrypted, plain }) => {
                let key = self.api_key(login.session.credentials());
                let keep = Keep { kept: Arc::clone(&self.kept), entry: entry.clone(), encrypted, key };
                Ok(SmallPart { plain, source: Source::Api(keep) })
            }
            Err(away) if away.is_away() && self.kept.is_on() => {
                let encrypted = match self.kept.find(entry) {
                    Ok(encrypted) => encrypted,
                    Err(refusal) => return Err(LoadError::Offline(away, refusal)),
                };
                match decrypt_whole(&encrypted, &self.api_key(login.session.credentials())) {
                    Ok(plain) => Ok(SmallPart { plain: Zeroizing::new(plain), source: Source::Kept(away) }),
                    Err(_) => Err(LoadError::Offline(away, Refusal::DoesNotOpen)),
                }
            }
            Err(error) => {
                if error.is_refusal() {
                    self.kept.forget(entry);
                }
                Err(LoadError::Small(error))
            }
        }
    }
}
