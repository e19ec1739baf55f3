//! Named threads, and locks that outlive a panic.

use std::io;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::{Builder, JoinHandle, available_parallelism};

use crate::logging::Current;

/// Starts a named thread that works, and logs, for the same request as its starter.
pub fn spawn<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    let request = Current::get();
    Builder::new().name(name.to_owned()).spawn(move || {
        let _current = Current::enter(request);
        work()
    })
}

/// Whether background work can have a core of its own.
pub fn has_second_core() -> bool {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| available_parallelism().map_or(1, usize::from)) >= 2
}

/// Locks a mutex even if it is poisoned: the values behind this program's locks are valid at every moment, so a panic of
/// another holder does no harm.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// [`lock`] for the readers of a read-write lock.
pub fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// [`lock`] for the writers of a read-write lock.
pub fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Values that many threads leave for one thread to collect.
#[derive(Debug)]
pub struct Mailbox<T>(Mutex<Vec<T>>);

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Mailbox<T> {
    /// Adds a value.
    pub fn put(&self, value: T) {
        lock(&self.0).push(value);
    }

    /// Takes all values, in the order in which they were added.
    pub fn take_all(&self) -> Vec<T> {
        std::mem::take(&mut lock(&self.0))
    }
}
