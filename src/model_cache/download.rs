//! Downloads: threads that bring the chunks which readers want, prove them and put them into the file.
//!
//! A near CDN is read over one connection from the first chunk that is missing to the last that is wanted, as fast as the
//! uplink goes however slow a client is. One that is far away is read over several, each a few chunks at a time: one
//! connection carries at most a window of bytes in a round trip. The file is where chunks that come too early wait.

use std::fs;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::record::PartRecord;
use super::version::{Demand, Place, State, Version};
use crate::constants::CHUNK;
use crate::manifest::ChunkHash;
use crate::security::{HashMismatch, Hasher};
use crate::storage::{DiskSync, rename_durably};
use crate::threads::{self, lock};

/// The bitmap of a part file is brought up to date so often: what came before is not lost to a power cut.
const DURABLE_EVERY: Duration = Duration::from_secs(1);

/// A reader does not wait for a download that is more chunks away than this.
const AHEAD: usize = 8;

/// How many bytes a far CDN is asked for at a time: much more than a window, so that waiting for the first byte costs little.
const PIECE: u64 = 8 << 20;

/// The most downloads of one version at once.
const MOST: usize = 8;

/// How often a chunk that does not have its hash is asked for.
const TRIES: usize = 2;

/// Whether a download will soon be at this chunk.
pub(super) fn is_coming(state: &State, index: usize) -> bool {
    let covers = |claim: &Range<usize>| claim.contains(&index);
    state.claims.iter().any(|(_, claim)| covers(claim) && index - claim.start <= AHEAD)
        || (state.claims.len() >= MOST && state.is_claimed(index))
        || state.finishing
}

/// Starts the downloads that bring the chunk at `index` to a reader, and those after it.
pub(super) fn start(
    version: &Arc<Version>,
    state: &mut State,
    index: usize,
    Demand { number, connections }: Demand,
) -> io::Result<()> {
    let Some((_, chunks)) = state.demands.iter().find(|(demand, _)| *demand == number) else { return Ok(()) };
    let wanted = index..chunks.end;
    let far = connections > 1 && (wanted.len() as u64) * version.chunk >= 2 * PIECE;
    let limit = if far { (PIECE / version.chunk).max(1) as usize } else { usize::MAX };
    spawn(version, state, run_at(state, index, wanted.end, limit), limit)?;
    while far && state.claims.len() < connections.min(MOST) {
        let Some(run) = next_run(state, limit) else { break };
        // The first one is enough.
        if spawn(version, state, run, limit).is_err() {
            break;
        }
    }
    Ok(())
}

/// The chunks from `index` on that one download brings: up to the next that is there or on its way.
fn run_at(state: &State, index: usize, end: usize, limit: usize) -> Range<usize> {
    let last = end.min(index.saturating_add(limit));
    let stop = (index + 1..last).find(|next| state.stored[*next] || state.is_claimed(*next));
    index..stop.unwrap_or(last)
}

/// The first chunks that a reader wants and nobody brings.
fn next_run(state: &State, limit: usize) -> Option<Range<usize>> {
    state.demands.iter().find_map(|(_, demand)| {
        let missing = demand.clone().find(|index| !state.stored[*index] && !state.is_claimed(*index))?;
        Some(run_at(state, missing, demand.end, limit))
    })
}

fn spawn(version: &Arc<Version>, state: &mut State, run: Range<usize>, limit: usize) -> io::Result<()> {
    state.next_number += 1;
    let number = state.next_number;
    state.claims.push((number, run));
    let download = Download { version: Arc::clone(version), number, limit, finishes: false };
    threads::spawn("download", move || download.run()).map(drop).inspect_err(|_| {
        state.claims.retain(|(claim, _)| *claim != number);
    })
}

/// One download. Dropping it gives up its claim: nobody must wait for it then, not even after a panic.
struct Download {
    version: Arc<Version>,
    number: u64,
    limit: usize,
    finishes: bool,
}

impl Drop for Download {
    fn drop(&mut self) {
        let mut state = self.version.state();
        state.claims.retain(|(number, _)| *number != self.number);
        state.finishing &= !self.finishes;
        if state.claims.is_empty() && state.place != Place::Nowhere {
            state.recent = None;
        }
        drop(state);
        self.version.notify();
    }
}

impl Download {
    fn run(mut self) {
        let version = Arc::clone(&self.version);
        let mut sync = Durable::new();
        let mut claim = self.first_claim();
        while let Some(run) = claim {
            if let Err(error) = self.bring(run, &mut sync) {
                version.state().failure = Some(error.to_string());
                break;
            }
            claim = self.next_claim();
        }
        sync.finish(&version);
        {
            let mut state = version.state();
            state.claims.retain(|(number, _)| *number != self.number);
            // Whoever is the last gives the file its name.
            self.finishes =
                state.claims.is_empty() && !state.finishing && state.place == Place::Part && state.is_whole();
            state.finishing |= self.finishes;
        }
        if self.finishes {
            finish(&version);
        }
    }

