//! Threads and what they hand each other.

use std::io;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle, available_parallelism};

use crate::logging::Current;

/// Starts a named thread, which works for the same request as the one that starts it.
///
/// # Errors
/// The operating system's, when there can be no more threads.
pub fn spawn<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    let request = Current::get();
    Builder::new().name(name.to_owned()).spawn(move || {
        let _current = Current::enter(request);
        work()
    })
}

/// Whether work in the background has a core of its own.
pub fn has_second_core() -> bool {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| available_parallelism().map_or(1, usize::from)) >= 2
}

/// Locks a mutex whose value is right at every moment, so that a panic elsewhere changes nothing.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Things that many threads leave for one.
#[derive(Debug)]
pub struct Mailbox<T>(Mutex<Vec<T>>);

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Mailbox<T> {
    /// Leaves one more.
    pub fn put(&self, thing: T) {
        lock(&self.0).push(thing);
    }

    /// Takes all, in the order in which they came.
    pub fn take_all(&self) -> Vec<T> {
        std::mem::take(&mut lock(&self.0))
    }
}
