//! Looks after `tiny_http` from outside: whether it still accepts, and whether it has forgotten connections.
//!
//! It serves each connection on a thread of its own, but hands a connection to a thread that it believes to be idle. Of a
//! burst of connections all are handed to the same idle threads, and those that come second wait until the first ones
//! are closed, which a client may never do.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use super::connection::{Accepting, Listener, SocketId};
use super::sweep::Sweep;
use crate::threads;

/// How often to look while requests come.
const BUSY_INTERVAL: Duration = Duration::from_millis(20);

/// How often to look when none has come for a while.
const IDLE_INTERVAL: Duration = Duration::from_millis(100);

/// How often to look while a client sends a request head: it may be one without end, and the library keeps all of it.
const HEAD_INTERVAL: Duration = Duration::from_millis(5);

/// So many times as long as a look took it waits for the next at least: with many connections a look takes milliseconds.
const REST: u32 = 4;

/// The main thread and the one of `tiny_http` that accepts.
const OTHER_THREADS: usize = 2;

/// The watch over one `tiny_http` server.
pub(super) struct Watch {
    accepting: Accepting,
    last_look: Instant,
    last_request: Instant,
    /// How long the last look took, and whether it saw a request head on its way.
    took: Duration,
    head: bool,
}

impl Watch {
    pub(super) fn new(accepting: Accepting) -> Self {
        let now = Instant::now();
        Self { accepting, last_look: now, last_request: now, took: Duration::ZERO, head: false }
    }

    /// How long to wait for the next request at most.
    pub(super) fn interval(&self) -> Duration {
        let interval = match (self.head, self.last_request.elapsed() < Duration::from_secs(1)) {
            (true, _) => HEAD_INTERVAL,
            (false, true) => BUSY_INTERVAL,
            (false, false) => IDLE_INTERVAL,
        };
        interval.max(self.took * REST)
    }

    /// A request has come.
    pub(super) fn request(&mut self) {
        self.last_request = Instant::now();
    }

    /// Looks, if it is time. False if no connections are accepted any more.
    pub(super) fn look(
        &mut self,
        listener: &Listener,
        sweep: &mut Sweep,
        busy: impl Fn() -> HashSet<SocketId>,
    ) -> bool {
        if self.last_look.elapsed() < self.interval() {
            return true;
        }
        let started = Instant::now();
        let connections = listener.connections();
        let seen = sweep.look(&connections, &busy());
        self.head = seen.head;
        let connections = connections.len() + listener.limit_unix_connections(sweep.limit());
        // Threads that a server before this one has left behind count, too, although they take no connection.
        let forgotten = connections.saturating_sub(threads_for_connections()).max(seen.forgotten);
        // A connection for which no idle thread is there gets a new one, which goes on with a forgotten connection.
        for _ in 0..forgotten {
            listener.knock();
        }
        self.last_look = Instant::now();
        self.took = self.last_look - started;
        self.accepting.is_alive()
    }
}

fn threads_for_connections() -> usize {
    // A directory has two links, and one more for each directory in it.
    let tasks = fs::metadata("/proc/self/task").map_or(0, |tasks| tasks.nlink() as usize).saturating_sub(2);
    tasks.saturating_sub(OTHER_THREADS + threads::running())
}
