//! The models in `KEEP`: always in the cache, and replaced by a new version only when that is complete.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use super::ApiClient;
use super::load::Load;
use super::load_error::LoadError;
use crate::constants::CHUNK;
use crate::model_cache::Version;
use crate::names::ModelName;

impl ApiClient {
    /// Whether a complete version of a model in `KEEP` is in the cache.
    pub fn is_at_hand(&self, model: &ModelName) -> bool {
        self.keep.has(model)
    }

    /// Waits until a load has seen a new version of a kept model, for at most so long.
    pub fn wait_for_stale_model(&self, at_most: Duration) {
        self.keep.wait_until_stale(at_most);
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
