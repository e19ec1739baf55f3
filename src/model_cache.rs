//! The model cache: big parts on local storage. They are downloaded, checked and repaired chunk by chunk as their manifests say,
//! once however many loads ask for them, and replaced atomically.
//!
//! Under the cache's root, for a model `name` in `folder`:
//! - `folder/name.big`: the big part, as the CDN has it;
//! - `folder/name.big.json`: its `Record`: the hash of its small part, and its manifest;
//! - `folder/name.big.proven`: this box has had a version of the model with a manifest, so it accepts no version without one;
//! - `folder/name.big.small.json`: with `OFFLINE_HOURS`, the small part as the Resource API encrypted it, and its age;
//! - `folder/name.big.part`, `….part.source.json`, `….part.json`: an unfinished download, its `Record`, and the bitmap of the
//!   chunks that it has;
//! - `.clock.json`: with `OFFLINE_HOURS`, the clock that measures those ages;
//! - `.spool/`: uploads that are being received. No folder can have this name.

mod catalog;
mod chunk_stream;
mod clock;
mod download;
mod durable;
mod entry;
mod files;
mod last_use;
mod offline_parts;
mod old_upload;
mod rate;
mod reader;
mod record;
mod remove;
mod reservation;
mod room;
mod spool;
mod verify;
mod version;

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use self::catalog::Catalog;
use self::files::Files;
use self::old_upload::OldObject;
use self::rate::DownloadRate;
use self::record::{PartRecord, Record};
use self::reservation::Reservation;
use self::room::{NoRoom, Room};
use self::version::{Known, Versions};
use crate::keyed_lock::KeyedLock;
use crate::manifest::{Manifest, ManifestKeys, Subject};
use crate::metrics;
use crate::names::ModelName;
use crate::security::SmallHash;
use crate::storage::{allocate, create_dir, create_parent, open_private};
use crate::threads::lock;

pub use self::catalog::{CacheSummary, CachedModel};
pub use self::entry::Entry;
pub use self::offline_parts::{OfflineError, OfflineParts};
pub use self::remove::RemoveError;
pub use self::room::CacheLimits;
pub use self::spool::Spool;
pub use self::verify::{Verified, VerifyError};
pub use self::version::{Evidence, Remote, Version};

/// The name of the directory for uploads that are being received.
const SPOOL_DIR: &str = ".spool";

pub struct ModelCache {
    root: PathBuf,
    keys: Arc<ManifestKeys>,
    /// The versions of each model that loads are reading. The lock is held while files are opened, so that no two versions get
    /// the same part file.
    versions: Arc<KeyedLock<ModelName, Versions>>,
    catalog: Arc<Catalog>,
    room: Arc<Room>,
    rate: Arc<DownloadRate>,
    /// The root directory, locked for as long as this process lives.
    _lock: Option<File>,
}

impl ModelCache {
    /// The cache under `root`. Removes what an earlier process left unfinished, except for downloads that can be resumed.
    ///
    /// A root that cannot be created is a warning, not an error: models are then loaded without the cache. The error is a
    /// sentence about another process that uses the same root.
    pub fn open(root: &Path, keys: Arc<ManifestKeys>, limits: CacheLimits<'_>) -> Result<Self, String> {
        let unusable = |error: &io::Error| {
            log::warn!("the model cache at {} cannot be used, models are loaded without it: {error}", root.display());
        };
        let lock = create_dir(root).and_then(|()| File::open(root));
        let lock = lock.inspect_err(|error| unusable(error)).ok();
        if let Some(Err(TryLockError::WouldBlock)) = lock.as_ref().map(File::try_lock) {
            return Err(format!(
                "MODEL_CACHE_DIR names {}, which another loader is using; stop that one, or name another directory",
                root.display()
            ));
        }
        let has_root = lock.is_some();
        let (versions, catalog) = (Arc::default(), Arc::new(Catalog::new(limits.keep)));
        let room = Arc::new(Room::new(root, &limits, Arc::clone(&versions), Arc::clone(&catalog)));
        let rate = Arc::new(DownloadRate::new(limits.download_rate));
        let cache = Self { root: root.to_owned(), keys, versions, catalog, room, rate, _lock: lock };
        if has_root {
            cache.remove_spooled();
            if let Err(error) = cache.catalog.take_stock(root) {
                unusable(&error);
            }
            cache.room.trim();
        }
        Ok(cache)
    }

    pub fn entry(&self, model: &ModelName) -> Entry {
        Entry::new(&self.root, model, Arc::clone(&self.catalog))
    }

