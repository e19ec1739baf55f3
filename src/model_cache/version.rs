//! One version of a model: which of its chunks are on local storage, and how to get the others.
//!
//! All loads that run at the same time share it. A chunk counts as stored when it was proven on its way into the file. That is
//! only a hint, since storage decays: whoever reads a chunk back proves it again, and a damaged one is fetched again.

use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use super::entry::Entry;
use super::files::{Files, Place};
use super::old_upload::{OldObject, Prefix};
use super::rate::{DownloadRate, Share};
use super::record::Record;
use super::reservation::Reservation;
use crate::cdn_manager::BigObject;
use crate::manifest::{ChunkHash, Manifest, ManifestKeys, chunk_size};
use crate::metrics::{self, REPORT_EVERY, Stage, report_transfer};
use crate::page_buffer::PageBuffer;
use crate::security::SmallHash;
use crate::threads::lock;

/// Access to the CDN.
pub trait Remote: Send + Sync {
    /// Opens a range of an object. If that fails, the reader says why.
    fn open(&self, object: &BigObject, range: Range<u64>) -> Box<dyn Read + Send>;

    /// The number of connections over which an object should be read.
    fn connections(&self) -> usize;
}

/// What the chunks of a version are compared with.
pub enum Evidence {
    /// The uploader's manifest, with its text.
    Manifest(Manifest, String),
    /// Nothing yet: an old upload, as the CDN described it, and the length of its plaintext. This box makes a manifest while it
    /// downloads the object.
    Old(BigObject, u64),
}

impl Evidence {
    /// Whether `version` has the same.
    pub(super) fn is_of(&self, version: &Version) -> bool {
        match self {
            Self::Manifest(..) => !version.is_old(),
            Self::Old(object, _) => version.is_old() && !version.is_replaced_by(object),
        }
    }
}

/// The versions of one model that are being read.
pub(super) type Versions = Vec<Weak<Version>>;

/// See the module.
pub struct Version {
    pub(super) entry: Entry,
    pub(super) record: Record,
    object: BigObject,
    /// Length of the big part in bytes.
    pub length: u64,
    pub(super) chunk: u64,
    /// Length of the plaintext in bytes.
    pub plain_length: u64,
    pub(super) file: Option<Arc<File>>,
    remote: Mutex<Arc<dyn Remote>>,
    pub(super) keys: Arc<ManifestKeys>,
    pub(super) rate: Arc<DownloadRate>,
    pub(super) share: Share,
    /// The room that its part file may take.
    reservation: Mutex<Option<Reservation>>,
    state: Mutex<State>,
    changed: Condvar,
    /// For an old upload.
    pub(super) prefix: Mutex<Prefix>,
    /// Held while the records of the unfinished file are written, since all its downloads write the same files.
    pub(super) records: Mutex<()>,
    /// The log has a warning that chunks cannot be written.
    warned: AtomicBool,
    /// Keeps the lock on the model's versions alive.
    _siblings: Arc<Mutex<Versions>>,
}

pub(super) struct Known {
    pub(super) entry: Entry,
    pub(super) record: Record,
    /// None for an old upload that has not been downloaded to its end.
    pub(super) manifest: Option<Manifest>,
    pub(super) keys: Arc<ManifestKeys>,
    pub(super) rate: Arc<DownloadRate>,
    pub(super) siblings: Arc<Mutex<Versions>>,
}

/// A reader as downloads see it.
#[derive(Clone, Copy)]
pub(super) struct Demand {
    pub(super) number: u64,
    pub(super) connections: usize,
    is_of_client: bool,
}

pub(super) struct State {
    /// The hashes of all chunks; for an old upload, of the chunks downloaded so far.
    pub(super) hashes: Vec<ChunkHash>,
    pub(super) stored: Vec<bool>,
    /// The latest downloaded chunk, already proven, for readers that wait for it.
    pub(super) recent: Option<(usize, Arc<PageBuffer>)>,
    /// The chunks that each reader still wants, by the reader's number.
    pub(super) demands: Vec<(u64, Range<usize>)>,
    /// How many of these readers are clients.
    clients: usize,
    /// The chunks that each download still has to fetch, by the download's number.
    pub(super) claims: Vec<(u64, Range<usize>)>,
    next_number: u64,
    reported_at: Option<Instant>,
    pub(super) failure: Option<String>,
    pub(super) place: Place,
    /// All chunks are stored, and the file is being renamed.
    pub(super) finishing: bool,
}

impl State {
    pub(super) fn is_whole(&self) -> bool {
        self.stored.iter().all(|stored| *stored)
    }

    pub(super) fn is_claimed(&self, index: usize) -> bool {
        self.claims.iter().any(|(_, claim)| claim.contains(&index))
    }

