//! A transfer that is under way: its bytes and seconds go to the metrics, and a long one says in the log how far it is.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::metrics::{self, During, Stage};

/// How often a long transfer says how far it is.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// One transfer. Its time runs from the beginning to the last byte that moved.
#[derive(Debug)]
pub struct Transfer {
    stage: Stage,
    subject: String,
    done: Cell<u64>,
    total: Option<u64>,
    moved_at: Cell<Instant>,
    reported_at: Cell<Instant>,
    /// It counts as under way as long as this lives.
    _under_way: During,
}

impl Transfer {
    /// A transfer of `subject` (a path or an object, for the log), of which `done` bytes of `total` are there already.
    #[must_use]
    pub fn begin(stage: Stage, subject: impl Into<String>, done: u64, total: Option<u64>) -> Self {
        let now = Instant::now();
        Self {
            stage,
            subject: subject.into(),
            done: Cell::new(done),
            total,
            moved_at: Cell::new(now),
            reported_at: Cell::new(now),
            _under_way: metrics::under_way(stage).during(),
        }
    }

    /// `count` more bytes have moved.
    pub fn moved(&self, count: u64) {
        let now = Instant::now();
        metrics::moved(self.stage, count, now - self.moved_at.replace(now));
        self.done.set(self.done.get() + count);
        if now - self.reported_at.get() >= REPORT_EVERY {
            self.reported_at.set(now);
            self.report();
        }
    }

    /// It goes on from another position, since something has to be sent again.
    pub fn continue_at(&self, position: u64) {
        self.done.set(position);
    }

    fn report(&self) {
        let (stage, of, done) = (self.stage.name(), self.subject.as_str(), self.done.get());
        match self.total {
            Some(total) if total > 0 => {
                let percent = done.saturating_mul(100) / total;
                log::info!(stage, of, done, total, percent; "transfer under way");
            }
            _ => log::info!(stage, of, done; "transfer under way"),
        }
    }
}
