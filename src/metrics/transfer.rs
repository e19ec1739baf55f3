//! A running transfer: its bytes and seconds are counted, and a long one reports its progress in the log.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::{During, Stage};
use crate::metrics;
use crate::threads::lock;

/// How often a long transfer reports its progress.
pub const REPORT_EVERY: Duration = Duration::from_secs(10);

/// One transfer, over any number of connections. Its time ends with the last byte that moves.
#[derive(Debug)]
pub struct Transfer {
    stage: Stage,
    subject: String,
    total: Option<u64>,
    reports: bool,
    state: Mutex<State>,
    /// Counts the transfer as running.
    _under_way: During,
}

#[derive(Debug)]
struct State {
    done: u64,
    moved_at: Instant,
    reported_at: Instant,
}

impl Transfer {
    /// Begins a transfer of `subject` (a path or an object, for the log), of which `done` bytes were moved before.
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

    /// Makes the transfer report nothing, since it is a piece of one that reports its progress elsewhere.
    pub fn of_piece(self) -> Self {
        Self { reports: false, ..self }
    }

    /// Counts `count` more bytes.
    pub fn moved(&self, count: u64) {
        let now = Instant::now();
        let mut state = lock(&self.state);
        metrics::moved(self.stage, count, now - std::mem::replace(&mut state.moved_at, now));
        state.done += count;
        if self.reports && now - state.reported_at >= REPORT_EVERY {
            state.reported_at = now;
            report_transfer(self.stage, &self.subject, state.done, self.total);
        }
    }

    /// Takes back `count` bytes, which have to move again.
    pub fn moves_again(&self, count: u64) {
        lock(&self.state).done -= count;
    }
}

/// Reports the progress of a transfer in the log.
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
