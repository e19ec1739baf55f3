//! The model cache: big parts on local storage, each proven by hash, replaced atomically, and downloaded once however many
//! loads ask for it.
//!
//! Under the cache's root, for a model `name` in `folder`:
//! - `folder/name.big`: the big part, as the CDN has it;
//! - `folder/name.big.json`: its `Record`, which says to which small part it belongs. A big part without
//!   a fitting record is not used;
//! - `folder/name.big.small.json`: with `OFFLINE_HOURS`, the small part as the Resource API encrypted it, and since when;
//! - `folder/name.big.part`, `folder/name.big.part.json`: a download that has not ended, kept to be resumed;
//! - `.clock.json`: with `OFFLINE_HOURS`, the box clock that those times are of;
//! - `.spool/`: uploads that are being received. No folder can have this name.

mod cached;
mod catalog;
mod fill;
mod incoming;
mod kept;
mod proofs;
mod ranges;
mod record;
mod spool;

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use self::catalog::Catalog;
use self::fill::Fill;
use self::proofs::Proofs;
use self::record::Record;
use crate::cdn_manager::BigObject;
use crate::metrics;
use crate::security::{Hasher, VerifyReader};
use crate::storage::{create_dir, create_parent};

pub use self::cached::{Cached, CachedReader};
pub use self::catalog::{CacheSummary, CachedModel};
pub use self::kept::{KeptParts, Refusal};
pub use self::spool::Spool;

/// The name of the directory for uploads that are being received.
const SPOOL_DIR: &str = ".spool";

/// What is behind the name of a big part in that of its kept small part.
const KEPT_SUFFIX: &str = ".small.json";

/// Opens the download of a range of an object.
pub type OpenRange = Arc<dyn Fn(Range<u64>) -> Box<dyn Read + Send> + Send + Sync>;

/// The cache at one root directory.
pub struct ModelCache {
    root: PathBuf,
    fills: Arc<Fills>,
    catalog: Arc<Catalog>,
}

/// The downloads that are running, by the file that they fill.
#[derive(Default)]
struct Fills {
    running: Mutex<HashMap<PathBuf, Arc<Fill>>>,
    ended: Condvar,
    proofs: Arc<Proofs>,
}

impl Fills {
    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Arc<Fill>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The files of one model.
#[derive(Clone, Debug)]
pub struct Entry {
    big: PathBuf,
    catalog: Arc<Catalog>,
}

impl Entry {
    fn record(&self) -> PathBuf {
        record_of(&self.big)
    }

    fn part(&self) -> PathBuf {
        self.with_suffix(".part")
    }

    /// The small part as the Resource API encrypted it, if it is kept.
    fn kept(&self) -> PathBuf {
        self.with_suffix(KEPT_SUFFIX)
    }

    /// The big part is there now, and whole.
    fn is_cached(&self, bytes: u64) {
        self.catalog.insert(&self.big, bytes);
    }

    /// The big part is gone.
    fn is_gone(&self) {
        self.catalog.remove(&self.big);
    }

    fn part_record(&self) -> PathBuf {
        self.with_suffix(".part.json")
    }