    /// The version of `subject`, if any of its chunks are cached together with what proves them.
    pub fn find(&self, entry: &Entry, subject: Subject<'_>, remote: &Arc<dyn Remote>) -> Option<Arc<Version>> {
        let found = self.find_any(entry, subject, remote);
        if found.is_none() && !entry.big.exists() {
            // Somebody may have removed it by hand.
            self.catalog.remove(&entry.big);
        }
        match &found {
            Some(version) if version.is_complete() => metrics::CACHE_HITS.add(),
            _ => metrics::CACHE_MISSES.add(),
        }
        found
    }

    fn find_any(&self, entry: &Entry, subject: Subject<'_>, remote: &Arc<dyn Remote>) -> Option<Arc<Version>> {
        let siblings = self.versions.of(entry.model.clone());
        let mut versions = lock(&siblings);
        if let Some(version) = running(&mut versions, subject.small) {
            drop(versions);
            version.set_remote(Arc::clone(remote));
            // A finished download gets its name and record in a moment.
            version.wait_until_named();
            return Some(version);
        }
        let is_requested = |record: &Record| record.small_sha256 == subject.small;
        let part_is_used = uses_part(&versions);
        let mut open = |record, manifest, files| {
            let known = self.known(entry, &siblings, record, manifest);
            let version = Arc::new(Version::new(known, files, Arc::clone(remote)));
            versions.push(Arc::downgrade(&version));
            version
        };
        // The part file first: after a power cut it may be whole, and newer than the big part.
        if !part_is_used
            && let Some(record) = Record::read(&entry.part_source()).filter(is_requested)
            && let Some(part) = PartRecord::read(&entry.part_record())
            && part.small_sha256 == subject.small
            && let Some(manifest) = self.manifest_of_part(entry, &record, subject)
            && let Ok(file) = open_existing(&entry.part())
            && let Ok(reservation) = self.reserve(entry, &record, manifest.as_ref(), false)
        {
            let version = open(record, manifest, Files::part(file, reservation));
            durable::resume(&version, &part);
            return Some(version);
        }
        let record = Record::read(&entry.record()).filter(is_requested)?;
        let manifest = self.manifest_of(entry, &record, subject)?;
        let file = open_existing(&entry.big).ok()?;
        Some(open(record, Some(manifest), Files::big(file)))
    }

    /// A version of `subject` of which nothing is cached yet. Its chunks are cached as they are read.
    pub fn create(
        &self,
        entry: &Entry,
        subject: Subject<'_>,
        evidence: Evidence,
        remote: Arc<dyn Remote>,
    ) -> Arc<Version> {
        let siblings = self.versions.of(entry.model.clone());
        let mut versions = lock(&siblings);
        if let Some(version) = running(&mut versions, subject.small).filter(|version| evidence.is_of(version)) {
            version.set_remote(remote);
            return version;
        }
        let small_sha256 = subject.small;
        let (record, manifest) = match evidence {
            Evidence::Manifest(manifest, text) => {
                entry.remember_proven();
                (Record { small_sha256, manifest: Some(text), old: None }, Some(manifest))
            }
            Evidence::Old(object, plain_length) => {
                let old = OldObject::new(&object, plain_length);
                (Record { small_sha256, manifest: None, old: Some(old) }, None)
            }
        };
        let files = self.new_files(entry, &record, manifest.as_ref(), &versions);
        let known = self.known(entry, &siblings, record, manifest);
        let version = Arc::new(Version::new(known, files, remote));
        versions.push(Arc::downgrade(&version));
        version
    }

    fn known(
        &self,
        entry: &Entry,
        siblings: &Arc<Mutex<Versions>>,
        record: Record,
        manifest: Option<Manifest>,
    ) -> Known {
        let (keys, rate, siblings) = (Arc::clone(&self.keys), Arc::clone(&self.rate), Arc::clone(siblings));
        Known { entry: entry.clone(), record, manifest, keys, rate, siblings }
    }

    /// The manifest in a record, if it is accepted.
    fn manifest_of(&self, entry: &Entry, record: &Record, subject: Subject<'_>) -> Option<Manifest> {
        let text = record.manifest.as_deref()?;
        let is_old = record.old.is_some();
        let manifest = if is_old { self.keys.verify_own(text, subject) } else { self.keys.verify(text, subject) };
        manifest.inspect_err(|error| log::warn!("the cached manifest of {} {error}", entry.big.display())).ok()
    }

    /// The manifest of an unfinished download. An old upload has none yet, but its object must be recognizable.
    fn manifest_of_part(&self, entry: &Entry, record: &Record, subject: Subject<'_>) -> Option<Option<Manifest>> {
        match &record.old {
            Some(old) => old.is_identified().then_some(None),
            None => self.manifest_of(entry, record, subject).map(Some),
        }
    }

    pub fn models(&self) -> Vec<CachedModel> {
        self.catalog.models(usize::MAX)
    }

