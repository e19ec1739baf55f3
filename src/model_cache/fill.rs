//! One download into the cache, and the readers that follow it.
//!
//! A thread brings the bytes into the `.part` file and hashes them; every load reads them from there as they arrive. So the
//! download is as fast as the uplink however slow a client is, hashing and decrypting use two cores, and loads that come
//! later share it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::incoming::Incoming;
use super::proofs::Proofs;
use super::ranges::{self, Broken, Ranges};
use super::record::{PartRecord, Record};
use super::{Entry, Fills, OpenRange, verified};
use crate::cdn_manager::BigObject;
use crate::constants::CHUNK;
use crate::security::{HashBeside, HashMismatch, Hasher, Proof};
use crate::storage::{DiskSync, create_parent, open_private, rename_durably};
use crate::threads;

/// The part record is brought up to date so often: what came before is not lost to a power cut.
const DURABLE_EVERY: Duration = Duration::from_secs(1);

/// A download that is running, or has just ended.
pub(super) struct Fill {
    entry: Entry,
    object: BigObject,
    small_sha256: String,
    file: Arc<File>,
    open: OpenRange,
    /// How many the CDN may be asked over at once.
    connections: usize,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Bytes in the file.
    available: u64,
    /// Loads that follow.
    readers: usize,
    outcome: Outcome,
}

#[derive(Clone)]
enum Outcome {
    Running,
    /// All bytes are there and have the right hash.
    Verified,
    /// The file could not be written on. Readers go on alone from the end of the file, with the hash so far.
    Uncached(Hasher),
    /// No reader is left.
    Stopped,
    Failed(String),
}

impl Fill {
    /// Opens the files and starts the thread. The caller enters the fill into `fills`, whose lock it holds; the thread
    /// takes it out.
    pub(super) fn start(
        entry: &Entry,
        object: &BigObject,
        small_sha256: &str,
        (open, connections): (OpenRange, usize),
        fills: Arc<Fills>,
    ) -> io::Result<(Arc<Self>, FillReader)> {
        create_parent(&entry.big)?;
        let resumed = PartRecord::read(&entry.part_record(), object).map_or(0, |record| record.durable);
        let file = open_private(&entry.part(), resumed == 0)?;
        // A part that is shorter than its record says is none.
        let resumed = if file.metadata()?.len() >= resumed { resumed } else { 0 };
        file.set_len(resumed)?;
        PartRecord::new(object, resumed).write(&entry.part_record())?;
        if resumed > 0 {
            log::info!("{}: the download continues at byte {resumed} of {}", entry.big.display(), object.length);
        }

        let fill = Arc::new(Self {
            entry: entry.clone(),
            object: object.clone(),
            small_sha256: small_sha256.to_owned(),
            file: Arc::new(file),
            open,
            connections,
            state: Mutex::new(State { available: resumed, readers: 1, outcome: Outcome::Running }),
            changed: Condvar::new(),
        });
        let reader = FillReader { fill: Arc::clone(&fill), position: 0, alone: None };
        let worker = Arc::clone(&fill);
        threads::spawn("download", move || {
            let ended = Ended { fill: &worker, fills: &fills };
            worker.run(resumed, &fills.proofs);
            drop(ended);
        })?;
        Ok((fill, reader))
    }

    /// Whether this downloads `object`.
    pub(super) fn is_of(&self, object: &BigObject) -> bool {
        self.object == *object
    }

    /// Whether all bytes for the small part with this hash are here and only the file has to be put in its place.
    pub(super) fn is_whole_for(&self, small_sha256: &str) -> bool {
        self.small_sha256 == small_sha256 && matches!(self.state().outcome, Outcome::Verified)
    }

