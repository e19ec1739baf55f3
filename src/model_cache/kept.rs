//! Small parts that are kept for the time without the Resource API, as it encrypted them: only the same user with the same
//! password on the same hardware can open one.
//!
//! They lie beside their big parts for at most `OFFLINE_HOURS` of the [`MonotonicClock`], whose record lies in the cache's root.
//! Without that record nothing kept is worth anything.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use jwt_simple::reexports::ct_codecs::{Base64, Decoder, Encoder};
use serde::{Deserialize, Serialize};

use super::clock::{MonotonicClock, Reading};
use super::entry::{Entry, SMALL_SUFFIX, record_of};
use super::record::Record;
use crate::security::SmallHash;
use crate::storage::{read_document, write_document};
use crate::threads::lock;

/// The clock's record in the cache's root. No folder can have this name.
const CLOCK_RECORD: &str = ".clock.json";

/// The largest small part that is kept; real ones have 3 KiB.
const MAX_KEPT: usize = 16 * 1024;

/// The clock's record is written when it went on by so many seconds, to spare the flash.
const CLOCK_STEP: u64 = 10;

/// Why nothing that is kept can be used.
#[derive(Debug)]
pub enum Refusal {
    /// `OFFLINE_HOURS` is 0.
    Off,
    /// Nothing is kept, or not any more.
    NothingKept,
    /// What is kept does not open, or its big part is not in the cache.
    DoesNotOpen,
    /// The wall clock is before a time that it has shown already.
    ClockSetBack,
    /// The cached version has no manifest, and this is why it needs one.
    NoManifest(&'static str),
    /// The clock's record cannot be kept up to date, so no age can be trusted.
    Storage(io::Error),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("OFFLINE_HOURS is 0"),
            Self::NothingKept => f.write_str("nothing is kept for it, or OFFLINE_HOURS have passed"),
            Self::DoesNotOpen => f.write_str(
                "what is kept does not open with this email, password and hardware, or its model is not in the cache",
            ),
            Self::ClockSetBack => f.write_str("the clock of this box was set back; set it right"),
            Self::NoManifest(reason) => write!(f, "the cached version has no manifest, and {reason}"),
            Self::Storage(error) => write!(f, "the time cannot be recorded in MODEL_CACHE_DIR: {error}"),
        }
    }
}

/// A kept small part.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// When the Resource API gave it out, in the box clock's seconds.
    fetched: u64,
    /// The bytes as they came, in base64.
    encrypted: String,
}

impl Kept {
    fn bytes(&self) -> Option<Vec<u8>> {
        Base64::decode_to_vec(&self.encrypted, None).ok()
    }
}

/// The kept small parts under a cache's root.
pub struct KeptParts {
    root: PathBuf,
    /// In seconds; 0: nothing is kept.
    limit: u64,
    clock: Mutex<()>,
}

impl KeptParts {
    /// Those under `root`, each for at most `limit`. Expired ones are removed, and all where the limit is 0.
    pub fn open(root: &Path, limit: Duration) -> Self {
        let kept = Self { root: root.to_owned(), limit: limit.as_secs(), clock: Mutex::default() };
        if kept.is_on() {
            // That nothing is kept yet is no news.
            let _ = kept.remove_expired();
        } else {
            kept.remove_all();
            let _ = fs::remove_file(kept.clock_record());
        }
        kept
    }

    /// Whether anything is kept at all.
    pub fn is_on(&self) -> bool {
        self.limit > 0
    }

    /// Keeps what the Resource API has just given out. `is_same` tells whether older bytes are another encryption of the same;
    /// a young one of those stays, to spare the flash.
    pub fn keep(&self, entry: &Entry, encrypted: &[u8], is_same: impl Fn(&[u8]) -> bool) {
        if !self.is_on() || encrypted.len() > MAX_KEPT {
            return;
        }
        let path = entry.small();
        let kept = self.time_of_contact().and_then(|now| {
            let is_young = |kept: &Kept| now.checked_sub(kept.fetched).is_some_and(|age| age < self.limit / 100);
            let old = read_document::<Kept>(&path).filter(is_young).and_then(|kept| kept.bytes());
            if old.is_some_and(|old| is_same(&old)) {
                return Ok(());
            }
            let encrypted = Base64::encode_to_string(encrypted).map_err(io::Error::other)?;
            write_document(&Kept { fetched: now, encrypted }, &path)
        });
        if let Err(error) = kept {
            log::warn!("{} is not kept for the time without the Resource API: {error}", path.display());
        }
    }

