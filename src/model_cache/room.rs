//! Room in the cache: `CACHE_MAX_BYTES`, `CACHE_MIN_FREE_BYTES`, and the models that are removed to stay within both.
//!
//! Before a file begins to grow, room for its final length is reserved. The files are counted again each time, so that the count
//! cannot drift from what is on the disk: a file counts with its length or its blocks, whichever is more, and one with a
//! reservation counts with what is reserved.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use super::catalog::{Catalog, model_of};
use super::entry::Entry;
use super::reservation::{Reservation, Reserved};
use super::version::Versions;
use crate::keyed_lock::KeyedLock;
use crate::metrics;
use crate::names::ModelName;
use crate::threads::lock;

/// This fraction of `CACHE_MAX_BYTES` is set aside for small records, which are written without a reservation.
const FOR_RECORDS: u64 = 64;

/// What the cache may take.
pub struct CacheLimits<'a> {
    /// `CACHE_MAX_BYTES`.
    pub max_bytes: u64,
    /// `CACHE_MIN_FREE_BYTES`.
    pub min_free_bytes: u64,
    /// `DOWNLOAD_RATE`.
    pub download_rate: u64,
    /// The models in `KEEP`.
    pub keep: &'a [ModelName],
}

/// The limits, and what has been reserved within them.
pub(super) struct Room {
    root: PathBuf,
    /// `CACHE_MAX_BYTES`; 0 for no limit.
    max_bytes: u64,
    /// `CACHE_MIN_FREE_BYTES`; 0 for no limit.
    min_free_bytes: u64,
    versions: Arc<KeyedLock<ModelName, Versions>>,
    catalog: Arc<Catalog>,
    /// The lock is held while files are counted and removed.
    reserved: Arc<Mutex<Reserved>>,
}

/// Why there is no room for a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoRoom {
    /// Because of `CACHE_MAX_BYTES`.
    MaxBytes { limit: u64, left: u64, needed: u64 },
    /// Because of `CACHE_MIN_FREE_BYTES`.
    MinFreeBytes { limit: u64, left: u64, needed: u64 },
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MaxBytes { limit, left, needed } => write!(
                f,
                "it needs {needed} bytes, and CACHE_MAX_BYTES ({limit}) leaves {left} besides the models that KEEP names or \
                 that are in use; raise CACHE_MAX_BYTES"
            ),
            Self::MinFreeBytes { limit, left, needed } => write!(
                f,
                "it needs {needed} bytes, and {left} could be used if CACHE_MIN_FREE_BYTES ({limit}) are to stay free; free \
                 space on the file system of MODEL_CACHE_DIR, or lower CACHE_MIN_FREE_BYTES"
            ),
        }
    }
}

impl From<NoRoom> for io::Error {
    fn from(reason: NoRoom) -> Self {
        Self::new(io::ErrorKind::StorageFull, reason.to_string())
    }
}

/// What a file, or all files of a model, take.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    /// What counts towards `CACHE_MAX_BYTES`.
    bytes: u64,
    /// What is given back to the file system with the file.
    blocks: u64,
}

impl Size {
    fn of(metadata: &Metadata) -> Self {
        let blocks = metadata.blocks() * 512;
        Self { bytes: blocks.max(metadata.len()), blocks }
    }

    fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.blocks += other.blocks;
    }
}

/// What is on the disk, besides the file that needs room.
struct Count {
    used: u64,
    /// What the file system has left; none without a limit.
    free: Option<u64>,
    models: HashMap<PathBuf, Size>,
}

/// A model that may be removed.
struct Candidate {
    entry: Entry,
    size: Size,
    last_use: u64,
}

impl Room {
    pub(super) fn new(
        root: &Path,
        limits: &CacheLimits<'_>,
        versions: Arc<KeyedLock<ModelName, Versions>>,
        catalog: Arc<Catalog>,
    ) -> Self {
        let CacheLimits { max_bytes, min_free_bytes, .. } = *limits;
        metrics::CACHE_LIMIT_BYTES.set(max_bytes);
        Self { root: root.to_owned(), max_bytes, min_free_bytes, versions, catalog, reserved: Arc::default() }
    }

