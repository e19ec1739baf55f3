//! The model cache: big parts on local storage, chunk by chunk as their manifests say, replaced atomically, and downloaded once
//! however many loads ask for them.
//!
//! Under the cache's root, for a model `name` in `folder`:
//! - `folder/name.big`: the big part, as the CDN has it;
//! - `folder/name.big.json`: its `Record`: to which small part it belongs, and its manifest;
//! - `folder/name.big.proven`: this model had a proven version on this box, so no other kind is ever taken again;
//! - `folder/name.big.small.json`: with `OFFLINE_HOURS`, the small part as the Resource API encrypted it, and since when;
//! - `folder/name.big.part`, `….part.source.json`, `….part.json`: a download that has not ended, its `Record`, and its
//!   bitmap: the chunks that are there;
//! - `.clock.json`: with `OFFLINE_HOURS`, the box clock that those times are of;
//! - `.spool/`: uploads that are being received. No folder can have this name.

mod catalog;
mod clock;
mod download;
mod kept;
mod reader;
mod record;
mod spool;
mod version;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use self::catalog::Catalog;
use self::record::{OldObject, PartRecord, Record};
use self::version::{Files, Known, Place};
use crate::manifest::{Manifest, ManifestKeys, Subject};
use crate::metrics;
use crate::storage::{create_dir, create_parent, open_private};

pub use self::catalog::CacheSummary;
pub use self::kept::{KeptParts, Refusal};
pub use self::spool::Spool;
pub use self::version::{Evidence, Remote, Version};

/// The name of the directory for uploads that are being received.
const SPOOL_DIR: &str = ".spool";

/// What follows the name of a big part in that of its kept small part.
const KEPT_SUFFIX: &str = ".small.json";

/// The cache at one root directory.
pub struct ModelCache {
    root: PathBuf,
    keys: Arc<ManifestKeys>,
    slots: Mutex<HashMap<PathBuf, Slot>>,
    catalog: Arc<Catalog>,
    /// The root directory, locked for as long as this process lives.
    _lock: Option<File>,
}

