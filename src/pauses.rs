//! Pauses between tries. They have jitter, so that a fleet that lost its server at one moment does not return to it at one
//! moment.

use std::time::Duration;

/// Pauses that double up to a limit.
#[derive(Clone, Debug)]
pub struct Pauses {
    next: Duration,
    longest: Duration,
}

impl Pauses {
    /// Pauses from `first` to `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { next: first, longest }
    }

    /// The next pause, between half and all of its nominal length.
    pub fn next(&mut self) -> Duration {
        let nominal = self.next.min(self.longest);
        self.next = nominal * 2;
        nominal / 2 + random_up_to(nominal / 2)
    }
}

/// A random duration from zero to `limit`.
pub fn random_up_to(limit: Duration) -> Duration {
    // Without random bytes there is no jitter, which is no reason to stop.
    limit.mul_f64(f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_with_jitter_up_to_the_limit() {
        let mut pauses = Pauses::new(Duration::from_secs(1), Duration::from_secs(10));
        for nominal in [1, 2, 4, 8, 10, 10] {
            let (pause, nominal) = (pauses.next(), Duration::from_secs(nominal));
            assert!((nominal / 2..=nominal).contains(&pause), "{pause:?} of {nominal:?}");
        }
    }
}
