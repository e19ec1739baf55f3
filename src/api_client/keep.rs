//! The models in `KEEP`: always in the cache, and replaced by a new version only when that is complete.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::ApiClient;
use super::load::{Found, Load};
use super::load_error::LoadError;
use crate::constants::CHUNK;
use crate::model_cache::Version;
use crate::names::ModelName;
use crate::security::SmallHash;
use crate::threads::lock;

/// The models to keep, each with its newest version that is complete.
pub(super) struct KeepList {
    versions: Mutex<HashMap<ModelName, Option<Found>>>,
    /// A load has seen a version that is newer than the kept one.
    is_stale: Mutex<bool>,
    changed: Condvar,
}

impl KeepList {
    pub(super) fn new(models: &[ModelName]) -> Self {
        let versions = models.iter().map(|model| (model.clone(), None)).collect();
        Self { versions: Mutex::new(versions), is_stale: Mutex::default(), changed: Condvar::new() }
    }

    /// The version to load while the newest one is not complete. None if the model is not kept, or if the kept version is the
    /// newest.
    pub(super) fn instead_of(&self, model: &ModelName, newest: SmallHash) -> Option<Found> {
        let kept = lock(&self.versions).get(model)?.clone()?;
        if kept.hash == newest {
            return None;
        }
        *lock(&self.is_stale) = true;
        self.changed.notify_all();
        Some(kept)
    }

    fn holds(&self, model: &ModelName, hash: SmallHash) -> bool {
        lock(&self.versions).get(model).is_some_and(|kept| kept.as_ref().is_some_and(|kept| kept.hash == hash))
    }

    fn set(&self, model: &ModelName, found: Found) {
        lock(&self.versions).insert(model.clone(), Some(found));
    }
}

impl ApiClient {
    /// Whether a complete version of a model in `KEEP` is in the cache.
    pub fn is_at_hand(&self, model: &ModelName) -> bool {
        lock(&self.keep.versions).get(model).is_some_and(Option::is_some)
    }

    /// Waits until a load has seen a new version of a kept model, for at most so long.
    pub fn wait_for_stale_model(&self, at_most: Duration) {
        let stale = self.keep.changed.wait_timeout_while(lock(&self.keep.is_stale), at_most, |stale| !*stale);
        *stale.unwrap_or_else(PoisonError::into_inner).0 = false;
    }

    /// Looks for the newest version of a model in `KEEP`, and downloads what is missing of it.
    pub fn keep_current(self: &Arc<Self>, model: &ModelName) -> Result<(), LoadError> {
        let login = self.current().ok_or(LoadError::NotLoggedIn)?;
        self.held.expire();
        let load = Load { client: self, login: &login, entry: self.cache.entry(model) };
        let (found, copy) = load.find_newest()?;
        if self.keep.holds(model, found.hash) {
            return Ok(());
        }
        download(&found.version).map_err(LoadError::Io)?;
        if let Some(copy) = copy {
            copy.store();
        }
        self.keep.set(model, found);
        log::info!("{model} is at hand");
        Ok(())
    }
}

/// Downloads all of a version into the cache.
fn download(version: &Arc<Version>) -> io::Result<()> {
    let mut big = version.read_in_background(0..version.length);
    let mut buffer = vec![0; CHUNK];
    while !version.is_complete() {
        if !version.is_cached() {
            return Err(io::Error::other("the cache cannot take it; the log says why"));
        }
        if big.read(&mut buffer)? == 0 {
            break;
        }
    }
    // Its last chunk comes a moment before its name.
    version.wait_until_named();
    if version.is_complete() { Ok(()) } else { Err(io::Error::other("it did not come whole; the log says why")) }
}
