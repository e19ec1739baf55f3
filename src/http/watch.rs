//! Looks after `tiny_http` from outside: whether it still accepts, and whether it has forgotten connections.
//!
//! It serves each connection on a thread of its own, but hands a connection to a thread that it believes to be idle. Of a
//! burst of connections all are handed to the same idle threads, and those that come second wait until the first ones
//! are closed, which a client may never do.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use super::connection::{Accepting, Listener};
use crate::threads;

/// How often to look while requests come.
const BUSY_INTERVAL: Duration = Duration::from_millis(20);

/// How often to look when none has come for a while.
const IDLE_INTERVAL: Duration = Duration::from_millis(250);

/// The main thread and the one of `tiny_http` that accepts.
const OTHER_THREADS: usize = 2;

/// The watch over one `tiny_http` server.
pub(super) struct Watch {
    accepting: Accepting,
    last_look: Instant,
    last_request: Instant,
}

impl Watch {
    pub(super) fn new(accepting: Accepting) -> Self {
        let now = Instant::now();
        Self { accepting, last_look: now, last_request: now }
    }

    /// How long to wait for the next request at most.
    pub(super) fn interval(&self) -> Duration {
        if self.last_request.elapsed() < Duration::from_secs(1) { BUSY_INTERVAL } else { IDLE_INTERVAL }
    }

    /// A request has come.
    pub(super) fn request(&mut self) {
        self.last_request = Instant::now();
    }

    /// Looks, if it is time. False if no connections are accepted any more.
    pub(super) fn look(&mut self, listener: &Listener) -> bool {
        if self.last_look.elapsed() < self.interval() {
            return true;
        }
        self.last_look = Instant::now();
        let forgotten = listener.connections().saturating_sub(threads_for_connections());
        // A connection for which no idle thread is there gets a new one, which goes on with a forgotten connection.
        for _ in 0..forgotten {
            listener.knock();
        }
        self.accepting.is_alive()
    }
}

fn threads_for_connections() -> usize {
    // A directory has two links, and one more for each directory in it.
    let tasks = fs::metadata("/proc/self/task").map_or(0, |tasks| tasks.nlink() as usize).saturating_sub(2);
    tasks.saturating_sub(OTHER_THREADS + threads::running())
}
