//! Whether a loop that must never stand still does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A loop that is silent for so long will not come back.
const SILENCE: Duration = Duration::from_secs(30);

/// A pause between two looks counts as no more than this: longer ones are a machine that slept, or a process that was stopped.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Beats as long as a loop goes round.
#[derive(Debug, Default)]
pub(super) struct Pulse(AtomicU64);

impl Pulse {
    pub(super) fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// One loop's look at another's pulse.
pub(super) struct Watch {
    name: &'static str,
    pulse: Arc<Pulse>,
    seen: u64,
    looked: Instant,
    silent: Duration,
}

impl Watch {
    pub(super) fn new(name: &'static str, pulse: Arc<Pulse>) -> Self {
        Self { name, pulse, seen: 0, looked: Instant::now(), silent: Duration::ZERO }
    }

    /// Ends the process if the other loop is dead: it would only look alive, and nobody would start it again.
    pub(super) fn look(&mut self) {
        if self.is_dead(Instant::now()) {
            log::error!(
                "{} has stood still for {} s; the process ends, to be started again",
                self.name,
                SILENCE.as_secs()
            );
            std::process::abort();
        }
    }

    fn is_dead(&mut self, now: Instant) -> bool {
        let pause = now.saturating_duration_since(self.looked).min(LONGEST_PAUSE);
        let beats = self.pulse.0.load(Ordering::Relaxed);
        self.silent = if beats == self.seen { self.silent + pause } else { Duration::ZERO };
        (self.seen, self.looked) = (beats, now);
        self.silent >= SILENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_is_dead_after_thirty_seconds_of_silence_in_which_the_other_one_ran() {
        let pulse = Arc::new(Pulse::default());
        let mut watch = Watch::new("x", Arc::clone(&pulse));
        let mut now = Instant::now();
        let mut looks_until_dead = |watch: &mut Watch, pause: Duration| {
            (1..100).find(|_| {
                now += pause;
                watch.is_dead(now)
            })
        };
        assert!(matches!(looks_until_dead(&mut watch, Duration::from_secs(1)), Some(30..=31)));
        pulse.beat();
        // The machine slept for an hour each time.
        assert!(matches!(looks_until_dead(&mut watch, Duration::from_secs(3600)), Some(30..=31)));
    }
}
