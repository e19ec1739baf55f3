//! A transfer that is under way: its bytes and seconds go to the metrics, and a long one says in the log how far it is.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{During, Stage};
use crate::metrics;

/// How often a long transfer says how far it is.
pub const REPORT_EVERY: Duration = Duration::from_secs(10);

/// One transfer, however many connections carry it. Its time runs from the beginning to the last byte that moved.
#[derive(Debug)]
pub struct Transfer {
    stage: Stage,
    subject: String,
    total: Option<u64>,
    reports: bool,
    state: Mutex<State>,
    /// It counts as under way as long as this lives.
    _under_way: During,
}

#[derive(Debug)]
struct State {
    done: u64,
    moved_at: Instant,
    reported_at: Instant,
}

impl Transfer {
    /// A transfer of `subject` (a path or an object, for the log), of which `done` bytes of `total` are there already.
    pub fn begin(stage: Stage, subject: impl Into<String>, done: u64, total: Option<u64>) -> Self {
        let now = Instant::now();
        let state = Mutex::new(State { done, moved_at: now, reported_at: now });
        Self {
            stage,
            subject: subject.into(),
            total,
            reports: true,
            state,
            _under_way: metrics::under_way(stage).during(),
        }
    }

    /// The same for a piece of something whose progress somebody else reports.
    pub fn of_piece(self) -> Self {
        Self { reports: false, ..self }
    }

    /// `count` more bytes have moved.
    pub fn moved(&self, count: u64) {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        metrics::moved(self.stage, count, now - std::mem::replace(&mut state.moved_at, now));
        state.done += count;
        if self.reports && now - state.reported_at >= REPORT_EVERY {
            state.reported_at = now;
            report_transfer(self.stage, &self.subject, state.done, self.total);
        }
    }

    /// `count` bytes of those that have moved have to move again.
    pub fn moves_again(&self, count: u64) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).done -= count;
    }
}

/// Says in the log how far a transfer is.
pub fn report_transfer(stage: Stage, of: &str, done: u64, total: Option<u64>) {
    let stage = stage.name();
    match total {
        Some(total) if total > 0 => {
            let percent = done.saturating_mul(100) / total;
            log::info!(stage, of, done, total, percent; "transfer under way");
        }
        _ => log::info!(stage, of, done; "transfer under way"),
    }
}