    /// The small part of a model as it was encrypted.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn find(&self, entry: &Entry) -> Result<Vec<u8>, Refusal> {
        self.remove_expired()?;
        read_document::<Kept>(&entry.small()).and_then(|kept| kept.bytes()).ok_or(Refusal::NothingKept)
    }

    /// Whether anything in force is opened by `hash`, which decrypts a small part and hashes it: to the hash that the
    /// record of the model's big part holds.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn prove(&self, hash: impl Fn(&[u8]) -> Option<SmallHash>) -> Result<(), Refusal> {
        self.remove_expired()?;
        let paths = self.paths();
        if paths.is_empty() {
            return Err(Refusal::NothingKept);
        }
        if paths.iter().any(|path| opens(path, &hash)) { Ok(()) } else { Err(Refusal::DoesNotOpen) }
    }

    /// Removes what `hash` opens: the Resource API no longer knows whose it is.
    pub fn revoke(&self, hash: impl Fn(&[u8]) -> Option<SmallHash>) {
        for path in self.paths().iter().filter(|path| opens(path, &hash)) {
            remove(path);
        }
    }

    /// Removes the small part of a model.
    pub fn forget(&self, entry: &Entry) {
        remove(&entry.small());
    }

    /// Removes what was kept for longer than the limit.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn remove_expired(&self) -> Result<(), Refusal> {
        let now = self.time_alone()?;
        for path in self.paths() {
            let in_force = |kept: &Kept| now.checked_sub(kept.fetched).is_some_and(|age| age < self.limit);
            if !read_document::<Kept>(&path).is_some_and(|kept| in_force(&kept)) {
                remove(&path);
            }
        }
        Ok(())
    }

    /// The time now that the Resource API has answered.
    fn time_of_contact(&self) -> io::Result<u64> {
        let _turn = lock(&self.clock);
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

    /// The time while there is nobody to ask.
    fn time_alone(&self) -> Result<u64, Refusal> {
        if !self.is_on() {
            return Err(Refusal::Off);
        }
        let _turn = lock(&self.clock);
        let reading = Reading::now();
        let Some(before) = read_document::<MonotonicClock>(&self.clock_record()) else {
            self.remove_all();
            return Err(Refusal::NothingKept);
        };
        let (mut clock, set_back) = (before.clone(), before.was_set_back(&reading));
        clock.advance(reading);
        let now = self.record(Some(&before), &clock).map_err(Refusal::Storage)?;
        if set_back { Err(Refusal::ClockSetBack) } else { Ok(now) }
    }

    fn record(&self, before: Option<&MonotonicClock>, clock: &MonotonicClock) -> io::Result<u64> {
        let is_news = before.is_none_or(|before| !clock.goes_on_from(before, CLOCK_STEP));
        if is_news {
            write_document(clock, &self.clock_record())?;
        }
        Ok(clock.now())
    }

    fn clock_record(&self) -> PathBuf {
        self.root.join(CLOCK_RECORD)
    }

    /// All that is kept.
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

/// Whether `hash` gives the hash of the very small part that the model's cached big part belongs to.
fn opens(path: &Path, hash: &impl Fn(&[u8]) -> Option<SmallHash>) -> bool {
    let of_big = |path: &Path| {
        let big = path.to_str()?.strip_suffix(SMALL_SUFFIX)?;
        Record::read(&record_of(Path::new(big)))
    };
    let bytes = read_document::<Kept>(path).and_then(|kept| kept.bytes());
    let found = bytes.and_then(|bytes| hash(&bytes));
    found.is_some_and(|found| of_big(path).is_some_and(|record| record.small_sha256 == found))
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Ok(()) => log::info!("{} is kept no longer", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => log::warn!("{} cannot be removed: {error}", path.display()),
    }
}
