//! A clock that never goes back, for limits that setting the system's clock must not lengthen.
//!
//! It goes on by whatever went on further since it was last looked at: the wall clock, or the time since boot. The wall clock
//! counts while the box is off; the time since boot (suspend included) counts whatever the wall clock is set to. A board
//! whose clock has no battery stands still while it is off, and so does this one then.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// What the system's clocks say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Seconds since 1970.
    pub wall: u64,
    /// Names the boot; empty where the kernel does not tell.
    pub boot: String,
    /// Seconds since boot.
    pub uptime: u64,
}

impl Reading {
    /// That of this moment.
    pub fn now() -> Self {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let uptime = text("/proc/uptime").split('.').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { wall, boot: text("/proc/sys/kernel/random/boot_id").trim().to_owned(), uptime }
    }
}

/// The clock as it was last looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonotonicClock {
    /// Its time, in seconds.
    now: u64,
    /// The highest wall time seen.
    wall: u64,
    boot: String,
    uptime: u64,
}

impl MonotonicClock {
    /// A new clock, with the wall clock's time.
    pub fn start(reading: Reading) -> Self {
        let Reading { wall, boot, uptime } = reading;
        Self { now: wall, wall, boot, uptime }
    }

    /// Its time, in seconds.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Whether the wall clock is before a time that it has shown already.
    pub fn was_set_back(&self, reading: &Reading) -> bool {
        reading.wall < self.wall
    }

    /// Goes on to `reading`.
    pub fn advance(&mut self, reading: Reading) {
        let same_boot = reading.boot == self.boot && reading.uptime >= self.uptime;
        let by_uptime = reading.uptime - if same_boot { self.uptime } else { 0 };
        let by_wall = reading.wall.saturating_sub(self.wall);
        self.now = self.now.saturating_add(by_uptime.max(by_wall));
        self.wall = self.wall.max(reading.wall);
        (self.boot, self.uptime) = (reading.boot, reading.uptime);
    }

    /// Whether this is the same clock as `before`, less than `step` seconds later.
    pub fn goes_on_from(&self, before: &Self, step: u64) -> bool {
        self.boot == before.boot
            && self.now - before.now < step
            && self.wall >= before.wall
            && self.wall - before.wall < step
    }

    /// Takes the wall clock as it is now for the right one, after [`advance`](Self::advance): it may have been wrong in the
    /// future. Nothing becomes younger by that.
    pub fn accept_wall(&mut self, wall: u64) {
        self.wall = wall;
    }
}

#[cfg(test)]
mod tests {
    use super::{MonotonicClock, Reading};

    fn at(wall: u64, boot: &str, uptime: u64) -> Reading {
        Reading { wall, boot: boot.into(), uptime }
    }

    #[test]
    fn it_goes_on_by_what_went_on_further() {
        let mut clock = MonotonicClock::start(at(1000, "a", 50));
        for (reading, now) in [
            (at(1010, "a", 60), 1010),
            // The wall clock was set back, and goes on from there.
            (at(500, "a", 70), 1020),
            (at(900, "a", 470), 1420),
            // Set forward.
            (at(5000, "a", 480), 5410),
            // Off for 1000 seconds.
            (at(6000, "b", 20), 6410),
            // Off, and the wall clock set back: the time since boot counts.
            (at(10, "c", 300), 6710),
            // The same boot with less uptime, as a container may show, is another.
            (at(10, "c", 5), 6715),
        ] {
            clock.advance(reading.clone());
            assert_eq!(clock.now(), now, "{reading:?}");
        }
        assert!(clock.was_set_back(&at(5999, "c", 6)) && !clock.was_set_back(&at(6000, "c", 6)));
    }

    #[test]
    fn a_clock_that_was_wrong_in_the_future_can_be_put_right_and_nothing_gets_younger() {
        let mut clock = MonotonicClock::start(at(1000, "a", 0));
        clock.advance(at(90_000, "a", 10));
        clock.advance(at(1020, "a", 20));
        clock.accept_wall(1020);
        assert_eq!(clock.now(), 90_010);
        assert!(!clock.was_set_back(&at(1021, "a", 21)));
        clock.advance(at(1120, "a", 30));
        assert_eq!(clock.now(), 90_110);
    }

    #[test]
    fn the_kernel_tells_boot_and_uptime() {
        let (first, second) = (Reading::now(), Reading::now());
        assert!(first.boot.len() == 36 && first.boot == second.boot && first.uptime <= second.uptime, "{first:?}");
        assert!(first.wall > 1_700_000_000);
    }
}
