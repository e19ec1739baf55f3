//! Random choices of a test that can be repeated.

use std::time::Duration;

use super::pattern;

/// The random choices of one test.
pub struct Dice(u64);

impl Dice {
    /// From the seed in this variable, if it is set. The seed is printed, so that a failing run can be repeated.
    pub fn new(variable: &str) -> Self {
        let given = std::env::var(variable).ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| getrandom::u64().unwrap());
        println!("{variable}={seed}");
        Self(seed)
    }

    /// Dice for another thread, which the same seed gives the same choices.
    pub fn split(&mut self) -> Self {
        Self(self.word())
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.word() % end as u64) as usize
    }

    /// A time below `end`.
    pub fn within(&mut self, end: Duration) -> Duration {
        Duration::from_micros(self.below(usize::try_from(end.as_micros()).unwrap()) as u64)
    }

    /// A time between these numbers of milliseconds.
    pub fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from) + self.within(Duration::from_millis(to - from))
    }

    fn word(&mut self) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&pattern(8, self.0));
        self.0 = self.0.wrapping_add(1);
        u64::from_le_bytes(word)
    }
}
