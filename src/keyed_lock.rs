//! A lock for each key: work on one key takes turns, work on different keys does not wait.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, Weak};

use crate::threads::lock;

/// A mutex for each key, with a value that lives as long as somebody holds the mutex.
pub struct KeyedLock<K, T>(Mutex<HashMap<K, Weak<Mutex<T>>>>);

impl<K, T> Default for KeyedLock<K, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq, T: Default> KeyedLock<K, T> {
    /// The mutex of `key`, for the caller to lock.
    pub fn of(&self, key: K) -> Arc<Mutex<T>> {
        let mut locks = lock(&self.0);
        locks.retain(|_, lock| lock.strong_count() > 0);
        if let Some(found) = locks.get(&key).and_then(Weak::upgrade) {
            return found;
        }
        let new = Arc::default();
        locks.insert(key, Arc::downgrade(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_mutex_for_as_long_as_it_is_held() {
        let locks = KeyedLock::<&str, u8>::default();
        let (first, other) = (locks.of("a"), locks.of("b"));
        *lock(&first) = 7;
        assert!(Arc::ptr_eq(&first, &locks.of("a")) && !Arc::ptr_eq(&first, &other));
        drop((first, other));
        assert_eq!(*lock(&locks.of("a")), 0);
        assert_eq!(lock(&locks.0).len(), 1);
    }
}
