//! Small parts that are stored for the time without the Resource API, as it encrypted them: only the same user with the same
//! password on the same hardware can open one.
//!
//! They are stored next to their big parts for at most `OFFLINE_HOURS`, by a [`MonotonicClock`] whose record is in the cache's
//! root. Without that record all of them count as expired.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use jwt_simple::reexports::ct_codecs::{Base64, Decoder, Encoder};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::clock::{MonotonicClock, Reading};
use super::entry::{Entry, SMALL_SUFFIX};
use super::record::{Record, record_of};
use crate::security::{AesKey, SmallHash, decrypt_whole};
use crate::storage::{read_document, write_document};
use crate::threads::{self, lock};

/// The clock's record in the cache's root. No folder can have this name.
const CLOCK_RECORD: &str = ".clock.json";

/// The largest small part that is stored; real ones have 3 KiB.
const MAX_SMALL_PART: usize = 16 * 1024;

/// Wrong passwords count, too.
const MAX_REFUSED: usize = 64;

/// The clock's record is written at most once in this many seconds, to spare the flash.
const CLOCK_STEP: u64 = 10;

/// How often expired small parts are removed.
const REMOVE_EXPIRED_EVERY: Duration = Duration::from_secs(600);

/// Why a box cannot work without the Resource API.
#[derive(Debug)]
pub enum OfflineError {
    Off,
    /// No small part is stored, or it has expired.
    NothingStored,
    /// No stored small part opens, or its big part is not in the cache.
    DoesNotOpen,
    /// The wall clock is behind a time that it has shown before.
    ClockSetBack,
    /// The cached version has no manifest, and this is why it needs one.
    NoManifest(&'static str),
    /// The clock's record cannot be written, so no age can be trusted.
    Storage(io::Error),
}

impl fmt::Display for OfflineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("OFFLINE_HOURS is 0"),
            Self::NothingStored => f.write_str("nothing is stored for it, or OFFLINE_HOURS have passed"),
            Self::DoesNotOpen => f.write_str(
                "what is stored does not open with this email, password and hardware, or its model is not in the cache",
            ),
            Self::ClockSetBack => f.write_str("the clock of this box was set back; set it right"),
            Self::NoManifest(reason) => write!(f, "the cached version has no manifest, and {reason}"),
            Self::Storage(error) => write!(f, "the time cannot be recorded in MODEL_CACHE_DIR: {error}"),
        }
    }
}

/// The file of a small part.
#[derive(Serialize, Deserialize)]
struct StoredPart {
    /// When it was fetched, in seconds of the clock.
    fetched: u64,
    /// The bytes in base64.
    encrypted: String,
}

impl StoredPart {
    fn read(path: &Path) -> Option<Self> {
        read_document(path)
    }

    fn is_younger(&self, now: u64, limit: u64) -> bool {
        now.checked_sub(self.fetched).is_some_and(|age| age < limit)
    }

    fn bytes(&self) -> Option<Vec<u8>> {
        Base64::decode_to_vec(&self.encrypted, None).ok()
    }
}

/// The stored small parts under a cache's root.
pub struct OfflineParts {
    root: PathBuf,
    /// In seconds; 0: nothing is stored.
    limit: u64,
    clock: Mutex<()>,
    /// The keys of the accounts that the Resource API has refused last. Held while a part is stored.
    refused: Mutex<Vec<AesKey>>,
}

impl OfflineParts {
    /// The parts under `root`. Removes the ones older than `limit`; if it is 0, all.
    pub fn open(root: &Path, limit: Duration) -> Self {
        let parts =
            Self { root: root.to_owned(), limit: limit.as_secs(), clock: Mutex::default(), refused: Mutex::default() };
        if parts.is_on() {
            // It fails if nothing was ever stored.
            let _ = parts.remove_expired();
        } else {
            parts.remove_all();
            let _ = fs::remove_file(parts.clock_record());
        }
        parts
    }

    /// Starts the thread that removes expired small parts, if any are stored.
    pub fn start_removing_expired(self: &Arc<Self>) {
        if !self.is_on() {
            return;
        }
        let parts = Arc::clone(self);
        let thread = threads::spawn("offline", move || {
            loop {
                thread::sleep(REMOVE_EXPIRED_EVERY);
                if let Err(error @ OfflineError::Storage(_)) = parts.remove_expired() {
                    log::warn!("{error}");
                }
            }
        });
        if let Err(error) = thread {
            log::warn!(
                "expired small parts are removed only when they are used next, since no thread can be started: {error}"
            );
        }
    }

    pub fn is_on(&self) -> bool {
        self.limit > 0
    }

    /// Stores a small part that was just fetched and that `key` opens. The load may have begun before the Resource API refused the
    /// account: then nothing is stored.
    pub fn store(&self, entry: &Entry, encrypted: &[u8], key: &AesKey) -> io::Result<()> {
        let refused = lock(&self.refused);
        if !self.is_on() || encrypted.len() > MAX_SMALL_PART || refused.contains(key) {
            return Ok(());
        }
        let path = entry.small();
        let now = self.time_online()?;
        let old = StoredPart::read(&path).filter(|old| old.is_younger(now, self.limit / 100));
        // Another encryption of the same part. If it is recent it stays, to spare the flash.
        if old.and_then(|old| small_hash(&old.bytes()?, key)).is_some_and(|old| small_hash(encrypted, key) == Some(old))
        {
            return Ok(());
        }
        let encrypted = Base64::encode_to_string(encrypted).map_err(io::Error::other)?;
        write_document(&StoredPart { fetched: now, encrypted }, &path)
    }

