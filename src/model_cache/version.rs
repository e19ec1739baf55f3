//! One version of a model: which of its chunks are on local storage, and the way to the others.
//!
//! Every load that runs at the same time shares it. A chunk counts as stored when it was proven on its way into the file. That is
//! a hint and no more: storage decays, so whoever reads a chunk back proves it again, and one that does not fit is fetched again.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::download;
use super::entry::Entry;
use super::reader::ChunkReader;
use super::record::{OldObject, PartRecord, Record};
use crate::cancellation::Cancellation;
use crate::cdn_manager::BigObject;
use crate::manifest::{ChunkHash, ChunkHashes, Manifest, ManifestKeys, Subject, chunk_size};
use crate::metrics::{self, Stage};
use crate::metrics::{REPORT_EVERY, report_transfer};
use crate::security::{Hasher, SmallHash};
use crate::threads::lock;

/// How often a reader that waits looks whether its client has gone.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Opens a range of an object in the CDN.
pub type OpenRange = Arc<dyn Fn(&BigObject, Range<u64>) -> Box<dyn Read + Send> + Send + Sync>;

/// The way to the CDN.
#[derive(Clone)]
pub struct Remote {
    /// Opens a range of an object.
    pub open: OpenRange,
    /// Over how many connections at once an object should be read.
    pub connections: Arc<dyn Fn() -> usize + Send + Sync>,
}

/// What the chunks of a version are compared with.
pub enum Evidence {
    /// The uploader's manifest, with its text.
    Manifest(Manifest, String),
    /// None: an old upload, as the CDN described it, and the length of its plaintext. This box makes a manifest while it
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
    pub(super) length: u64,
    pub(super) chunk: u64,
    plain_length: u64,
    small_length: Option<u64>,
    pub(super) file: Option<Arc<File>>,
    remote: Mutex<Remote>,
    pub(super) keys: Arc<ManifestKeys>,
    state: Mutex<State>,
    changed: Condvar,
    /// Of an old upload: the chunks that `Hasher` has seen.
    pub(super) whole: Mutex<(usize, Hasher)>,
    /// Somebody has been told that chunks cannot be written.
    warned: AtomicBool,
    /// Keeps the lock on the model's versions alive.
    _siblings: Arc<Mutex<Versions>>,
}

/// What is known of a version.
pub(super) struct Known {
    pub(super) record: Record,
    /// None for an old upload that has not been downloaded to its end.
    pub(super) manifest: Option<Manifest>,
    pub(super) small_length: Option<u64>,
}

/// Where the chunks of a version are.
pub(super) struct Files {
    pub(super) file: Option<File>,
    pub(super) place: Place,
    /// Which are there; none for none.
    pub(super) stored: Option<Vec<bool>>,
}

impl Files {
    /// Those of a version that cannot be cached.
    pub(super) fn none() -> Self {
        Self { file: None, place: Place::Nowhere, stored: None }
    }
}

/// A reader as downloads know it.
#[derive(Clone, Copy)]
pub(super) struct Demand {
    /// The number of what it wants.
    pub(super) number: u64,
    /// Over how many connections its chunks should come.
    pub(super) connections: usize,
}

/// Where the file of a version is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A download that has not ended.
    Part,
    /// In the cache under its final name.
    Big,
    /// It cannot be written, or is gone. Readers fetch for themselves what is not stored.
    Nowhere,
}

pub(super) struct State {
    /// All of them, or of an old upload those that have come so far.
    pub(super) hashes: Vec<ChunkHash>,
    /// Which chunks are in the file.
    pub(super) stored: Vec<bool>,
    /// The chunk that has come last, for readers that wait for it: it was proven a moment ago.
    pub(super) recent: Option<(usize, Arc<Vec<u8>>)>,
    /// The chunks that each reader still wants, by its number.
    pub(super) demands: Vec<(u64, Range<usize>)>,
    /// What each download is at, and how far it is to go, by its number.
    pub(super) claims: Vec<(u64, Range<usize>)>,
    pub(super) next_number: u64,
    /// When the log last said how far it is.
    pub(super) reported_at: Option<Instant>,
    /// Why the last download failed.
    pub(super) failure: Option<String>,
    pub(super) place: Place,
    /// All chunks are there, and the file is getting its name.
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
}

/// A chunk that somebody waited for.
pub(super) enum Chunk {
    /// It has just come, and is proven.
    Recent(Arc<Vec<u8>>),
    /// It is in the file, and has to be compared with this.
    Stored(ChunkHash),
    /// It cannot be stored: whoever needs it fetches it. Compare it with this, if it is known.
    Fetch(Option<ChunkHash>),
}

