//! Work without the Resource API (`OFFLINE_HOURS`): small parts that it gave out earlier are used again, and prove who logs in.
//!
//! A password is proven by the API key that is made of it (and of the email and this hardware): the key must open a stored small
//! part, whose hash must be the one in the record of the cached big part. Nothing else is stored for this. Whoever has a
//! box's storage and its salts can try passwords on a stored part as fast as SHA-384 goes; that is the price of working offline.
//!
//! Stored parts are used only while the Resource API is away, never when it refuses. A refusal removes them: the part of the
//! refused file, or, when credentials are refused, every part that they open.

use std::io::{self, Read};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::ApiClient;
use super::load_error::LoadError;
use super::login::{Login, LoginError};
use super::resource_api::{ApiError, small_name};
use super::session::{Fetched, Session};
use crate::credentials::Credentials;
use crate::model_cache::{Entry, OfflineError, OfflineParts, Version};
use crate::security::{AesKey, decrypt_whole};
use crate::threads;

/// A model's small part, decrypted.
pub(super) struct SmallPart {
    pub(super) plain: Zeroizing<Vec<u8>>,
    pub(super) source: SmallSource,
}

/// Where a small part is from.
pub(super) enum SmallSource {
    /// The Resource API, just now. The copy can be stored when the model has been loaded.
    Api(OfflineCopy),
    /// This box, because the Resource API failed with this error.
    Offline(ApiError),
}

/// A small part that is worth storing once its big part is in the cache.
pub(super) struct OfflineCopy {
    parts: Arc<OfflineParts>,
    entry: Entry,
    encrypted: Zeroizing<Vec<u8>>,
    key: AesKey,
}

impl OfflineCopy {
    pub(super) fn store(&self) {
        if let Err(error) = self.parts.store(&self.entry, &self.encrypted, &self.key) {
            let model = &self.entry.model;
            log::warn!("the small part of {model} cannot be stored, so it cannot be loaded offline: {error}");
        }
    }

    /// Stores the copy when `big` has been read to its end, if the whole version is in the cache then.
    pub(super) fn store_after(self, big: impl Read + Send, version: Arc<Version>) -> impl Read + Send {
        StoringReader { big, copy: Some((self, version)) }
    }
}

struct StoringReader<R> {
    big: R,
    copy: Option<(OfflineCopy, Arc<Version>)>,
}

impl<R: Read> Read for StoringReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.big.read(out)?;
        if count == 0
            && !out.is_empty()
            && let Some((copy, version)) = self.copy.take()
            && version.is_complete()
        {
            copy.store();
        }
        Ok(count)
    }
}

impl ApiClient {
    /// Logs in at the Resource API.
    pub(super) fn open_session(&self, credentials: &Credentials) -> Result<Session, ApiError> {
        Session::open(Arc::clone(&self.api), Arc::clone(&self.offline_parts), credentials.clone())
    }

    /// Logs in without the Resource API, which failed with `away`.
    pub(super) fn login_offline(&self, credentials: Credentials, away: ApiError) -> Result<Login, LoginError> {
        if !self.offline_parts.is_on() {
            return Err(LoginError::Api(away));
        }
        match self.offline_parts.prove(&self.api.api_key(&credentials)) {
            Ok(()) => {
                log::warn!("logged in offline as {}: {away}", credentials.email);
                let (api, parts) = (Arc::clone(&self.api), Arc::clone(&self.offline_parts));
                Ok(Login::new(Session::offline(api, parts, credentials)))
            }
            Err(refusal) => Err(LoginError::Offline(away, refusal)),
        }
    }

    /// The small part of a model from the Resource API or, while that is away, from this box.
    pub(super) fn small_part(&self, login: &Login, entry: &Entry) -> Result<SmallPart, LoadError> {
        match login.session.fetch(&entry.model.folder, &small_name(&entry.model)) {
            Ok(Fetched { encrypted, plain }) => {
                let (parts, key) = (Arc::clone(&self.offline_parts), login.session.api_key());
                let copy = OfflineCopy { parts, entry: entry.clone(), encrypted, key };
                Ok(SmallPart { plain, source: SmallSource::Api(copy) })
            }
            Err(away) if away.is_away() && self.offline_parts.is_on() => self.small_part_offline(login, entry, away),
            Err(error) => {
                if error.is_refusal() {
                    self.offline_parts.forget(entry);
                }
                Err(LoadError::Small(error))
            }
        }
    }

    /// The small part that is stored on this box, because the Resource API failed with `away`.
    pub(super) fn small_part_offline(
        &self,
        login: &Login,
        entry: &Entry,
        away: ApiError,
    ) -> Result<SmallPart, LoadError> {
        let encrypted = match self.offline_parts.find(entry) {
            Ok(encrypted) => encrypted,
            Err(refusal) => return Err(LoadError::Offline(away, refusal)),
        };
        match decrypt_whole(&encrypted, &login.session.api_key()) {
            Ok(plain) => Ok(SmallPart { plain: Zeroizing::new(plain), source: SmallSource::Offline(away) }),
            Err(_) => Err(LoadError::Offline(away, OfflineError::DoesNotOpen)),
        }
    }

    /// Asks the Resource API for a small part that was just found on this box, so that the next load knows whether the API is
    /// back, and what it says. One question at a time is enough.
    pub(super) fn ask_in_background(self: &Arc<Self>, login: &Arc<Login>, entry: &Entry) {
        let Some(question) = self.api.outage.question() else { return };
        let (client, login, entry) = (Arc::clone(self), Arc::clone(login), entry.clone());
        let work = move || {
            let _question = question;
            drop(client.small_part(&login, &entry));
        };
        if let Err(error) = threads::spawn("offline", work) {
            log::warn!("the Resource API cannot be asked in the background: {error}");
        }
    }
}