    /// The small part of a model, still encrypted.
    pub fn find(&self, entry: &Entry) -> Result<Vec<u8>, OfflineError> {
        self.remove_expired()?;
        StoredPart::read(&entry.small()).and_then(|part| part.bytes()).ok_or(OfflineError::NothingStored)
    }

    /// Proves credentials: with their key, a small part has to decrypt to the one in the record of a cached model.
    pub fn prove(&self, key: &AesKey) -> Result<(), OfflineError> {
        self.remove_expired()?;
        let paths = self.paths();
        if paths.is_empty() {
            return Err(OfflineError::NothingStored);
        }
        if paths.iter().any(|path| opens(path, key)) { Ok(()) } else { Err(OfflineError::DoesNotOpen) }
    }

    /// Removes the parts that `key` opens: the Resource API does not accept their credentials any more.
    pub fn revoke(&self, key: &AesKey) {
        let mut refused = lock(&self.refused);
        if !refused.contains(key) {
            let too_many = (refused.len() + 1).saturating_sub(MAX_REFUSED);
            refused.drain(..too_many);
            refused.push(key.clone());
        }
        for path in self.paths().iter().filter(|path| opens(path, key)) {
            remove(path);
        }
    }

    /// The Resource API accepts the credentials of `key`, perhaps again.
    pub fn accept(&self, key: &AesKey) {
        lock(&self.refused).retain(|refused| refused != key);
    }

    /// Removes the part of a model that the Resource API has refused.
    pub fn forget(&self, entry: &Entry) {
        remove(&entry.small());
    }

    pub fn remove_expired(&self) -> Result<(), OfflineError> {
        let now = self.time_offline()?;
        for path in self.paths() {
            if !StoredPart::read(&path).is_some_and(|part| part.is_younger(now, self.limit)) {
                remove(&path);
            }
        }
        Ok(())
    }

    /// The time when the Resource API has just answered: the wall clock is then taken for right.
    fn time_online(&self) -> io::Result<u64> {
        let _clock = lock(&self.clock);
        let reading = Reading::now();
        let before = read_document::<MonotonicClock>(&self.clock_record());
        let mut clock = before.clone().unwrap_or_else(|| {
            self.remove_all();
            MonotonicClock::start(reading.clone())
        });
        let wall = reading.wall;
        clock.advance(reading);
        clock.accept_wall(wall);
        self.record(before.as_ref(), &clock)
    }

    /// The time while the Resource API is away: a wall clock that was set back is refused.
    fn time_offline(&self) -> Result<u64, OfflineError> {
        if !self.is_on() {
            return Err(OfflineError::Off);
        }
        let _clock = lock(&self.clock);
        let reading = Reading::now();
        let Some(before) = read_document::<MonotonicClock>(&self.clock_record()) else {
            self.remove_all();
            return Err(OfflineError::NothingStored);
        };
        let (mut clock, set_back) = (before.clone(), before.was_set_back(&reading));
        clock.advance(reading);
        let now = self.record(Some(&before), &clock).map_err(OfflineError::Storage)?;
        if set_back { Err(OfflineError::ClockSetBack) } else { Ok(now) }
    }

    fn record(&self, before: Option<&MonotonicClock>, clock: &MonotonicClock) -> io::Result<u64> {
        if before.is_none_or(|before| !clock.goes_on_from(before, CLOCK_STEP)) {
            write_document(clock, &self.clock_record())?;
        }
        Ok(clock.now())
    }

    fn clock_record(&self) -> PathBuf {
        self.root.join(CLOCK_RECORD)
    }

    fn paths(&self) -> Vec<PathBuf> {
        let entries =
            |directory: &Path| fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
        let suffix = format!(".big{SMALL_SUFFIX}");
        entries(&self.root)
            .flat_map(|folder| entries(&folder).collect::<Vec<_>>())
            .filter(|path| path.to_string_lossy().ends_with(&suffix))
            .collect()
    }

    fn remove_all(&self) {
        self.paths().iter().for_each(|path| remove(path));
    }
}

/// Decrypts a small part with `key` and hashes it.
fn small_hash(encrypted: &[u8], key: &AesKey) -> Option<SmallHash> {
    decrypt_whole(encrypted, key).ok().map(|plain| SmallHash::of(&Zeroizing::new(plain)))
}

/// Whether `key` decrypts a stored part to the small part in the record of the cached model.
fn opens(path: &Path, key: &AesKey) -> bool {
    let of_big = |path: &Path| {
        let big = path.to_str()?.strip_suffix(SMALL_SUFFIX)?;
        Record::read(&record_of(Path::new(big)))
    };
    let bytes = StoredPart::read(path).and_then(|part| part.bytes());
    let found = bytes.and_then(|bytes| small_hash(&bytes, key));
    found.is_some_and(|found| of_big(path).is_some_and(|record| record.small_sha256 == found))
}

/// Removes a part so that a power cut does not bring it back.
fn remove(path: &Path) {
    let sync = || path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all());
    match fs::remove_file(path).and_then(|()| sync()) {
        Ok(()) => log::info!("{} was removed", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => log::warn!("cannot remove {}: {error}", path.display()),
    }
}
