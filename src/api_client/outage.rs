//! What is remembered of a Resource API that was away, so that loads that can do without it do not wait for it again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::http_client::HttpClientError;
use crate::threads::lock;

/// This long after a failed call the Resource API still counts as away, because each new attempt may take a while.
const AWAY_FOR: Duration = Duration::from_secs(60);

/// The last call to the Resource API, if it found it away.
#[derive(Default)]
pub struct Outage {
    last: Mutex<Option<(Instant, HttpClientError)>>,
    is_being_asked: Arc<AtomicBool>,
}

/// A question to the Resource API in the background, until it is dropped.
pub struct Question(Arc<AtomicBool>);

impl Outage {
    /// Takes note of how a call ended.
    pub fn note<T>(&self, result: &Result<T, HttpClientError>) {
        let outage = result.as_ref().err().filter(|error| error.is_outage());
        *lock(&self.last) = outage.map(|error| (Instant::now(), error.clone()));
    }

    /// Why the Resource API was away a moment ago.
    pub fn recent(&self) -> Option<HttpClientError> {
        let is_recent = |at: Instant| at.elapsed() < AWAY_FOR || self.is_being_asked.load(Ordering::Relaxed);
        lock(&self.last).as_ref().filter(|(at, _)| is_recent(*at)).map(|(_, error)| error.clone())
    }

    /// Whether the last call got no answer at all.
    pub fn is_silence(&self) -> bool {
        lock(&self.last).as_ref().is_some_and(|(_, error)| error.is_silence())
    }

    /// The right to ask in the background, unless somebody is asking.
    pub fn question(&self) -> Option<Question> {
        (!self.is_being_asked.swap(true, Ordering::Relaxed)).then(|| Question(Arc::clone(&self.is_being_asked)))
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
