//! How long a client may keep its handler waiting.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::connection::Connection;
use super::handlers::Place;

/// A client must move so many bytes in the time that it may stall. Were any byte enough, one that moves a byte now and then
/// would hold a handler for ever.
const MIN_BYTES: usize = 4096;

/// After so long a client stands still: its request does not count as one that is worked on.
const STILL_AFTER: Duration = Duration::from_millis(500);

/// How often a wait looks whether the client has gone.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Counts how long one client is waited for.
pub(super) struct Patience {
    limit: Duration,
    /// How long it took for fewer than [`MIN_BYTES`].
    waited: Duration,
    moved: usize,
    still: bool,
}

impl Patience {
    /// For a client that may stall for `limit`.
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, waited: Duration::ZERO, moved: 0, still: false }
    }

    /// Makes one transfer, as soon as the socket is ready for it.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if the client was too slow, and the transfer's own.
    pub(super) fn transfer(
        &mut self,
        connection: &Connection,
        place: Option<&Place>,
        events: PollFlags,
        mut transfer: impl FnMut() -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            match transfer() {
                Ok(count) => {
                    self.moved(count, place);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(connection, place, events)?,
                Err(error) => return Err(error),
            }
        }
    }

    fn wait(&mut self, connection: &Connection, place: Option<&Place>, events: PollFlags) -> io::Result<()> {
        if self.waited >= self.limit {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let slice = if self.still { LOOK_EVERY } else { STILL_AFTER.saturating_sub(self.waited) };
        let started = Instant::now();
        connection.wait(events, slice.min(self.limit - self.waited).max(Duration::from_millis(1)));
        self.waited += started.elapsed();
        if !self.still && self.waited >= STILL_AFTER {
            self.set_still(true, place);
        }
        Ok(())
    }

    fn moved(&mut self, count: usize, place: Option<&Place>) {
        self.moved = self.moved.saturating_add(count);
        if self.moved >= MIN_BYTES {
            self.begin_anew(place);
        }
    }

    /// The client has done all that was asked of it: what takes time now is not its fault.
    pub(super) fn begin_anew(&mut self, place: Option<&Place>) {
        (self.waited, self.moved) = (Duration::ZERO, 0);
        self.set_still(false, place);
    }

    fn set_still(&mut self, still: bool, place: Option<&Place>) {
        if self.still != still {
            self.still = still;
            if let Some(place) = place {
                place.set_still(still.then(|| Instant::now() - self.waited));
            }
        }
    }
}
