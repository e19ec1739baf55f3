//! Retries with exponential backoff.

use std::fmt::Display;
use std::time::Duration;

use crate::cancellation::Cancellation;
use crate::metrics;
use crate::pauses::{Pauses, random_up_to};

/// Tries, the first included, of a call for which a client waits.
pub const TRIES: u32 = 3;

/// Tries, the first included, of a call whose failure loses a whole transfer. With their pauses they span about half a
/// minute, the time a link needs to come back.
pub const TRANSFER_TRIES: u32 = 8;

/// The longest pause before the second try; it doubles from try to try.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// The longest pause, even if a server asks for more with `Retry-After`: a client may be waiting.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// When a failed call that is safe to repeat may be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// After the usual pause.
    Soon,
    /// After the time that the server asked for.
    After(Duration),
    /// The same call would fail again.
    Never,
}

/// Makes a call that is safe to repeat up to `tries` times. `retry` judges its errors; the last one is returned.
pub fn with_retries<T, E: Display>(
    tries: u32,
    retry: impl Fn(&E) -> Retry,
    mut call: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let mut backoff = Backoff::new(tries);
    loop {
        let error = match call() {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        if !backoff.allows(retry(&error)) {
            return Err(error);
        }
        log::info!("trying again: {error}");
        backoff.pause(retry(&error));
    }
}

/// The pauses between the tries of one call.
#[derive(Debug)]
pub struct Backoff {
    tries_left: u32,
    pauses: Pauses,
}

impl Backoff {
    /// The pauses of a call that is made up to `tries` times.
    pub fn new(tries: u32) -> Self {
        Self { tries_left: tries.saturating_sub(1), pauses: Pauses::new(FIRST_PAUSE, LONGEST_PAUSE) }
    }

    /// Whether there is another try after an error with this verdict.
    pub fn allows(&self, retry: Retry) -> bool {
        retry != Retry::Never && self.tries_left > 0 && Cancellation::check().is_ok()
    }

    /// Sleeps before the next try. A server's own time is exceeded a little: it asked a whole fleet.
    pub fn pause(&mut self, retry: Retry) {
        metrics::UPLINK_RETRIES.add();
        Cancellation::sleep(self.next_pause(retry));
        self.tries_left = self.tries_left.saturating_sub(1);
    }

    fn next_pause(&mut self, retry: Retry) -> Duration {
        let usual = self.pauses.next();
        match retry {
            Retry::After(asked) => {
                let asked = asked.min(LONGEST_PAUSE);
                asked + random_up_to(asked.max(FIRST_PAUSE) / 4)
            }
            Retry::Soon | Retry::Never => usual,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_that_was_asked_to_come_back_comes_back_later_and_not_in_step() {
        // Seconds asked for, and the shortest and longest pause in milliseconds.
        for (asked, shortest, longest) in [(0, 0, 63), (8, 8_000, 10_000), (3600, 30_000, 37_500)] {
            let pause = |_| Backoff::new(TRIES).next_pause(Retry::After(Duration::from_secs(asked))).as_millis();
            let mut pauses: Vec<u128> = (0..200).map(pause).collect();
            pauses.sort_unstable();
            assert!(pauses[0] >= shortest && pauses[199] <= longest, "{asked} s: {pauses:?}");
            // Half of the boxes do not come within a quarter of the time.
            assert!(pauses[150] - pauses[50] > (longest - shortest) / 4, "{asked} s: {pauses:?}");
        }
    }
}