    fn with_suffix(&self, suffix: &str) -> PathBuf {
        with_suffix(&self.big, suffix)
    }
}

/// Where the record of a cached big part is.
fn record_of(big: &Path) -> PathBuf {
    with_suffix(big, ".json")
}

/// Not `with_extension`, which would cut the model's own.
fn with_suffix(big: &Path, suffix: &str) -> PathBuf {
    let mut path = big.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

impl ModelCache {
    /// The cache under `root`. What an earlier process left unfinished is removed, but for downloads to resume.
    ///
    /// A cache that cannot be created is a warning, not an error: loads then stream without it.
    #[must_use]
    pub fn open(root: &Path) -> Self {
        let cache = Self { root: root.to_owned(), fills: Arc::default(), catalog: Arc::default() };
        if let Err(error) = create_dir(root).and_then(|()| cache.take_stock()) {
            log::warn!("the model cache at {} cannot be used, models are loaded without it: {error}", root.display());
        }
        cache
    }

    /// The files of the model `file_name` in `folder`, which both must have passed
    /// [`names`](crate::names): they become parts of a path.
    #[must_use]
    pub fn entry(&self, folder: &str, file_name: &str) -> Entry {
        let big = self.root.join(folder).join(format!("{file_name}.big"));
        Entry { big, catalog: Arc::clone(&self.catalog) }
    }

    /// The cached big part, if there is one that was proven to belong to the small part with this hash.
    #[must_use]
    pub fn lookup(&self, entry: &Entry, small_sha256: &str) -> Option<Cached> {
        // A download that is whole has its name and record in a moment.
        let running = self.fills.lock();
        let is_ending = |running: &mut HashMap<PathBuf, Arc<Fill>>| {
            running.get(&entry.big).is_some_and(|fill| fill.is_whole_for(small_sha256))
        };
        drop(self.fills.ended.wait_while(running, is_ending));
        let cached = Cached::open(entry, small_sha256, &self.fills.proofs);
        match &cached {
            Some(_) => metrics::CACHE_HITS.add(),
            None => metrics::CACHE_MISSES.add(),
        }
        if cached.is_none() && !entry.big.exists() {
            // Somebody may have removed it by hand.
            entry.is_gone();
        }
        cached
    }

    /// What is cached, without a look at the disk.
    #[must_use]
    pub fn summary(&self) -> CacheSummary {
        self.catalog.summary()
    }

    /// The bytes of `object`, which belongs to the small part with the hash `small_sha256`, while they fill the cache. A
    /// download of the same object that is running already is shared; one that was broken off is resumed. It may use as
    /// many connections at once as the number beside `open` says.
    ///
    /// The reader ends well only if the bytes have the hash that the CDN recorded for them.
    #[must_use]
    pub fn fetch(
        &self,
        entry: &Entry,
        object: &BigObject,
        small_sha256: &str,
        (open, connections): (OpenRange, usize),
    ) -> Box<dyn Read + Send> {
        let mut running = self.fills.lock();
        loop {
            match running.get(&entry.big) {
                None => break,
                Some(fill) if fill.is_of(object) => match fill.join() {
                    Some(reader) => return Box::new(reader),
                    // It is ending without success; its files are free in a moment.
                    None => running = self.fills.ended.wait(running).unwrap_or_else(PoisonError::into_inner),
                },
                // Another version is on its way into the same file.
                Some(_) => return uncached(object, &open),
            }
        }
        match Fill::start(entry, object, small_sha256, (Arc::clone(&open), connections), Arc::clone(&self.fills)) {
            Ok((fill, reader)) => {
                running.insert(entry.big.clone(), fill);
                Box::new(reader)
            }
            Err(error) => {
                log::warn!("{} is loaded without the cache: {error}", entry.big.display());
                uncached(object, &open)
            }
        }
    }

    /// A place to receive an upload.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn spool(&self) -> io::Result<Spool> {
        Spool::create(&self.root.join(SPOOL_DIR))
    }

    /// Makes an upload that has been committed the cached big part.
    ///
    /// # Errors
    /// Those of the file system; the cache then has the old file or none.
    pub fn adopt(&self, entry: &Entry, spool: Spool, sha256: &str, small_sha256: &str) -> io::Result<()> {
        create_parent(&entry.big)?;
        // In this order, as for a download: see `Fill::keep`.
        let record = Record::new(spool.file(), sha256, small_sha256)?;
        record.write(&entry.record())?;
        spool.move_to(&entry.big)?;
        entry.is_cached(record.file.length);
        Ok(())
    }

    /// Removes uploads that were not received to their end.
    pub fn remove_spooled(&self) {
        let spool = self.root.join(SPOOL_DIR);
        if let Err(error) = fs::remove_dir_all(&spool)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("{} cannot be removed: {error}", spool.display());
        }
    }

    /// Removes what is unfinished, and notes what is there.
    fn take_stock(&self) -> io::Result<()> {
        self.remove_spooled();
        for folder in fs::read_dir(&self.root)? {
            let folder = folder?.path();
            if !folder.is_dir() {
                // The record of an unlock that was being written.
                if folder.extension().is_some_and(|extension| extension == "tmp") {
                    fs::remove_file(&folder)?;
                }
                continue;
            }
            for file in fs::read_dir(&folder)? {
                let file = file?.path();
                let name = file.to_string_lossy();
                let orphan = name.ends_with(".big.json.tmp")
                    || name.ends_with(".big.small.json.tmp")
                    || name.ends_with(".big.part.json.tmp")
                    || name
                        .strip_suffix(".json")
                        .is_some_and(|data| name.ends_with(".big.part.json") && !Path::new(data).exists())
                    || (name.ends_with(".big.part") && !Path::new(&format!("{name}.json")).exists());
                if orphan {
                    fs::remove_file(&file)?;
                } else if name.ends_with(".big") && Path::new(&format!("{name}.json")).exists() {
                    self.catalog.insert(&file, fs::metadata(&file)?.len());
                }
            }
        }
        Ok(())
    }
}

/// The bytes of an object straight from the CDN, with the same guarantee at their end.
fn uncached(object: &BigObject, open: &OpenRange) -> Box<dyn Read + Send> {
    verified(open(0..object.length), Hasher::default(), object.sha256.as_deref())
}

/// Old uploads have no recorded hash; their length is checked all the same.
fn verified(source: Box<dyn Read + Send>, seen: Hasher, sha256: Option<&str>) -> Box<dyn Read + Send> {
    match sha256 {
        Some(sha256) => Box::new(VerifyReader::new(source, seen, sha256)),
        None => source,
    }
}
