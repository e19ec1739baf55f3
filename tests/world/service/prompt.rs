//! Whether a service answers at once, on a machine that others use too.

use std::time::{Duration, Instant};

use super::Service;
use crate::world::raw::Reply;

/// How long an answer may take, besides the bystander's share. A service that does not answer at once takes seconds.
const LIMIT: Duration = Duration::from_millis(50);

/// How many times longer than the bystander's an answer may take: on a quiet machine that is a few milliseconds.
const SHARE: u32 = 10;

/// Fewer answers say little on a busy machine.
const ANSWERS: usize = 15;

/// Answers of a service, and in turns those of a bystander that is left alone: delays that both have come from the machine.
pub struct Promptness {
    bystander: Service,
    took: Vec<Duration>,
    idle: Vec<Duration>,
}

impl Promptness {
    pub fn new() -> Self {
        Self { bystander: Service::builder().start(), took: Vec::new(), idle: Vec::new() }
    }

    /// `GET` from the service.
    pub fn get(&mut self, service: &Service, path: &str) -> Reply {
        let (reply, took) = timed(service, path);
        self.took.push(took);
        self.idle.push(timed(&self.bystander, path).1);
        reply
    }

    /// Fails unless the service usually answers at once: the machine may take a break during a few answers.
    pub fn judge(mut self, service: &Service, path: &str) {
        while self.took.len() < ANSWERS {
            self.get(service, path);
        }
        let (took, idle) = (median(&mut self.took), median(&mut self.idle));
        assert!(took < LIMIT + SHARE * idle, "an answer took {took:?}, one of a service that is left alone {idle:?}");
    }
}

fn timed(service: &Service, path: &str) -> (Reply, Duration) {
    let started = Instant::now();
    (service.get(path), started.elapsed())
}

fn median(took: &mut [Duration]) -> Duration {
    took.sort();
    took[took.len() / 2]
}
