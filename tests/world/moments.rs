//! Random moments that can be repeated.

use std::time::Duration;

use super::pattern;

/// Random moments of one test.
pub struct Moments(u64);

impl Moments {
    /// From the seed in this variable, if it is set. The seed is printed, so that a failing run can be repeated.
    pub fn new(variable: &str) -> Self {
        let given = std::env::var(variable).ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| getrandom::u64().unwrap());
        println!("{variable}={seed}");
        Self(seed)
    }

    /// Below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&pattern(8, self.0));
        self.0 = self.0.wrapping_add(1);
        u64::from_le_bytes(word) % end
    }

    /// Below `time`.
    pub fn within(&mut self, time: Duration) -> Duration {
        Duration::from_micros(self.below(u64::try_from(time.as_micros()).unwrap()))
    }
}
