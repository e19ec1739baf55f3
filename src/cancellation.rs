//! Cancelling a thread's work once nobody wants its result.

use std::cell::RefCell;
use std::io;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

thread_local! {
    static CURRENT: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

/// Makes the current thread's work cancellable until it is dropped.
pub struct Cancellation {
    /// Keeps the guard on its thread.
    thread: PhantomData<*const ()>,
}

impl Cancellation {
    /// How often a cancellable wait calls [`check`](Self::check).
    pub const CHECK_INTERVAL: Duration = Duration::from_millis(250);

    /// Cancels the current thread's work when `flag` is set.
    pub fn enter(flag: Arc<AtomicBool>) -> Self {
        CURRENT.set(Some(flag));
        Self { thread: PhantomData }
    }

    /// Whether the current thread's work can be cancelled at all.
    pub fn is_possible() -> bool {
        CURRENT.with_borrow(Option::is_some)
    }

    /// Fails with [`io::ErrorKind::ConnectionAborted`] if the current thread's work was cancelled.
    pub fn check() -> io::Result<()> {
        let cancelled = CURRENT.with_borrow(|flag| flag.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed)));
        if cancelled { Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the client is gone")) } else { Ok(()) }
    }

    /// Sleeps, but no longer than until the current thread's work is cancelled.
    pub fn sleep(duration: Duration) {
        let end = Instant::now() + duration;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            if Self::check().is_err() {
                break;
            }
            thread::sleep(left.min(Self::CHECK_INTERVAL));
        }
    }
}

impl Drop for Cancellation {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}