    fn first_claim(&self) -> Option<Range<usize>> {
        let state = self.version.state();
        state.claims.iter().find(|(number, _)| *number == self.number).map(|(_, run)| run.clone())
    }

    /// What to do next. The claim ends in the same moment as the search, so that two do not bring the same.
    fn next_claim(&self) -> Option<Range<usize>> {
        let mut state = self.version.state();
        let mine = state.claims.iter().position(|(number, _)| *number == self.number)?;
        state.claims[mine].1 = 0..0;
        let run = if state.place == Place::Nowhere { None } else { next_run(&state, self.limit) };
        match &run {
            Some(run) => state.claims[mine].1 = run.clone(),
            // Whoever waits for what was left undone sees to it now.
            None => self.version.notify(),
        }
        run
    }

    /// Brings chunks, until somebody else has one or nobody wants the next.
    fn bring(&self, run: Range<usize>, sync: &mut Durable) -> io::Result<()> {
        let version = &self.version;
        let mut stream = ChunkStream::new(run.clone());
        let mut spare = Vec::new();
        for index in run {
            {
                let mut state = version.state();
                if !state.is_wanted(index) && state.demands.is_empty() {
                    log::info!(
                        "{}: the download stops at chunk {index}, no client is left",
                        version.entry.big.display()
                    );
                }
                if state.stored[index] || !state.is_wanted(index) || state.place == Place::Nowhere {
                    return Ok(());
                }
                if let Some((_, claim)) = state.claims.iter_mut().find(|(number, _)| *number == self.number) {
                    claim.start = index;
                }
            }
            let expected = version.state().hashes.get(index).copied();
            let mut bytes = std::mem::take(&mut spare);
            let hash = stream.read(version, index, &mut bytes, expected)?;
            match self.store(index, bytes, hash, expected.is_none())? {
                Some(buffer) => spare = buffer,
                None => return Ok(()),
            }
            version.report();
            sync.now_and_then(version);
        }
        Ok(())
    }

    /// Puts a chunk into the file and wakes those who wait for it. Answers a buffer to use again; none if it cannot be written.
    fn store(&self, index: usize, bytes: Vec<u8>, hash: ChunkHash, is_new: bool) -> io::Result<Option<Vec<u8>>> {
        let version = &self.version;
        let Some(file) = &version.file else { return Ok(None) };
        if let Err(error) = file.write_all_at(&bytes, version.bytes_of(index..index + 1).start) {
            if !is_new {
                // Whoever waits for it need not fetch it once more.
                version.state().recent = Some((index, Arc::new(bytes)));
            }
            version.end_caching(&error);
            return Ok(None);
        }
        if is_new {
            let mut whole = lock(&version.whole);
            whole.1.update(&bytes);
            whole.0 = index + 1;
            let (seen, last) = (whole.1.clone(), index + 1 == version.count());
            drop(whole);
            // Until now nobody has the last chunk, so nobody has all.
            if last && !version.has_whole_hash(seen) {
                version.entry.discard_part();
                version.state().place = Place::Nowhere;
                return Err(io::Error::new(io::ErrorKind::InvalidData, HashMismatch));
            }
        }
        let mut state = version.state();
        if is_new {
            state.hashes.push(hash);
        }
        state.stored[index] = true;
        let before = state.recent.replace((index, Arc::new(bytes)));
        drop(state);
        version.notify();
        Ok(Some(before.and_then(|(_, bytes)| Arc::try_unwrap(bytes).ok()).unwrap_or_default()))
    }
}

impl Version {
    /// Whether an old upload has the hash that the CDN recorded for it, if any.
    pub(super) fn has_whole_hash(&self, seen: Hasher) -> bool {
        let expected = self.record.old.as_ref().and_then(|old| old.sha256);
        expected.is_none_or(|expected| seen.finish() == expected)
    }
}

/// Gives the finished file its record and its name. The record goes first: should the power fail between the two, the part file
/// is still whole and found first.
pub(super) fn finish(version: &Version) {
    if let Err(error) = try_finish(version) {
        log::warn!("{} is not kept in the cache: {error}", version.entry.big.display());
        version.end_caching(&error);
    }
}

fn try_finish(version: &Version) -> io::Result<()> {
    let (Some(file), entry) = (&version.file, &version.entry) else { return Ok(()) };
    version.complete_record()?.write(&entry.record())?;
    rename_durably(file, &entry.part(), &entry.big)?;
    version.state().place = Place::Big;
    entry.is_cached(version.length);
    for path in [entry.part_record(), entry.part_source()] {
        if let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
    }
    Ok(())
}

