//! Whether anybody still wants what a thread is working for.

use std::cell::RefCell;
use std::io;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

thread_local! {
    static CURRENT: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

/// This thread's work can be cancelled, until this is dropped.
pub struct Cancellation {
    /// It belongs to its thread.
    thread: PhantomData<*const ()>,
}

impl Cancellation {
    /// From now on this thread's work is cancelled when `flag` is set.
    pub fn enter(flag: Arc<AtomicBool>) -> Self {
        CURRENT.set(Some(flag));
        Self { thread: PhantomData }
    }

    /// To be called now and then by whatever waits: ends the wait once nobody wants its result.
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionAborted`] if the work was cancelled.
    pub fn check() -> io::Result<()> {
        let cancelled = CURRENT.with_borrow(|flag| flag.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed)));
        if cancelled { Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the client has gone")) } else { Ok(()) }
    }
}

impl Drop for Cancellation {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}
