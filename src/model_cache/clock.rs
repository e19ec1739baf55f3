//! A clock that never goes back, so that a time limit cannot be extended by setting the system's clock.
//!
//! It advances by the wall clock or by the uptime, whichever advanced more since the last reading. The wall clock counts while
//! the box is off; the uptime (which includes suspend) counts even if the wall clock is set back. On a board without a battery
//! for its clock, which starts in 1970 or at the time that its system last saved, this clock stops while the board is off, and
//! continues from the last known time with the uptime, until the wall clock is set.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::constants::EARLIEST_TIME;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Seconds since 1970.
    pub wall: u64,
    /// The kernel's identifier of this boot; empty if it is unknown.
    pub boot: String,
    /// Seconds since boot.
    pub uptime: u64,
}

impl Reading {
    pub fn now() -> Self {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let uptime = text("/proc/uptime").split('.').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { wall, boot: text("/proc/sys/kernel/random/boot_id").trim().to_owned(), uptime }
    }
}

/// The clock at its last reading.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonotonicClock {
    now: u64,
    /// The highest wall time seen.
    wall: u64,
    /// The highest wall time seen since the boot.
    #[serde(default)]
    wall_of_boot: u64,
    boot: String,
    uptime: u64,
}

impl MonotonicClock {
    pub fn start(reading: Reading) -> Self {
        let Reading { wall, boot, uptime } = reading;
        Self { now: wall, wall, wall_of_boot: wall, boot, uptime }
    }

    pub fn now(&self) -> u64 {
        self.now
    }

    /// Whether the wall clock is behind a time that it has shown since the boot.
    pub fn was_set_back(&self, reading: &Reading) -> bool {
        reading.boot == self.boot && reading.wall < self.wall_of_boot
    }

    pub fn advance(&mut self, reading: Reading) {
        let same_boot = reading.boot == self.boot && reading.uptime >= self.uptime;
        let by_uptime = reading.uptime - if same_boot { self.uptime } else { 0 };
        // Setting a clock that was never set before is not an advance.
        let by_wall = if self.wall < EARLIEST_TIME { 0 } else { reading.wall.saturating_sub(self.wall) };
        self.now = self.now.saturating_add(by_uptime.max(by_wall));
        self.wall = self.wall.max(reading.wall);
        self.wall_of_boot = if reading.boot == self.boot { self.wall_of_boot.max(reading.wall) } else { reading.wall };
        (self.boot, self.uptime) = (reading.boot, reading.uptime);
    }

    /// Whether this is the same clock as `before`, less than `step` seconds later.
    pub fn goes_on_from(&self, before: &Self, step: u64) -> bool {
        self.boot == before.boot
            && self.now - before.now < step
            && self.wall >= before.wall
            && self.wall - before.wall < step
    }

    /// Accepts the wall clock as it is now, after [`advance`](Self::advance), in case it was set too far ahead before. This does not
    /// move the clock back.
    pub fn accept_wall(&mut self, wall: u64) {
        if wall >= EARLIEST_TIME {
            (self.wall, self.wall_of_boot) = (wall, wall);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{EARLIEST_TIME, MonotonicClock, Reading};

    /// So many seconds after the earliest time.
    fn at(wall: u64, boot: &str, uptime: u64) -> Reading {
        Reading { wall: EARLIEST_TIME + wall, boot: boot.into(), uptime }
    }

    fn now(clock: &MonotonicClock) -> u64 {
        clock.now() - EARLIEST_TIME
    }

    #[test]
    fn it_advances_by_whichever_clock_advanced_more() {
        let mut clock = MonotonicClock::start(at(1000, "a", 50));
        for (reading, expected) in [
            (at(1010, "a", 60), 1010),
            // The wall clock was set back, and advances from there.
            (at(500, "a", 70), 1020),
            (at(900, "a", 470), 1420),
            // Set forward.
            (at(5000, "a", 480), 5410),
            // Off for 1000 seconds.
            (at(6000, "b", 20), 6410),
            // Off, and the wall clock set back: the uptime counts.
            (at(10, "c", 300), 6710),
            // The same boot with less uptime, as a container may show, is another.
            (at(10, "c", 5), 6715),
        ] {
            clock.advance(reading.clone());
            assert_eq!(now(&clock), expected, "{reading:?}");
        }
        // What counts as set back is a clock that has shown more since the boot.
        assert!(clock.was_set_back(&at(9, "c", 6)) && !clock.was_set_back(&at(10, "c", 6)));
        assert!(!clock.was_set_back(&at(9, "d", 6)));
    }

    #[test]
    fn without_a_battery_it_goes_on_from_the_last_known_time_until_the_wall_clock_is_set() {
        let in_1970 = |boot: &str, uptime: u64| Reading { wall: uptime, boot: boot.into(), uptime };
        let mut clock = MonotonicClock::start(at(1000, "a", 50));
        for (reading, expected) in [
            (in_1970("b", 20), 1020),
            (in_1970("b", 300), 1300),
            // Off for nobody knows how long.
            (in_1970("c", 10), 1310),
            // Set: it has been 5000 seconds since the last time that was known.
            (at(6000, "c", 40), 6310),
            (at(6010, "c", 50), 6320),
        ] {
            assert!(!clock.was_set_back(&reading), "{reading:?}");
            clock.advance(reading.clone());
            assert_eq!(now(&clock), expected, "{reading:?}");
        }
        assert!(clock.was_set_back(&in_1970("c", 60)));
        // A box that was never set: what it stored keeps its age when the clock is set.
        let mut clock = MonotonicClock::start(in_1970("a", 20));
        clock.accept_wall(30);
        for (reading, expected) in [(in_1970("a", 40), 40), (at(9000, "a", 50), 50), (at(9010, "a", 60), 60)] {
            clock.advance(reading);
            assert_eq!(clock.now(), expected);
        }
    }

    #[test]
    fn a_wall_clock_that_was_ahead_can_be_corrected_and_the_clock_does_not_go_back() {
        let mut clock = MonotonicClock::start(at(1000, "a", 0));
        clock.advance(at(90_000, "a", 10));
        clock.advance(at(1020, "a", 20));
        clock.accept_wall(EARLIEST_TIME + 1020);
        assert_eq!(now(&clock), 90_010);
        assert!(!clock.was_set_back(&at(1021, "a", 21)));
        clock.advance(at(1120, "a", 30));
        assert_eq!(now(&clock), 90_110);
    }

    #[test]
    fn the_kernel_reports_boot_and_uptime() {
        let (first, second) = (Reading::now(), Reading::now());
        assert!(first.boot.len() == 36 && first.boot == second.boot && first.uptime <= second.uptime, "{first:?}");
        assert!(first.wall > 1_700_000_000);
    }
}