/// The versions of one model that loads are reading. Its lock is held while files are opened, so that no two versions get the
/// same part file; loads of other models do not wait for it.
type Slot = Arc<Mutex<Vec<Weak<Version>>>>;

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

    fn part_source(&self) -> PathBuf {
        self.with_suffix(".part.source.json")
    }

    fn part_record(&self) -> PathBuf {
        self.with_suffix(".part.json")
    }

    fn proven(&self) -> PathBuf {
        self.with_suffix(".proven")
    }

    /// The small part as the Resource API encrypted it, if it is kept.
    fn kept(&self) -> PathBuf {
        self.with_suffix(KEPT_SUFFIX)
    }

    /// The big part is there now, and whole.
    fn is_cached(&self, bytes: u64) {
        self.catalog.insert(&self.big, bytes);
    }

    /// Folder and file name.
    fn names(&self) -> (Cow<'_, str>, Cow<'_, str>) {
        let folder = self.big.parent().and_then(Path::file_name).unwrap_or_default();
        (folder.to_string_lossy(), self.big.file_stem().unwrap_or_default().to_string_lossy())
    }

    /// Whether this box has had a version of the model that its uploader's manifest proved.
    pub fn was_proven(&self) -> bool {
        let is_proven = |record: Record| record.manifest.is_some() && record.old.is_none();
        self.proven().exists() || Record::read(&self.record()).is_some_and(is_proven)
    }

    /// From now on only proven versions are taken.
    fn remember_proven(&self) {
        let path = self.proven();
        if path.exists() {
            return;
        }
        // The next record of the model makes the directory durable.
        if let Err(error) = create_parent(&path).and_then(|()| open_private(&path, false)) {
            log::warn!("that this model has a manifest cannot be remembered, {}: {error}", path.display());
        }
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
    ///
    /// # Errors
    /// A sentence, if another process has the cache: neither would know what the other does with its files.
    pub fn open(root: &Path, keys: Arc<ManifestKeys>) -> Result<Self, String> {
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
        let cache = Self { root: root.to_owned(), keys, slots: Mutex::default(), catalog: Arc::default(), _lock: lock };
        if has_root && let Err(error) = cache.take_stock() {
            unusable(&error);
        }
        Ok(cache)
    }

    /// The files of the model `file_name` in `folder`, which both must have passed
    /// [`names`](crate::names): they become parts of a path.
    pub fn entry(&self, folder: &str, file_name: &str) -> Entry {
        let big = self.root.join(folder).join(format!("{file_name}.big"));
        Entry { big, catalog: Arc::clone(&self.catalog) }
    }

    /// The version of `subject`, if any of it is here with a manifest to compare it with.
    pub fn find(&self, entry: &Entry, subject: Subject<'_>, remote: &Remote) -> Option<Arc<Version>> {
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

    fn find_any(&self, entry: &Entry, subject: Subject<'_>, remote: &Remote) -> Option<Arc<Version>> {
        let slot = self.slot(entry);
        let mut versions = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(version) = running(&mut versions, subject.small_sha256) {
            drop(versions);
            version.set_remote(remote.clone());
            // A file that is whole has its name and record in a moment.
            version.wait_until_named();
            return Some(version);
        }
        let keys = &self.keys;
        let manifest_of = |record: &Record| {
            let text = record.manifest.as_deref()?;
            let manifest =
                if record.old.is_some() { keys.verify_own(text, subject) } else { keys.verify(text, subject) };
            manifest.inspect_err(|error| log::warn!("the cached manifest of {} {error}", entry.big.display())).ok()
        };
        let is_asked_for = |record: &Record| record.small_sha256 == subject.small_sha256;
        let version = |record, manifest, files| {
            let known = Known { record, manifest, small_length: subject.small_length };
            Arc::new(Version::new(entry.clone(), known, files, remote.clone(), Arc::clone(keys)))
        };

        let is_free = !versions.iter().any(|version| version.strong_count() > 0);
        // The part first: were it not for a power cut, it would have the name already.
        if is_free
            && let Some(record) = Record::read(&entry.part_source()).filter(is_asked_for)
            && let Some(part) = PartRecord::read(&entry.part_record())
            && part.small_sha256 == subject.small_sha256
            && let Some(manifest) = part_manifest(&record, manifest_of)
            && let Ok(file) = open_private(&entry.part(), false)
        {
            let resumed = version(record, manifest, Files { file: Some(file), place: Place::Part, stored: None });
            resumed.resume(&part);
            versions.push(Arc::downgrade(&resumed));
            return Some(resumed);
        }
        let record = Record::read(&entry.record()).filter(is_asked_for)?;
        let manifest = manifest_of(&record)?;
        // On a file system that has become read-only, what is there is as good as ever.
        let file = open_existing(&entry.big).ok()?;
        let stored = Some(vec![true; manifest.chunks.hashes.len()]);
        let cached = version(record, Some(manifest), Files { file: Some(file), place: Place::Big, stored });
        versions.push(Arc::downgrade(&cached));
        Some(cached)
    }

    /// The version of `subject` that nothing is here of yet. Its chunks come into the cache as they are read.
    pub fn create(&self, entry: &Entry, subject: Subject<'_>, evidence: Evidence, remote: Remote) -> Arc<Version> {
        let slot = self.slot(entry);
        let mut versions = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(version) = running(&mut versions, subject.small_sha256).filter(|version| evidence.is_of(version)) {
            version.set_remote(remote);
            return version;
        }
        let small_sha256 = subject.small_sha256.to_owned();
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
        let files = self.files(entry, &record, manifest.as_ref(), &versions);
        let known = Known { record, manifest, small_length: subject.small_length };
        let version = Arc::new(Version::new(entry.clone(), known, files, remote, Arc::clone(&self.keys)));
        versions.push(Arc::downgrade(&version));
        version
    }

    /// Where the chunks of a new version go.
    fn files(&self, entry: &Entry, record: &Record, manifest: Option<&Manifest>, versions: &[Weak<Version>]) -> Files {
        // A file whose record was lost, or is an older program's, may still be the right one: each chunk will tell.
        if let Some(manifest) = manifest
            && Record::read(&entry.record()).is_none()
            && let Ok(file) = open_existing(&entry.big)
            && file.metadata().is_ok_and(|metadata| metadata.len() == manifest.chunks.length)
            && record.write(&entry.record()).is_ok()
        {
            entry.is_cached(manifest.chunks.length);
            let stored = Some(vec![true; manifest.chunks.hashes.len()]);
            return Files { file: Some(file), place: Place::Big, stored };
        }
        // Another version is on its way into the same file.
        if versions.iter().filter_map(Weak::upgrade).any(|version| version.uses_part()) {
            return Files::none();
        }
        entry.discard_part();
        match create_parent(&entry.big).and_then(|()| open_private(&entry.part(), true)) {
            Ok(file) => Files { file: Some(file), place: Place::Part, stored: None },
            Err(error) => {
                log::warn!("{} is loaded without the cache: {error}", entry.big.display());
                Files::none()
            }
        }
    }

    fn slot(&self, entry: &Entry) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(entry.big.clone()).or_default())
    }

    /// What is cached, without a look at the disk.
    pub fn summary(&self) -> CacheSummary {
        self.catalog.summary()
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
    pub fn adopt(&self, entry: &Entry, spool: Spool, small_sha256: &str, manifest: String) -> io::Result<()> {
        create_parent(&entry.big)?;
        entry.remember_proven();
        let record = Record { small_sha256: small_sha256.to_owned(), manifest: Some(manifest), old: None };
        let length = spool.file().metadata()?.len();
        // In this order, as for a download.
        record.write(&entry.record())?;
        spool.move_to(&entry.big)?;
        entry.is_cached(length);
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

    /// Removes what is unfinished, and notes what is there. What cannot be read is no reason not to use the rest.
    fn take_stock(&self) -> io::Result<()> {
        self.remove_spooled();
        for folder in fs::read_dir(&self.root)?.flatten() {
            let folder = folder.path();
            let looked = if folder.is_dir() { self.take_stock_of(&folder) } else { remove_temporary(&folder) };
            if let Err(error) = looked {
                log::warn!("{} in the model cache is left alone: {error}", folder.display());
            }
        }
        Ok(())
    }

    fn take_stock_of(&self, folder: &Path) -> io::Result<()> {
        for file in fs::read_dir(folder)?.flatten() {
            let file = file.path();
            let name = file.to_string_lossy();
            let is_there = |suffix: &str| Path::new(&format!("{name}{suffix}")).exists();
            let orphan = match name.rsplit_once(".big") {
                Some((_, ".json.tmp" | ".small.json.tmp" | ".part.json.tmp" | ".part.source.json.tmp")) => true,
                // One of the three without the others is worth nothing.
                Some((big, ".part" | ".part.json" | ".part.source.json")) => ["", ".json", ".source.json"]
                    .iter()
                    .any(|suffix| !Path::new(&format!("{big}.big.part{suffix}")).exists()),
                _ => false,
            };
            let looked = if orphan {
                fs::remove_file(&file)
            } else if name.ends_with(".big") && is_there(".json") {
                fs::metadata(&file).map(|metadata| self.catalog.insert(&file, metadata.len()))
            } else {
                Ok(())
            };
            if let Err(error) = looked {
                log::warn!("{name} in the model cache is left alone: {error}");
            }
        }
        Ok(())
    }
}

/// The record of an unlock that was being written.
fn remove_temporary(file: &Path) -> io::Result<()> {
    if file.extension().is_some_and(|extension| extension == "tmp") { fs::remove_file(file) } else { Ok(()) }
}

/// The version of this small part that somebody is reading.
fn running(versions: &mut Vec<Weak<Version>>, small_sha256: &str) -> Option<Arc<Version>> {
    versions.retain(|version| version.strong_count() > 0);
    versions.iter().filter_map(Weak::upgrade).find(|version| version.is_of(small_sha256) && version.is_there())
}

/// The manifest of a download: none yet for an old upload, but then its object must be known again.
fn part_manifest(record: &Record, manifest_of: impl Fn(&Record) -> Option<Manifest>) -> Option<Option<Manifest>> {
    match &record.old {
        Some(old) => old.is_identified().then_some(None),
        None => manifest_of(record).map(Some),
    }
}

fn open_existing(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(path).or_else(|_| File::open(path))
}