    /// One more reader; none if the download has ended without success.
    pub(super) fn join(self: &Arc<Self>) -> Option<FillReader> {
        let mut state = self.state();
        if !matches!(state.outcome, Outcome::Running | Outcome::Verified) {
            return None;
        }
        state.readers += 1;
        Some(FillReader { fill: Arc::clone(self), position: 0, alone: None })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, outcome: Outcome) {
        self.state().outcome = outcome;
        self.changed.notify_all();
    }

    fn run(&self, resumed: u64, proofs: &Proofs) {
        let mut sync = DiskSync::default();
        match self.download(resumed, &mut sync) {
            Ok(Some(proof)) => {
                // Readers may end now; that the file survives a power cut need not keep them waiting.
                self.end(Outcome::Verified);
                if let Err(error) = sync.wait().and_then(|()| self.keep(proof.sha256())) {
                    log::warn!("{} is not kept in the cache: {error}", self.entry.big.display());
                    self.discard();
                }
                proofs.add(proof);
            }
            Ok(None) => {
                let _ = sync.wait();
                self.keep_part();
            }
            Err(error) if error.get_ref().is_some_and(|inner| inner.is::<HashMismatch>()) => {
                let _ = sync.wait();
                self.discard();
                self.end(Outcome::Failed(error.to_string()));
            }
            Err(error) => {
                let _ = sync.wait();
                self.keep_part();
                self.end(Outcome::Failed(error.to_string()));
            }
        }
    }

    /// Brings the bytes in. Answers the proof of the whole, or nothing if it stopped before the end without an error.
    fn download(&self, resumed: u64, sync: &mut DiskSync) -> io::Result<Option<Proof>> {
        // The state of the hash cannot be stored, so what is resumed is read once more.
        let mut hasher = HashBeside::from(Hasher::of_range(&self.file, 0..resumed)?);
        let mut incoming = self.incoming(resumed)?;
        let mut buffer = vec![0; CHUNK];
        let mut available = resumed;
        let mut durable = Instant::now();
        while available < self.object.length {
            // To the next multiple of the buffer's length: the page cache takes such a piece of a file at once.
            let wanted = (CHUNK as u64 - available % CHUNK as u64).min(self.object.length - available) as usize;
            let count = match incoming.next(&self.file, available, &mut buffer[..wanted]) {
                Ok(count) => count,
                Err(Broken::Source(error)) => return Err(error),
                Err(Broken::File(error)) => {
                    log::warn!("{} is loaded without the cache: {error}", self.entry.big.display());
                    drop(incoming);
                    let _ = sync.wait();
                    self.discard();
                    self.end(Outcome::Uncached(hasher.into_hasher()));
                    return Ok(None);
                }
            };
            available += count as u64;
            {
                let mut state = self.state();
                state.available = available;
                if state.readers == 0 {
                    state.outcome = Outcome::Stopped;
                    log::info!(
                        "{}: the download stops at byte {available}, no client is left",
                        self.entry.big.display()
                    );
                    return Ok(None);
                }
            }
            self.changed.notify_all();
            hasher.update_and_exchange(&mut buffer, count);
            // Storage can be slower than the uplink, and then takes its time beside the download.
            if durable.elapsed() >= DURABLE_EVERY && sync.is_idle() {
                sync.wait()?;
                self.make_durable(available, sync);
                durable = Instant::now();
            }
        }
        let proof = hasher.into_hasher().prove();
        match &self.object.sha256 {
            Some(expected) if expected != proof.sha256() => {
                Err(io::Error::new(io::ErrorKind::InvalidData, HashMismatch))
            }
            _ => Ok(Some(proof)),
        }
    }

    /// Brings what is there to the disk, and the part record up to date, beside the download.
    fn make_durable(&self, available: u64, sync: &mut DiskSync) {
        let (file, path) = (Arc::clone(&self.file), self.entry.part_record());
        let record = PartRecord::new(&self.object, available);
        sync.start(move || {
            file.sync_data()?;
            // The data have room, the record has none: only a later start would have needed it.
            if let Err(error) = record.write(&path) {
                log::warn!("the download cannot be resumed after a power cut, {}: {error}", path.display());
            }
            Ok(())
        });
    }