    /// Reserves room for a file, and removes models to make it. `replaces` is the model whose cached version the file is to
    /// replace, if nobody reads that: it goes if nothing else helps. If there is no room, nothing is removed.
    pub(super) fn reserve(&self, path: &Path, bytes: u64, replaces: Option<&Entry>) -> Result<Reservation, NoRoom> {
        let mut reserved = lock(&self.reserved);
        self.make(&reserved, path, bytes, replaces)?;
        let number = reserved.add(path, bytes);
        Ok(Reservation { ledger: Arc::clone(&self.reserved), number, path: path.to_owned(), bytes })
    }

    /// Reserves this many bytes in all. If there is no room, the reservation stays as it is.
    pub(super) fn grow(&self, reservation: &mut Reservation, bytes: u64) -> Result<(), NoRoom> {
        if reservation.is_for(bytes) {
            return Ok(());
        }
        let mut reserved = lock(&self.reserved);
        self.make(&reserved, &reservation.path, bytes, None)?;
        reserved.change(reservation.number, bytes);
        reservation.bytes = bytes;
        Ok(())
    }

    /// Removes models until the cache is within `CACHE_MAX_BYTES`, which may be lower than the last time.
    pub(super) fn trim(&self) {
        if self.max_bytes == 0 {
            return;
        }
        let mut count = self.count(&Reserved::default(), Path::new(""));
        let mut candidates = self.candidates(&count).into_iter();
        while count.used > self.max_bytes {
            let Some(candidate) = candidates.next() else {
                let (used, limit) = (count.used, self.max_bytes);
                log::warn!("the cache has {used} bytes, and KEEP names more than CACHE_MAX_BYTES ({limit}); raise it");
                return;
            };
            self.evict(&candidate, &mut count);
        }
    }

    /// Removes models until there is room for a file of this many bytes at `path`.
    fn make(&self, reserved: &Reserved, path: &Path, bytes: u64, replaces: Option<&Entry>) -> Result<(), NoRoom> {
        if self.max_bytes == 0 && self.min_free_bytes == 0 {
            return Ok(());
        }
        let mut count = self.count(reserved, path);
        if self.fits(&count, Size::default(), bytes).is_ok() {
            return Ok(());
        }
        let candidates = self.candidates(&count);
        let mut all = Size::default();
        for candidate in &candidates {
            all.add(candidate.size);
        }
        if let Err(reason) = self.fits(&count, all, bytes) {
            let Some((entry, size)) = replaces.and_then(|entry| Some((entry, *count.models.get(&entry.big)?))) else {
                return Err(reason);
            };
            all.add(size);
            self.fits(&count, all, bytes)?;
            remove(entry, size, &mut count);
        }
        for candidate in &candidates {
            if self.fits(&count, Size::default(), bytes).is_ok() {
                break;
            }
            self.evict(candidate, &mut count);
        }
        self.fits(&count, Size::default(), bytes)
    }

    /// Whether a file of this many bytes fits after `removed` has been removed.
    fn fits(&self, count: &Count, removed: Size, needed: u64) -> Result<(), NoRoom> {
        if self.max_bytes > 0 {
            let limit = self.max_bytes;
            let left = (limit - limit / FOR_RECORDS).saturating_sub(count.used.saturating_sub(removed.bytes));
            if left < needed {
                return Err(NoRoom::MaxBytes { limit, left, needed });
            }
        }
        if let Some(free) = count.free {
            let limit = self.min_free_bytes;
            let left = free.saturating_add(removed.blocks).saturating_sub(limit);
            if left < needed {
                return Err(NoRoom::MinFreeBytes { limit, left, needed });
            }
        }
        Ok(())
    }

