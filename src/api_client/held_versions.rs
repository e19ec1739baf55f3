//! Versions that clients read piece by piece with `If-Match`, as `loader mount` does for open files. Such a version stays readable
//! after a new upload, from the cache's file, which lives as long as it is open, or from its generation in the CDN. And the Resource
//! API need not be asked at each piece.

use std::mem;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::model_cache::Version;
use crate::names::ModelName;
use crate::security::SmallHash;
use crate::threads::lock;

/// How long after its last use a version is held. Until then its file stays in the cache.
const HELD_FOR: Duration = Duration::from_secs(300);

/// How long the Resource API's permission counts.
const PERMITTED_FOR: Duration = Duration::from_secs(10);

/// The versions that are held. Each takes a descriptor and its hashes, 128 KiB at most.
const MAX_HELD: usize = 32;

/// A version that can be loaded: both its parts.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) small: Zeroizing<Vec<u8>>,
    pub(super) hash: SmallHash,
    pub(super) version: Arc<Version>,
}

/// The one used last is the last.
#[derive(Default)]
pub(super) struct HeldVersions(Mutex<Vec<Held>>);

struct Held {
    model: ModelName,
    found: Found,
    /// Who may read it.
    email: String,
    used_at: Instant,
    /// None: the Resource API could not be asked.
    permitted_until: Option<Instant>,
    is_being_asked: bool,
}

impl HeldVersions {
    /// The version that is wanted, if this user has read it before, and whether the caller has to ask the Resource API about the
    /// model. One caller has to; the others need not wait for an answer that comes soon.
    pub(super) fn get(
        &self,
        model: &ModelName,
        email: &str,
        is_wanted: impl Fn(&Found) -> bool,
    ) -> Option<(Found, bool)> {
        let mut all = lock(&self.0);
        let index =
            all.iter().position(|held| held.model == *model && held.email == email && is_wanted(&held.found))?;
        let mut held = all.remove(index);
        held.used_at = Instant::now();
        let is_to_be_asked = held.permitted_until.is_none_or(|until| {
            held.used_at >= until
                && (!mem::replace(&mut held.is_being_asked, true) || held.used_at >= until + PERMITTED_FOR)
        });
        let found = held.found.clone();
        all.push(held);
        Some((found, is_to_be_asked))
    }

    /// Holds a version that the Resource API has just let this user read. What other users read is let go.
    pub(super) fn hold(&self, model: &ModelName, email: String, found: &Found) {
        let used_at = Instant::now();
        let (model, found) = (model.clone(), found.clone());
        let mut all = lock(&self.0);
        all.retain(|held| held.email == email && (held.model != model || held.found.hash != found.hash));
        if all.len() == MAX_HELD {
            all.remove(0);
        }
        let permitted_until = Some(used_at + PERMITTED_FOR);
        all.push(Held { model, found, email, used_at, permitted_until, is_being_asked: false });
    }

    /// The Resource API was asked about the model again, and permits it.
    pub(super) fn permit(&self, model: &ModelName) {
        self.set_permission(model, Some(Instant::now() + PERMITTED_FOR));
    }

    /// The Resource API is away, and the model cannot be loaded offline. Until that changes, it has to be asked at each piece.
    pub(super) fn suspend(&self, model: &ModelName) {
        self.set_permission(model, None);
    }

    fn set_permission(&self, model: &ModelName, permitted_until: Option<Instant>) {
        for held in lock(&self.0).iter_mut().filter(|held| held.model == *model) {
            (held.permitted_until, held.is_being_asked) = (permitted_until, false);
        }
    }

    pub(super) fn let_go(&self, model: &ModelName) {
        lock(&self.0).retain(|held| held.model != *model);
    }

    /// Lets go of what has not been used for long. To be called before something needs room in the cache.
    pub(super) fn expire(&self) {
        lock(&self.0).retain(|held| held.used_at.elapsed() < HELD_FOR);
    }
}
