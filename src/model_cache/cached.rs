//! A cached big part that a record vouches for, and the readers that check it once more on its way out.

use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::Entry;
use super::proofs::{Proofs, StretchReader};
use super::record::Record;
use crate::security::{HashMismatch, Hasher, VerifyReader};
use crate::storage::FileIdentity;

/// A big part in the cache that belongs to a given small part.
pub struct Cached {
    entry: Entry,
    file: File,
    record: Record,
    proofs: Arc<Proofs>,
}

impl Cached {
    pub(super) fn open(entry: &Entry, small_sha256: &str, proofs: &Arc<Proofs>) -> Option<Self> {
        let record = Record::read(&entry.record()).filter(|record| record.small_sha256 == small_sha256)?;
        let file = File::open(&entry.big).ok()?;
        let unchanged = FileIdentity::of(&file).is_ok_and(|identity| identity == record.file);
        unchanged.then(|| Self { entry: entry.clone(), file, record, proofs: Arc::clone(proofs) })
    }

    /// Length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.record.file.length
    }

    /// The last `count` bytes, or all where there are fewer.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn tail(&self, count: usize) -> io::Result<Vec<u8>> {
        let start = self.length().saturating_sub(count as u64);
        let mut tail = vec![0; (self.length() - start) as usize];
        self.file.read_exact_at(&mut tail, start)?;
        Ok(tail)
    }

    /// Its bytes. Storage decays: the reader fails at the end if they do not have the recorded hash, and the next load
    /// downloads them again.
    #[must_use]
    pub fn into_reader(self) -> CachedReader {
        let sha256 = self.record.sha256.clone();
        CachedReader {
            source: VerifyReader::new(self.file, Hasher::default(), sha256),
            entry: self.entry,
            proofs: self.proofs,
        }
    }

    /// A stretch of its bytes, if this process has hashed all of them once and so can check a stretch alone. As that of
    /// [`into_reader`](Self::into_reader), the reader fails at the end if the bytes are not the right ones.
    #[must_use]
    pub fn stretch(&self, stretch: Range<u64>) -> Option<impl Read + Send + use<>> {
        let proof = self.proofs.of(&self.record.sha256)?;
        let source = StretchReader::new(self.file.try_clone().ok()?, proof, stretch)?;
        Some(EvictReader { source, entry: self.entry.clone() })
    }

    /// Takes it out of the cache.
    pub fn evict(&self) {
        evict(&self.entry);
    }
}

/// See [`Cached::into_reader`].
pub struct CachedReader {
    source: VerifyReader<File>,
    entry: Entry,
    proofs: Arc<Proofs>,
}

impl Read for CachedReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(out).inspect_err(|error| evict_if_damaged(&self.entry, error))?;
        if count == 0
            && let Some(proof) = self.source.take_proof()
        {
            self.proofs.add(proof);
        }
        Ok(count)
    }
}

struct EvictReader {
    source: StretchReader,
    entry: Entry,
}

impl Read for EvictReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.source.read(out).inspect_err(|error| evict_if_damaged(&self.entry, error))
    }
}

fn evict_if_damaged(entry: &Entry, error: &io::Error) {
    if error.get_ref().is_some_and(|inner| inner.is::<HashMismatch>()) {
        log::warn!("{} is damaged and will be downloaded again", entry.big.display());
        evict(entry);
    }
}

/// The record goes first: a big part without one is not used, whatever happens next.
fn evict(entry: &Entry) {
    entry.is_gone();
    for path in [entry.record(), entry.big.clone()] {
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("{} cannot be removed: {error}", path.display());
        }
    }
}