    fn count(&self, reserved: &Reserved, own: &Path) -> Count {
        let reserved = reserved.files.iter().filter(|file| file.path != own);
        let mut promised: HashMap<&Path, u64> = reserved.map(|file| (&*file.path, file.bytes)).collect();
        let mut count = Count { used: promised.values().sum(), free: None, models: HashMap::new() };
        let mut own_blocks = 0;
        let mut add = |path: PathBuf, metadata: &Metadata| {
            let size = Size::of(metadata);
            if path == own {
                own_blocks = size.blocks;
            } else if let Some(promised) = promised.get_mut(&*path) {
                *promised = promised.saturating_sub(size.blocks);
            } else {
                count.used += size.bytes;
                if let Some(big) = big_of(&path) {
                    count.models.entry(big).or_default().add(size);
                }
            }
        };
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => {
                    for file in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                        if let Ok(metadata) = file.metadata()
                            && metadata.is_file()
                        {
                            add(file.path(), &metadata);
                        }
                    }
                }
                Ok(metadata) => add(entry.path(), &metadata),
                // It was removed meanwhile.
                Err(_) => {}
            }
        }
        if self.min_free_bytes > 0
            && let Ok(system) = rustix::fs::statvfs(&self.root)
        {
            let available = system.f_bavail.saturating_mul(system.f_frsize).saturating_add(own_blocks);
            count.free = Some(available.saturating_sub(promised.values().sum()));
        }
        count
    }

    /// The models that may be removed, the one used longest ago first.
    fn candidates(&self, count: &Count) -> Vec<Candidate> {
        let mut candidates: Vec<Candidate> =
            count.models.iter().filter_map(|(big, size)| self.candidate(big, *size)).collect();
        candidates.sort_by(|one, other| (one.last_use, &one.entry.big).cmp(&(other.last_use, &other.entry.big)));
        candidates
    }

    fn candidate(&self, big: &Path, size: Size) -> Option<Candidate> {
        let model = model_of(big).filter(|model| size.bytes > 0 && !self.catalog.is_kept(model))?;
        let is_idle = self.if_idle(&model, || ()).is_some();
        is_idle.then(|| Candidate {
            entry: Entry::new(&self.root, &model, Arc::clone(&self.catalog)),
            size,
            last_use: self.catalog.last_uses.of(big),
        })
    }

    /// Does something to a model that nobody reads or is about to read.
    fn if_idle<T>(&self, model: &ModelName, work: impl FnOnce() -> T) -> Option<T> {
        let versions = self.versions.of(model.clone());
        // The caller may hold the lock of another model, so this must not wait.
        let versions = match versions.try_lock() {
            Ok(versions) => versions,
            Err(TryLockError::Poisoned(poisoned)) => PoisonError::into_inner(poisoned),
            Err(TryLockError::WouldBlock) => return None,
        };
        versions.iter().all(|version| version.strong_count() == 0).then(work)
    }

    fn evict(&self, candidate: &Candidate, count: &mut Count) {
        self.if_idle(&candidate.entry.model, || remove(&candidate.entry, candidate.size, count));
    }
}

fn remove(entry: &Entry, size: Size, count: &mut Count) {
    match entry.remove() {
        Ok(_) => {
            metrics::CACHE_EVICTIONS.add();
            log::info!("{} is removed from the cache to make room: it was used longest ago", entry.model);
            count.used = count.used.saturating_sub(size.bytes);
            count.free = count.free.map(|free| free.saturating_add(size.blocks));
        }
        Err(error) => log::warn!("{} cannot be removed from the cache to make room: {error}", entry.model),
    }
}

/// The big part to which a file in the cache belongs.
fn big_of(path: &Path) -> Option<PathBuf> {
    let (name, _) = path.file_name()?.to_str()?.rsplit_once(".big")?;
    Some(path.with_file_name(format!("{name}.big")))
}
