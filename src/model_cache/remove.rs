//! The removal of a model from the cache by a person.

use std::fmt;
use std::io;
use std::sync::Weak;

use super::ModelCache;
use crate::names::ModelName;
use crate::threads::lock;

/// Why a model was not removed from the cache.
#[derive(Debug)]
pub enum RemoveError {
    /// It is not there.
    NotCached,
    /// `KEEP` names it.
    Kept,
    /// A file could not be removed.
    Io(io::Error),
}

impl fmt::Display for RemoveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotCached => f.write_str("the model is not in the cache"),
            Self::Kept => f.write_str("KEEP names the model, so it stays in the cache; remove it from KEEP first"),
            Self::Io(error) => write!(f, "the model cannot be removed from the cache: {error}"),
        }
    }
}

impl ModelCache {
    /// Removes a model for a client. Others that are reading it can continue.
    pub fn remove(&self, model: &ModelName) -> Result<(), RemoveError> {
        if self.catalog.is_kept(model) {
            return Err(RemoveError::Kept);
        }
        let siblings = self.versions.of(model.clone());
        let versions = lock(&siblings);
        for version in versions.iter().filter_map(Weak::upgrade) {
            version.leave_cache();
        }
        if self.entry(model).remove().map_err(RemoveError::Io)? { Ok(()) } else { Err(RemoveError::NotCached) }
    }
}