    pub fn summary(&self) -> CacheSummary {
        self.catalog.summary()
    }

    /// A file for an upload of which at least `expected` bytes come.
    pub fn spool(&self, expected: u64) -> io::Result<Spool> {
        Spool::create(&self.root.join(SPOOL_DIR), Arc::clone(&self.room), expected)
    }

    /// Makes a committed upload the cached big part. After an error the cache has the old file or none.
    pub fn adopt(&self, entry: &Entry, mut spool: Spool, small: SmallHash, manifest: String) -> io::Result<()> {
        create_parent(&entry.big)?;
        entry.remember_proven();
        let record = Record { small_sha256: small, manifest: Some(manifest), old: None };
        let length = spool.file().metadata()?.len();
        spool.reserve(record.download_size(length) - length)?;
        let plain_length = record.plain_length();
        // The record goes first, as for a download.
        record.write(&entry.record())?;
        spool.move_to(&entry.big)?;
        entry.touch();
        entry.is_cached(length, plain_length);
        Ok(())
    }

    /// Writes what is only in memory, before the process ends.
    pub fn stop(&self) {
        self.remove_spooled();
        self.catalog.last_uses.write_all(Duration::ZERO);
    }

    /// The limit of all downloads together.
    pub fn rate(&self) -> &DownloadRate {
        &self.rate
    }

    /// The file for the chunks of a new version.
    fn new_files(
        &self,
        entry: &Entry,
        record: &Record,
        manifest: Option<&Manifest>,
        versions: &[Weak<Version>],
    ) -> Files {
        // A file whose record was lost, or was written by an older program, may still be the right one: each chunk is checked.
        if let Some(manifest) = manifest
            && Record::read(&entry.record()).is_none()
            && let Ok(file) = open_existing(&entry.big)
            && file.metadata().is_ok_and(|metadata| metadata.len() == manifest.chunks.length)
            && record.write(&entry.record()).is_ok()
        {
            entry.is_cached(manifest.chunks.length, Some(manifest.plain_length));
            return Files::big(file);
        }
        // Another version is being downloaded into the same file. If nobody reads it now, it gives way.
        for version in
            versions.iter().filter_map(Weak::upgrade).filter(|version| version.uses_part() && version.is_idle())
        {
            version.leave_cache();
        }
        if uses_part(versions) {
            return Files::none();
        }
        entry.discard_part();
        let is_read = versions.iter().any(|version| version.strong_count() > 0);
        let reservation = match self.reserve(entry, record, manifest, is_read) {
            Ok(reservation) => reservation,
            Err(reason) => {
                metrics::UNCACHED_LOADS.add();
                log::warn!("{} is loaded without the cache: {reason}", entry.model);
                return Files::none();
            }
        };
        let create = || {
            create_parent(&entry.big)?;
            let file = open_private(&entry.part(), true)?;
            // From now on the file counts with its full length, also after a restart.
            allocate(&file, big_length(record, manifest))?;
            Ok::<_, io::Error>(file)
        };
        match create() {
            Ok(file) => Files::part(file, reservation),
            Err(error) => {
                log::warn!("{} is loaded without the cache: {error}", entry.big.display());
                entry.discard_part();
                Files::none()
            }
        }
    }

    fn reserve(
        &self,
        entry: &Entry,
        record: &Record,
        manifest: Option<&Manifest>,
        is_read: bool,
    ) -> Result<Reservation, NoRoom> {
        let replaces = Some(entry).filter(|entry| !is_read && !self.catalog.is_kept(&entry.model));
        self.room.reserve(&entry.part(), record.download_size(big_length(record, manifest)), replaces)
    }

    /// Removes the spool files of unfinished uploads.
    fn remove_spooled(&self) {
        let spool = self.root.join(SPOOL_DIR);
        if let Err(error) = fs::remove_dir_all(&spool)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("{} cannot be removed: {error}", spool.display());
        }
    }
}

/// The version of this small part that somebody is reading.
fn running(versions: &mut Versions, small: SmallHash) -> Option<Arc<Version>> {
    versions.retain(|version| version.strong_count() > 0);
    versions.iter().filter_map(Weak::upgrade).find(|version| version.is_of(small) && version.is_there())
}

fn uses_part(versions: &[Weak<Version>]) -> bool {
    versions.iter().filter_map(Weak::upgrade).any(|version| version.uses_part())
}

fn big_length(record: &Record, manifest: Option<&Manifest>) -> u64 {
    let old = || record.old.as_ref().map_or(0, |old| old.length);
    manifest.map_or_else(old, |manifest| manifest.chunks.length)
}

/// Opens a cached file for writing too, so that it can be repaired. On a read-only file system it can still be read.
fn open_existing(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(path).or_else(|_| File::open(path))
}