impl Version {
    /// A version of which so much is known, in these files.
    pub(super) fn new(
        entry: Entry,
        known: Known,
        files: Files,
        remote: Remote,
        keys: Arc<ManifestKeys>,
        siblings: Arc<Mutex<Versions>>,
    ) -> Self {
        let Known { record, manifest, small_length } = known;
        let Files { file, place, stored } = files;
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
        let count = length.div_ceil(chunk) as usize;
        let state = State {
            hashes: manifest.map(|manifest| manifest.chunks.hashes).unwrap_or_default(),
            stored: stored.unwrap_or_else(|| vec![false; count]),
            recent: None,
            demands: Vec::new(),
            claims: Vec::new(),
            next_number: 0,
            reported_at: None,
            failure: None,
            place,
            finishing: false,
        };
        Self {
            entry,
            record,
            object,
            length,
            chunk,
            plain_length,
            small_length,
            file: file.map(Arc::new),
            remote: Mutex::new(remote),
            keys,
            state: Mutex::new(state),
            changed: Condvar::new(),
            whole: Mutex::default(),
            warned: AtomicBool::new(false),
            _siblings: siblings,
        }
    }

    /// Takes up a download that was broken off. Of an old upload, whose chunks nothing is known of yet, what is there from the
    /// beginning on is hashed.
    pub(super) fn resume(&self, part: &PartRecord) {
        let mut stored = part.stored(self.count());
        if self.is_old() {
            let mut whole = lock(&self.whole);
            let (mut hashes, mut bytes) = (Vec::new(), Vec::new());
            while stored.get(hashes.len()) == Some(&true) && self.read_stored(hashes.len(), &mut bytes) {
                hashes.push(Sha256::digest(&bytes).into());
                whole.1.update(&bytes);
            }
            stored.iter_mut().skip(hashes.len()).for_each(|stored| *stored = false);
            if hashes.len() == self.count() && !self.has_whole_hash(whole.1.clone()) {
                (hashes, *whole) = (Vec::new(), (0, Hasher::default()));
                stored.fill(false);
            }
            whole.0 = hashes.len();
            self.state().hashes = hashes;
        }
        let there = stored.iter().filter(|stored| **stored).count();
        log::info!("{}: the download goes on, {there} of {} chunks are there", self.entry.big.display(), self.count());
        self.state().stored = stored;
        if self.is_complete() {
            download::finish(self);
        }
    }

    /// Whether it belongs to the small part with this hash.
    pub(super) fn is_of(&self, small: SmallHash) -> bool {
        self.record.small_sha256 == small
    }

    /// Whether its file is where it is looked for. A load that comes when it is not tries to cache the model anew.
    pub(super) fn is_there(&self) -> bool {
        match self.state().place {
            Place::Part => self.entry.part().exists(),
            Place::Big => self.entry.big.exists(),
            Place::Nowhere => false,
        }
    }

    /// Whether it downloads into the part file.
    pub(super) fn uses_part(&self) -> bool {
        self.state().place == Place::Part
    }

    /// Length of the big part in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Length of the plaintext in bytes.
    pub fn plain_length(&self) -> u64 {
        self.plain_length
    }

    /// Whether it is an old upload, which its uploader has proven nothing of.
    pub fn is_old(&self) -> bool {
        self.record.old.is_some()
    }

    /// Whether it is an old upload that nothing but its entity tag ties to its small part, and `object` has another one.
    pub fn is_replaced_by(&self, object: &BigObject) -> bool {
        self.record.old.as_ref().is_some_and(|old| *old != OldObject::new(object, old.plain_length))
    }

    /// Whether only the CDN can tell if it is still what belongs to its small part.
    pub fn may_be_torn(&self) -> bool {
        self.record.old.as_ref().is_some_and(|old| old.small_sha256.is_none())
    }

    /// Whether all chunks are in the cache.
    pub fn is_complete(&self) -> bool {
        self.state().is_whole()
    }

    /// Whether each chunk is proven for itself. An old upload is proven by the hash of all of it, and so when all of it was here.
    pub fn proves_ranges(&self) -> bool {
        self.record.old.is_none() || self.is_complete()
    }

    /// A reader of a range of the big part, which gives out nothing that was not proven. Of an old upload that is not complete it
    /// has to be the whole.
    ///
    /// # Errors
    /// None so far; the reader's come later.
    pub fn read(self: &Arc<Self>, range: Range<u64>) -> ChunkReader {
        ChunkReader::new(Arc::clone(self), range)
    }

    /// The way to the CDN for whatever is still missing: the latest load's login is the best.
    pub(super) fn set_remote(&self, remote: Remote) {
        *lock(&self.remote) = remote;
    }

    pub(super) fn remote(&self) -> Remote {
        lock(&self.remote).clone()
    }

    /// Says in the log now and then how far a download is, over all its connections.
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