    pub(super) fn is_wanted(&self, index: usize) -> bool {
        self.demands.iter().any(|(_, demand)| demand.contains(&index))
    }

    /// A number that no other reader or download has.
    pub(super) fn new_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }
}

impl Version {
    pub(super) fn new(known: Known, files: Files, remote: Arc<dyn Remote>) -> Self {
        let Known { entry, record, manifest, keys, rate, siblings } = known;
        let (length, plain_length) = match (&manifest, &record.old) {
            (Some(manifest), _) => (manifest.chunks.length, manifest.plain_length),
            (None, Some(old)) => (old.length, old.plain_length),
            (None, None) => (0, 0),
        };
        let proven = BigObject::proven(&entry.model, record.small_sha256, length);
        let object = match record.old.clone() {
            Some(OldObject { key, etag, sha256, small_sha256: small, .. }) => {
                BigObject { key, etag, sha256, small, ..proven }
            }
            None => proven,
        };
        let chunk = chunk_size(length);
        let state = State {
            hashes: manifest.map(|manifest| manifest.chunks.hashes).unwrap_or_default(),
            stored: vec![files.is_whole; length.div_ceil(chunk) as usize],
            recent: None,
            demands: Vec::new(),
            clients: 0,
            claims: Vec::new(),
            next_number: 0,
            reported_at: None,
            failure: None,
            place: files.place,
            finishing: false,
        };
        Self {
            entry,
            record,
            object,
            length,
            chunk,
            plain_length,
            file: files.file.map(Arc::new),
            remote: Mutex::new(remote),
            keys,
            rate,
            share: Share::default(),
            reservation: Mutex::new(files.reservation),
            state: Mutex::new(state),
            changed: Condvar::new(),
            prefix: Mutex::default(),
            records: Mutex::default(),
            warned: AtomicBool::new(false),
            _siblings: siblings,
        }
    }

    /// Whether it belongs to the small part with this hash.
    pub(super) fn is_of(&self, small: SmallHash) -> bool {
        self.record.small_sha256 == small
    }

    /// Whether its file still has its name. If not, the next load tries to cache the model again.
    pub(super) fn is_there(&self) -> bool {
        match self.state().place {
            Place::Part => self.entry.part().exists(),
            Place::Big => self.entry.big.exists(),
            Place::Nowhere => false,
        }
    }

    pub(super) fn uses_part(&self) -> bool {
        self.state().place == Place::Part
    }

