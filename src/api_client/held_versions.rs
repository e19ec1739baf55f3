//! Versions that clients read piece by piece with `If-Match`, as `loader mount` does for open files. Such a version stays readable
//! after a new upload, from the cache's file, which lives as long as it is open, or from its generation in the CDN. And the Resource
//! API need not be asked at each piece.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::load::Found;
use crate::names::ModelName;
use crate::threads::lock;

/// How long after its last use a version is held. Until then its file stays in the cache.
const HELD_FOR: Duration = Duration::from_secs(300);

/// How long the Resource API's permission counts.
const PERMITTED_FOR: Duration = Duration::from_secs(10);

/// The pause before the next question to a Resource API that is away: each may take a while.
const AWAY_FOR: Duration = Duration::from_secs(60);

/// The versions that are held. Each takes a descriptor and its hashes, 128 KiB at most.
const MAX_HELD: usize = 32;

/// The one used last is the last.
#[derive(Default)]
pub(super) struct HeldVersions(Mutex<Vec<Held>>);

struct Held {
    model: ModelName,
    found: Found,
    /// Who may read it.
    email: String,
    used_at: Instant,
    permitted_until: Instant,
}

impl HeldVersions {
    /// The version that is wanted, if this user has read it before, and whether the caller has to ask the Resource API about the
    /// model. One caller at a time has to; the others need not wait for its answer.
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
        let is_to_be_asked = held.permitted_until < held.used_at;
        if is_to_be_asked {
            held.permitted_until = held.used_at + PERMITTED_FOR;
        }
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
        all.push(Held { model, found, email, used_at, permitted_until: used_at + PERMITTED_FOR });
    }

    /// The Resource API was asked about the model again; it permits it, or is away.
    pub(super) fn permit(&self, model: &ModelName, is_away: bool) {
        let until = Instant::now() + if is_away { AWAY_FOR } else { PERMITTED_FOR };
        for held in lock(&self.0).iter_mut().filter(|held| held.model == *model) {
            held.permitted_until = until;
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