    /// Opens a range of the object.
    pub(super) fn open(&self, bytes: Range<u64>) -> Box<dyn Read + Send> {
        (self.remote().open)(&self.object, bytes)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(super) fn notify(&self) {
        self.changed.notify_all();
    }

    pub(super) fn count(&self) -> usize {
        self.length.div_ceil(self.chunk) as usize
    }

    /// The bytes of the chunks in `chunks`.
    pub(super) fn bytes_of(&self, chunks: Range<usize>) -> Range<u64> {
        let at = |index: usize| (index as u64 * self.chunk).min(self.length);
        at(chunks.start)..at(chunks.end)
    }

    /// Notes a new reader of these chunks.
    pub(super) fn demand(&self, chunks: Range<usize>) -> Demand {
        // The hash of all of an old upload needs its bytes in order. The question may reach the network, so no lock is held.
        let connections = if self.is_old() || self.is_complete() { 1 } else { (self.remote().connections)() };
        let mut state = self.state();
        // A new try.
        state.failure = None;
        state.next_number += 1;
        let number = state.next_number;
        state.demands.push((number, chunks));
        Demand { number, connections }
    }

    /// The reader wants no chunk before `next` any more; nor any if there is none.
    pub(super) fn advance(&self, Demand { number, .. }: Demand, next: Option<usize>) {
        let mut state = self.state();
        match next {
            Some(next) => {
                if let Some((_, demand)) = state.demands.iter_mut().find(|(demand, _)| *demand == number) {
                    demand.start = next;
                }
            }
            None => state.demands.retain(|(demand, _)| *demand != number),
        }
    }

    /// Whether the chunk is in the file, and if so what to compare it with.
    pub(super) fn stored(&self, index: usize) -> Option<ChunkHash> {
        let state = self.state();
        if state.stored[index] { state.hashes.get(index).copied() } else { None }
    }

    /// Waits for a chunk, and sees to it that somebody brings it.
    pub(super) fn wait_for(self: &Arc<Self>, index: usize, demand: Demand) -> io::Result<Chunk> {
        let mut state = self.state();
        loop {
            if let Some((_, bytes)) = state.recent.as_ref().filter(|(recent, _)| *recent == index) {
                return Ok(Chunk::Recent(Arc::clone(bytes)));
            }
            if let (true, Some(hash)) = (state.stored[index], state.hashes.get(index)) {
                return Ok(Chunk::Stored(*hash));
            }
            if state.place == Place::Nowhere {
                return Ok(Chunk::Fetch(state.hashes.get(index).copied()));
            }
            if !download::is_coming(&state, index) {
                if let Some(reason) = &state.failure {
                    return Err(io::Error::other(reason.clone()));
                }
                download::start(self, &mut state, index, demand)?;
            }
            Cancellation::check()?;
            state = self.changed.wait_timeout(state, LOOK_EVERY).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Reads a chunk from the file into `buffer`, which gets its length. Any failure of the disk makes it a bad one.
    pub(super) fn read_stored(&self, index: usize, buffer: &mut Vec<u8>) -> bool {
        let bytes = self.bytes_of(index..index + 1);
        buffer.resize((bytes.end - bytes.start) as usize, 0);
        self.file.as_ref().is_some_and(|file| file.read_exact_at(buffer, bytes.start).is_ok())
    }

    /// A chunk in the file is not what it was: it has to be fetched again.
    pub(super) fn mark_bad(&self, index: usize) {
        let mut state = self.state();
        if std::mem::replace(&mut state.stored[index], false) {
            metrics::CHUNKS_REPAIRED.add();
            let (of, chunks) = (self.entry.big.display(), self.count());
            log::warn!("chunk {index} of {chunks} in the cached {of} is damaged and is fetched again");
        }
    }

    /// Chunks cannot be written any more. Loads go on without the cache.
    pub(super) fn end_caching(&self, error: &io::Error) {
        let place = {
            let mut state = self.state();
            std::mem::replace(&mut state.place, Place::Nowhere)
        };
        if !self.warned.swap(true, Ordering::Relaxed) {
            log::warn!("{} is loaded without the cache: {error}", self.entry.big.display());
        }
        if place == Place::Part {
            self.entry.discard_part();
        }
        self.notify();
    }

    /// The manifest that this box makes of an old upload when all of it is here.
    pub(super) fn complete_record(&self) -> io::Result<Record> {
        let Some(_) = &self.record.old else { return Ok(self.record.clone()) };
        let hashes = self.state().hashes.clone();
        let (model, small) = (&self.entry.model, self.record.small_sha256);
        let subject = Subject { model, small, small_length: self.small_length };
        let chunks = ChunkHashes { length: self.length, chunk: self.chunk, hashes };
        let manifest = Manifest { chunks, plain_length: self.plain_length };
        Ok(Record { manifest: Some(self.keys.sign_own(subject, &manifest)?), ..self.record.clone() })
    }

    /// Waits while the file is getting its name.
    pub(super) fn wait_until_named(&self) {
        drop(self.changed.wait_while(self.state(), |state| state.finishing));
    }
}
