//! The stall timeout: how long a client may keep its handler waiting.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::connection::Connection;

/// A client must transfer this many bytes within the stall timeout. If any byte were enough, a trickle would occupy a
/// handler for ever.
const MIN_BYTES: usize = 4096;

/// A client that has transferred nothing for this long is stalled, and its request does not count as being worked on.
const STALLED_AFTER: Duration = Duration::from_millis(500);

/// How long one wait for a stalled client takes. In between, the timeout is checked.
const MAX_WAIT: Duration = Duration::from_millis(250);

/// The share of the handlers that a request occupies, until it is dropped.
pub(in crate::http) trait Slot: Send {
    /// The client has been stalled since then, or is not stalled any more.
    fn set_stalled(&self, since: Option<Instant>);
}

/// Measures how long one client is waited for.
pub(in crate::http) struct StallTimer {
    timeout: Duration,
    /// The time that the last [`MIN_BYTES`] have taken so far.
    waited: Duration,
    moved: usize,
    stalled: bool,
    pub(in crate::http) slot: Option<Box<dyn Slot>>,
}

impl StallTimer {
    pub(in crate::http) fn new(timeout: Duration) -> Self {
        Self { timeout, waited: Duration::ZERO, moved: 0, stalled: false, slot: None }
    }

    /// Calls `transfer` until the socket is ready for it. [`io::ErrorKind::TimedOut`] if the client is too slow.
    pub(in crate::http) fn transfer(
        &mut self,
        connection: &Connection,
        events: PollFlags,
        mut transfer: impl FnMut() -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            match transfer() {
                Ok(count) => {
                    self.moved = self.moved.saturating_add(count);
                    if self.moved >= MIN_BYTES {
                        self.restart();
                    }
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(connection, events)?,
                Err(error) => return Err(error),
            }
        }
    }

    fn wait(&mut self, connection: &Connection, events: PollFlags) -> io::Result<()> {
        if self.waited >= self.timeout {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let slice = if self.stalled { MAX_WAIT } else { STALLED_AFTER.saturating_sub(self.waited) };
        let started = Instant::now();
        connection.wait(events, slice.min(self.timeout - self.waited).max(Duration::from_millis(1)));
        self.waited += started.elapsed();
        if !self.stalled && self.waited >= STALLED_AFTER {
            self.set_stalled(true);
        }
        Ok(())
    }

    /// The client has done everything that it was asked for. The time from here on is not its fault.
    pub(in crate::http) fn restart(&mut self) {
        (self.waited, self.moved) = (Duration::ZERO, 0);
        self.set_stalled(false);
    }

    fn set_stalled(&mut self, stalled: bool) {
        if self.stalled != stalled {
            self.stalled = stalled;
            if let Some(slot) = &self.slot {
                slot.set_stalled(stalled.then(|| Instant::now() - self.waited));
            }
        }
    }
}
