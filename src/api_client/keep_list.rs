//! The versions of the models in `KEEP` that are complete.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::held_versions::Found;
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

    /// Whether there is a complete version of a model.
    pub(super) fn has(&self, model: &ModelName) -> bool {
        lock(&self.versions).get(model).is_some_and(Option::is_some)
    }

    /// Waits until a load has seen a newer version, for at most so long.
    pub(super) fn wait_until_stale(&self, at_most: Duration) {
        let stale = self.changed.wait_timeout_while(lock(&self.is_stale), at_most, |stale| !*stale);
        *stale.unwrap_or_else(PoisonError::into_inner).0 = false;
    }

    pub(super) fn holds(&self, model: &ModelName, hash: SmallHash) -> bool {
        lock(&self.versions).get(model).is_some_and(|kept| kept.as_ref().is_some_and(|kept| kept.hash == hash))
    }

    pub(super) fn set(&self, model: &ModelName, found: Found) {
        lock(&self.versions).insert(model.clone(), Some(found));
    }
}