    /// Whether nobody reads it at the moment, and no download is running.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.state();
        state.demands.is_empty() && state.claims.is_empty()
    }

    /// Whether its chunks come into the cache as they are read.
    pub fn is_cached(&self) -> bool {
        self.state().place != Place::Nowhere
    }

    /// Whether it is an old upload, without an uploader's manifest.
    pub fn is_old(&self) -> bool {
        self.record.old.is_some()
    }

    /// Whether it is an old upload, and `object` is another one under the same key.
    pub fn is_replaced_by(&self, object: &BigObject) -> bool {
        self.record.old.as_ref().is_some_and(|old| *old != OldObject::new(object, old.plain_length))
    }

    /// Whether only the CDN can tell if it still belongs to its small part.
    pub fn may_be_torn(&self) -> bool {
        self.record.old.as_ref().is_some_and(|old| old.small_sha256.is_none())
    }

    /// When this box got it, if all of it is in the cache.
    pub fn modified(&self) -> Option<SystemTime> {
        let is_cached = self.state().place == Place::Big;
        let record = is_cached.then(|| fs::metadata(self.entry.record()))?;
        record.ok()?.modified().ok()
    }

    pub fn is_complete(&self) -> bool {
        self.state().is_whole()
    }

    /// Whether each chunk can be proven by itself. An old upload can only be proven as a whole, after it was downloaded.
    pub fn proves_ranges(&self) -> bool {
        self.record.old.is_none() || self.is_complete()
    }

    /// Whether an old upload that was hashed to its end does not have the hash that the CDN recorded for it.
    pub(super) fn is_refuted_by(&self, prefix: &Prefix) -> bool {
        let recorded = self.record.old.as_ref().and_then(|old| old.sha256);
        prefix.chunks == self.count() && recorded.is_some_and(|recorded| prefix.hasher.clone().finish() != recorded)
    }

    /// Replaces the access to the CDN: the latest load has the latest login.
    pub fn set_remote(&self, remote: Arc<dyn Remote>) {
        *lock(&self.remote) = remote;
    }

    fn remote(&self) -> Arc<dyn Remote> {
        Arc::clone(&lock(&self.remote))
    }

    pub(super) fn open(&self, bytes: Range<u64>) -> Box<dyn Read + Send> {
        self.remote().open(&self.object, bytes)
    }

    /// Logs the progress of a download now and then, over all its connections.
    pub(super) fn report(&self) {
        let done = {
            let mut state = self.state();
            let last = *state.reported_at.get_or_insert_with(Instant::now);
            if last.elapsed() < REPORT_EVERY {
                return;
            }
            state.reported_at = Some(Instant::now());
            state.stored.iter().filter(|stored| **stored).count() as u64 * self.chunk
        };
        let of = self.entry.big.display().to_string();
        report_transfer(Stage::Download, &of, done.min(self.length), Some(self.length));
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(super) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Waits for a [`notify`](Self::notify), at most this long.
    pub(super) fn wait<'a>(&self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits until the file has been renamed, if it is about to be.
    pub fn wait_until_named(&self) {
        drop(self.changed.wait_while(self.state(), |state| state.finishing));
    }

    pub(super) fn count(&self) -> usize {
        self.length.div_ceil(self.chunk) as usize
    }

    /// The bytes of the chunks in `chunks`.
    pub(super) fn bytes_of(&self, chunks: Range<usize>) -> Range<u64> {
        let at = |index: usize| (index as u64 * self.chunk).min(self.length);
        at(chunks.start)..at(chunks.end)
    }

    /// Registers a reader of these chunks.
    pub(super) fn demand(&self, chunks: Range<usize>, is_of_client: bool) -> Demand {
        // The chunks of an old upload must come in order, to be hashed. `connections` may ask the CDN, so no lock is held.
        let connections = if self.is_old() || self.is_complete() { 1 } else { self.remote().connections() };
        let mut state = self.state();
        // A new reader is a new try.
        state.failure = None;
        let number = state.new_number();
        state.demands.push((number, chunks));
        state.clients += usize::from(is_of_client);
        Demand { number, connections, is_of_client }
    }

    /// The reader wants no chunk before `next` any more.
    pub(super) fn advance(&self, demand: Demand, next: usize) {
        let mut state = self.state();
        if let Some((_, wanted)) = state.demands.iter_mut().find(|(number, _)| *number == demand.number) {
            wanted.start = next;
        }
    }

    pub(super) fn withdraw(&self, demand: Demand) {
        let mut state = self.state();
        state.demands.retain(|(number, _)| *number != demand.number);
        state.clients -= usize::from(demand.is_of_client);
    }

    /// Waits until `DOWNLOAD_RATE` allows this many bytes. What a client waits for comes first.
    pub(super) fn wait_for_rate(&self, bytes: usize) -> io::Result<()> {
        self.rate.wait(bytes, &self.share, || self.state().clients > 0)
    }

    /// The hash to compare the chunk with, if it is in the file.
    pub(super) fn stored(&self, index: usize) -> Option<ChunkHash> {
        let state = self.state();
        if state.stored[index] { state.hashes.get(index).copied() } else { None }
    }

    /// Reads a chunk from the file into `buffer`. False if the disk fails; the chunk is then as good as damaged.
    pub(super) fn read_stored(&self, index: usize, buffer: &mut PageBuffer) -> bool {
        let bytes = self.bytes_of(index..index + 1);
        buffer.resize((bytes.end - bytes.start) as usize);
        self.file.as_ref().is_some_and(|file| file.read_exact_at(buffer, bytes.start).is_ok())
    }

    /// Marks a chunk in the file as damaged, so that it is fetched again.
    pub(super) fn mark_bad(&self, index: usize) {
        let mut state = self.state();
        if std::mem::replace(&mut state.stored[index], false) {
            metrics::CHUNKS_REPAIRED.add();
            let (of, chunks) = (self.entry.big.display(), self.count());
            log::warn!("chunk {index} of {chunks} in the cached {of} is damaged and is fetched again");
        }
    }

    /// Stops writing chunks after an error. Loads continue without the cache.
    pub(super) fn end_caching(&self, error: &io::Error) {
        let place = std::mem::replace(&mut self.state().place, Place::Nowhere);
        if !self.warned.swap(true, Ordering::Relaxed) {
            log::warn!("{} is loaded without the cache: {error}", self.entry.big.display());
        }
        if place == Place::Part {
            self.entry.discard_part();
        }
        self.give_room_back();
        self.notify();
    }

    /// The part file grows no more.
    pub(super) fn give_room_back(&self) {
        drop(lock(&self.reservation).take());
    }

    /// The files are about to be removed. Readers keep the files that they have open.
    pub(super) fn leave_cache(&self) {
        let mut state =
            self.changed.wait_while(self.state(), |state| state.finishing).unwrap_or_else(PoisonError::into_inner);
        state.place = Place::Nowhere;
        drop(state);
        self.give_room_back();
        self.notify();
    }
}