    /// The bytes from `position` on, over as many connections as they are worth.
    fn incoming(&self, position: u64) -> io::Result<Incoming> {
        let length = self.object.length;
        if self.connections > 1 && ranges::worth_it(length - position) {
            return Ranges::start(&self.file, &self.open, position, length, self.connections).map(Incoming::Ranges);
        }
        Ok(Incoming::stream((self.open)(position..length)))
    }

    /// Gives the finished file its record and its name. The record goes first: it is void until its file is there, while a
    /// file without a record would be downloaded again.
    fn keep(&self, sha256: &str) -> io::Result<()> {
        let record = Record::new(&self.file, sha256, &self.small_sha256)?;
        record.write(&self.entry.record())?;
        rename_durably(&self.file, &self.entry.part(), &self.entry.big)?;
        self.entry.is_cached(record.file.length);
        fs::remove_file(self.entry.part_record())
    }

    /// Leaves the unfinished file to be resumed.
    fn keep_part(&self) {
        if matches!(self.state().outcome, Outcome::Uncached(_)) {
            return;
        }
        let available = self.state().available;
        let kept = self
            .file
            .sync_data()
            .and_then(|()| PartRecord::new(&self.object, available).write(&self.entry.part_record()));
        if let Err(error) = kept {
            log::warn!("{} cannot be resumed later: {error}", self.entry.big.display());
        }
    }

    fn discard(&self) {
        for path in [self.entry.part(), self.entry.part_record()] {
            let _ = fs::remove_file::<PathBuf>(path);
        }
    }
}

/// Takes the fill out of the list when its thread ends, however it ends: readers and newcomers must not wait for ever.
struct Ended<'a> {
    fill: &'a Fill,
    fills: &'a Fills,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        {
            let mut state = self.fill.state();
            if matches!(state.outcome, Outcome::Running) {
                state.outcome = Outcome::Failed("the download ended unexpectedly".into());
            }
        }
        self.fill.changed.notify_all();
        self.fills.lock().remove(&self.fill.entry.big);
        self.fills.ended.notify_all();
    }
}

/// Reads a big part from the file that a [`Fill`] fills, waiting for bytes that are still on their way. Its end comes only
/// when all bytes have been verified.
pub(super) struct FillReader {
    fill: Arc<Fill>,
    position: u64,
    /// The way on when the file could not be written further.
    alone: Option<Box<dyn Read + Send>>,
}

impl Read for FillReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if let Some(alone) = &mut self.alone {
            return alone.read(out);
        }
        let (available, outcome) = {
            let waiting = self.fill.state();
            let ready =
                |state: &mut State| matches!(state.outcome, Outcome::Running) && state.available <= self.position;
            let state = self.fill.changed.wait_while(waiting, ready).unwrap_or_else(PoisonError::into_inner);
            (state.available, state.outcome.clone())
        };
        match outcome {
            Outcome::Failed(reason) => return Err(io::Error::other(reason)),
            Outcome::Stopped => return Err(io::Error::other("the download was stopped")),
            Outcome::Verified if self.position == available => return Ok(0),
            Outcome::Uncached(hasher) if self.position == available => {
                let source = (self.fill.open)(self.position..self.fill.object.length);
                let mut alone = verified(source, hasher, self.fill.object.sha256.as_deref());
                let result = alone.read(out);
                self.alone = Some(alone);
                return result;
            }
            _ => {}
        }
        let limit = out.len().min(usize::try_from(available - self.position).unwrap_or(usize::MAX));
        let count = self.fill.file.read_at(&mut out[..limit], self.position)?;
        if count == 0 && limit > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += count as u64;
        Ok(count)
    }
}

impl Drop for FillReader {
    fn drop(&mut self) {
        self.fill.state().readers -= 1;
    }
}
