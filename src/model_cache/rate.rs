//! `DOWNLOAD_RATE`: one limit for all downloads together.
//!
//! Each download asks before it reads a small piece. Those that a client waits for come first; of several, the one whose last
//! piece is longest ago. A download in the background that has waited for [`PATIENCE`] gets a piece all the same, so that its
//! connection does not look dead to the CDN.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::cancellation::Cancellation;
use crate::constants::CHUNK;
use crate::threads::lock;

/// A fraction of the time after which the CDN, or a proxy in front of it, takes a connection for dead.
const PATIENCE: Duration = Duration::from_secs(10);

/// A thread that was held up may catch up on at most this much time.
const CATCH_UP: Duration = Duration::from_millis(50);

/// The pieces that all downloads together read in a second.
const PIECES_A_SECOND: u64 = 16;

/// See the module.
pub struct DownloadRate {
    /// Bytes a second; 0 for no limit.
    rate: u64,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// When the next piece may be read.
    free_at: Instant,
    granted: u64,
    next_number: u64,
    waiting: Vec<Waiting>,
}

struct Waiting {
    number: u64,
    is_urgent: bool,
    since: Instant,
    share: Share,
}

/// One download's place among the others, over all its connections: the number of its last piece.
#[derive(Clone, Debug, Default)]
pub(super) struct Share(Arc<AtomicU64>);

impl State {
    fn is_next(&self, number: u64) -> bool {
        let order = |waiting: &&Waiting| {
            let is_urgent = waiting.is_urgent || waiting.since.elapsed() >= PATIENCE;
            (!is_urgent, waiting.share.0.load(Ordering::Relaxed), waiting.number)
        };
        self.waiting.iter().min_by_key(order).is_some_and(|first| first.number == number)
    }
}

impl DownloadRate {
    /// A limit in bytes a second; 0 for none.
    pub fn new(rate: u64) -> Self {
        let state = State { free_at: Instant::now(), granted: 0, next_number: 0, waiting: Vec::new() };
        Self { rate, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// How much to read at a time.
    pub(super) fn piece(&self) -> usize {
        match self.rate {
            0 => CHUNK,
            rate => (rate / PIECES_A_SECOND).clamp(256, CHUNK as u64) as usize,
        }
    }

    /// Waits until this many bytes may be read.
    pub(super) fn wait(&self, bytes: usize, share: &Share, is_urgent: impl Fn() -> bool) -> io::Result<()> {
        if self.rate == 0 {
            return Ok(());
        }
        let mut state = lock(&self.state);
        state.next_number += 1;
        let number = state.next_number;
        state.waiting.push(Waiting { number, is_urgent: false, since: Instant::now(), share: share.clone() });
        loop {
            drop(state);
            // Both may take other locks.
            let (cancelled, is_urgent) = (Cancellation::check(), is_urgent());
            state = lock(&self.state);
            let mine = state.waiting.iter().position(|waiting| waiting.number == number).unwrap_or_default();
            if cancelled.is_err() {
                state.waiting.remove(mine);
                self.changed.notify_all();
                return cancelled;
            }
            state.waiting[mine].is_urgent = is_urgent;
            let now = Instant::now();
            let is_next = state.is_next(number);
            if is_next && state.free_at <= now {
                state.waiting.remove(mine);
                let from = state.free_at.max(now.checked_sub(CATCH_UP).unwrap_or(now));
                state.free_at = from + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
                state.granted += 1;
                share.0.store(state.granted, Ordering::Relaxed);
                self.changed.notify_all();
                return Ok(());
            }
            let pause = if is_next { state.free_at - now } else { Cancellation::CHECK_INTERVAL };
            let pause = pause.min(Cancellation::CHECK_INTERVAL);
            state = self.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A reader of a download that a client waits for.
    pub fn limit<R: Read>(&self, source: R) -> impl Read + use<'_, R> {
        Limited { rate: self, share: Share::default(), source }
    }
}

struct Limited<'a, R> {
    rate: &'a DownloadRate,
    share: Share,
    source: R,
}

impl<R: Read> Read for Limited<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = out.len().min(self.rate.piece());
        self.rate.wait(count, &self.share, || true)?;
        self.source.read(&mut out[..count])
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    /// Reads in pieces, like a download.
    fn download(rate: &DownloadRate, bytes: usize, is_urgent: bool) -> Duration {
        let (start, share) = (Instant::now(), Share::default());
        for _ in 0..bytes / rate.piece() {
            rate.wait(rate.piece(), &share, || is_urgent).unwrap();
        }
        start.elapsed()
    }

    #[test]
    fn all_downloads_together_are_never_faster_than_the_rate() {
        let rate = DownloadRate::new(16 << 20);
        let start = Instant::now();
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| download(&rate, 8 << 20, true));
            }
        });
        // All but the last piece take their time, and some can be caught up.
        assert!(start.elapsed() > Duration::from_millis(1380), "{:?}", start.elapsed());
        let unlimited = DownloadRate::new(0);
        assert!(unlimited.piece() == CHUNK && download(&unlimited, 1 << 40, false) < Duration::from_secs(10));
    }

    #[test]
    fn clients_come_first_then_the_download_whose_last_piece_is_longest_ago() {
        let share = |last: u64| Share(Arc::new(AtomicU64::new(last)));
        let now = Instant::now();
        let waiting = |number, is_urgent, last| Waiting { number, is_urgent, since: now, share: share(last) };
        let waiting = vec![waiting(1, false, 0), waiting(2, true, 9), waiting(3, true, 8), waiting(4, true, 8)];
        let mut state = State { free_at: now, granted: 9, next_number: 4, waiting };
        let mut order = Vec::new();
        while let Some(next) = (1..=4).find(|number| state.is_next(*number)) {
            order.push(next);
            state.waiting.retain(|waiting| waiting.number != next);
        }
        assert_eq!(order, [3, 4, 2, 1]);
        // After a while the CDN would take a connection that moves nothing for dead.
        let since = now.checked_sub(PATIENCE).unwrap();
        state.waiting.push(Waiting { number: 5, is_urgent: true, since: now, share: share(7) });
        state.waiting.push(Waiting { number: 6, is_urgent: false, since, share: share(6) });
        assert!(state.is_next(6) && !state.is_next(5));
    }

    #[test]
    fn a_wait_ends_when_its_client_is_gone() {
        let rate = DownloadRate::new(256);
        rate.wait(1 << 20, &Share::default(), || true).unwrap();
        let flag = Arc::new(AtomicBool::new(true));
        let _cancellation = Cancellation::enter(flag);
        let error = rate.wait(1, &Share::default(), || true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        assert!(lock(&rate.state).waiting.is_empty());
    }
}
