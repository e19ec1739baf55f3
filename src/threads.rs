//! This program's own threads, named and counted. The threads of `tiny_http` are the rest.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle};

use crate::logging::Current;

static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// Starts a thread, which works for the same request as the one that starts it.
///
/// # Errors
/// The operating system's, when there can be no more threads.
pub fn spawn<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    let counted = Counted::new();
    let request = Current::get();
    Builder::new().name(name.to_owned()).spawn(move || {
        let _counted = counted;
        let _current = Current::enter(request);
        work()
    })
}

/// How many threads that were started here are running, besides the main one.
#[must_use]
pub fn running() -> usize {
    RUNNING.load(Ordering::Relaxed)
}

struct Counted;

impl Counted {
    fn new() -> Self {
        RUNNING.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}