/// Brings what has come to the disk, now and then and in the background: storage can be slower than the uplink.
struct Durable {
    sync: DiskSync,
    last: Instant,
}

impl Durable {
    fn new() -> Self {
        let now = Instant::now();
        // The first time is sooner.
        Self { sync: DiskSync::default(), last: now.checked_sub(DURABLE_EVERY * 3 / 4).unwrap_or(now) }
    }

    fn now_and_then(&mut self, version: &Arc<Version>) {
        if self.last.elapsed() >= DURABLE_EVERY && self.sync.is_idle() {
            self.wait(version);
            self.start(version);
        }
    }

    fn start(&mut self, version: &Arc<Version>) {
        self.last = Instant::now();
        let stored = {
            let state = version.state();
            if state.place != Place::Part {
                return;
            }
            state.stored.clone()
        };
        let version = Arc::clone(version);
        self.sync.start(move || make_durable(&version, &stored));
    }

    /// A disk that cannot keep what it took is not trusted with the rest.
    fn wait(&mut self, version: &Version) {
        if let Err(error) = self.sync.wait() {
            version.end_caching(&error);
        }
    }

    fn finish(mut self, version: &Arc<Version>) {
        self.wait(version);
        let is_part = {
            let state = version.state();
            state.place == Place::Part && !state.is_whole() && state.stored.iter().any(|stored| *stored)
        };
        if is_part {
            self.start(version);
            self.wait(version);
        }
    }
}

fn make_durable(version: &Version, stored: &[bool]) -> io::Result<()> {
    let Some(file) = &version.file else { return Ok(()) };
    file.sync_data()?;
    let entry = &version.entry;
    let source = entry.part_source();
    // The data have room, the records have none: only a later start would have needed them.
    let written = if source.exists() { Ok(()) } else { version.record.write(&source) };
    let record = PartRecord::new(version.record.small_sha256, stored);
    if let Err(error) = written.and_then(|()| record.write(&entry.part_record())) {
        log::warn!("the download cannot be resumed after a power cut, {}: {error}", source.display());
    }
    Ok(())
}

/// Chunks from the CDN, one after the other.
pub(super) struct ChunkStream {
    source: Option<Box<dyn Read + Send>>,
    /// The chunks that `source` will give.
    chunks: Range<usize>,
}

impl ChunkStream {
    pub(super) fn new(chunks: Range<usize>) -> Self {
        Self { source: None, chunks }
    }

    /// The chunk that comes next.
    pub(super) fn position(&self) -> usize {
        self.chunks.start
    }

    /// Reads the next chunk, which is the one at `index`, and hashes it. One that is not the expected one is asked for again.
    pub(super) fn read(
        &mut self,
        version: &Version,
        index: usize,
        bytes: &mut Vec<u8>,
        expected: Option<ChunkHash>,
    ) -> io::Result<ChunkHash> {
        for _ in 0..TRIES {
            self.chunks.start = index;
            let hash = self.read_once(version, bytes).inspect_err(|_| self.source = None)?;
            if expected.is_none_or(|expected| expected == hash) {
                self.chunks.start = index + 1;
                return Ok(hash);
            }
            log::warn!("chunk {index} of {} came from the CDN with another hash", version.entry.big.display());
            self.source = None;
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, WrongChunk { index, is_old: version.is_old() }))
    }

    fn read_once(&mut self, version: &Version, bytes: &mut Vec<u8>) -> io::Result<ChunkHash> {
        let range = version.bytes_of(self.chunks.start..self.chunks.start + 1);
        bytes.resize((range.end - range.start) as usize, 0);
        let source = self.source.get_or_insert_with(|| version.open(version.bytes_of(self.chunks.clone())));
        let mut hasher = Sha256::new();
        for piece in bytes.chunks_mut(CHUNK) {
            source.read_exact(piece)?;
            hasher.update(piece);
        }
        if self.chunks.len() == 1 {
            // The end of the answer leaves its connection to the next request.
            let _ = source.read(&mut [0]);
        }
        Ok(hasher.finalize().into())
    }
}

/// The CDN has other bytes than the manifest says.
#[derive(Debug)]
struct WrongChunk {
    index: usize,
    is_old: bool,
}

impl std::fmt::Display for WrongChunk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let index = self.index;
        if self.is_old {
            return write!(f, "chunk {index} in the CDN is not what was downloaded before; load the model again");
        }
        write!(
            f,
            "chunk {index} in the CDN does not have the hash that the manifest names: the CDN, or a proxy before it, has other \
             bytes than were uploaded; upload the model again"
        )
    }
}

impl std::error::Error for WrongChunk {}
