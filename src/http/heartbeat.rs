//! Ends the process when one of its two central loops hangs, so that the service manager starts it again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A loop that has been silent for this long will not recover.
const MAX_SILENCE: Duration = Duration::from_secs(30);

/// A longer pause between two checks counts as this much: the machine slept, or the process was stopped.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// A loop beats once in every round.
#[derive(Debug, Default)]
pub(super) struct Heartbeat(AtomicU64);

impl Heartbeat {
    pub(super) fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Checks the heartbeat of another loop.
pub(super) struct Watchdog {
    name: &'static str,
    heartbeat: Arc<Heartbeat>,
    beats: u64,
    checked: Instant,
    silence: Duration,
}

impl Watchdog {
    pub(super) fn new(name: &'static str, heartbeat: Arc<Heartbeat>) -> Self {
        Self { name, heartbeat, beats: 0, checked: Instant::now(), silence: Duration::ZERO }
    }

    /// Aborts the process if the other loop hangs: a process that only looks alive would not be started again.
    pub(super) fn check(&mut self) {
        if self.is_silent(Instant::now()) {
            let seconds = MAX_SILENCE.as_secs();
            log::error!("{} has not moved for {seconds} s; the process aborts and must be started again", self.name);
            std::process::abort();
        }
    }

    fn is_silent(&mut self, now: Instant) -> bool {
        let pause = now.saturating_duration_since(self.checked).min(MAX_PAUSE);
        let beats = self.heartbeat.0.load(Ordering::Relaxed);
        self.silence = if beats == self.beats { self.silence + pause } else { Duration::ZERO };
        (self.beats, self.checked) = (beats, now);
        self.silence >= MAX_SILENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_hangs_after_thirty_seconds_of_silence_during_which_the_other_loop_ran() {
        let heartbeat = Arc::new(Heartbeat::default());
        let mut watchdog = Watchdog::new("x", Arc::clone(&heartbeat));
        let mut now = Instant::now();
        let mut checks_until_silent = |watchdog: &mut Watchdog, pause: Duration| {
            (1..100).find(|_| {
                now += pause;
                watchdog.is_silent(now)
            })
        };
        assert!(matches!(checks_until_silent(&mut watchdog, Duration::from_secs(1)), Some(30..=31)));
        heartbeat.beat();
        // The machine slept for an hour each time.
        assert!(matches!(checks_until_silent(&mut watchdog, Duration::from_secs(3600)), Some(30..=31)));
    }
}
