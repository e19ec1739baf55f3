//! Room that is reserved for files that still grow.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::threads::lock;

/// All reservations.
#[derive(Default)]
pub(super) struct Reserved {
    next_number: u64,
    pub(super) files: Vec<ReservedFile>,
}

pub(super) struct ReservedFile {
    number: u64,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
}

impl Reserved {
    pub(super) fn add(&mut self, path: &Path, bytes: u64) -> u64 {
        self.next_number += 1;
        self.files.push(ReservedFile { number: self.next_number, path: path.to_owned(), bytes });
        self.next_number
    }

    pub(super) fn change(&mut self, number: u64, bytes: u64) {
        if let Some(file) = self.files.iter_mut().find(|file| file.number == number) {
            file.bytes = bytes;
        }
    }
}

/// Room that is reserved for a file, until this is dropped.
pub(super) struct Reservation {
    pub(super) ledger: Arc<Mutex<Reserved>>,
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
}

impl Reservation {
    /// Whether this many bytes are reserved.
    pub(super) fn is_for(&self, bytes: u64) -> bool {
        bytes <= self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        lock(&self.ledger).files.retain(|file| file.number != self.number);
    }
}
