//! Downloads: threads that fetch the chunks that readers want, prove them and put them into the file.
//!
//! A near CDN is read over one connection, from the first missing chunk to the last wanted one, at the speed of the network
//! even if a client is slower. A distant one is read over several connections, a few chunks at a time, since one connection
//! carries at most a window of bytes in a round trip. Chunks that arrive early wait in the file.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use super::chunk_stream::ChunkStream;
use super::durable::{self, Durable};
use super::files::Place;
use super::version::{Demand, State, Version};
use crate::cancellation::Cancellation;
use crate::manifest::ChunkHash;
use crate::page_buffer::PageBuffer;
use crate::security::HashMismatch;
use crate::threads::{self, lock};

/// A reader waits for a running download only if it is at most this many chunks away.
const AHEAD: usize = 8;

/// How much is requested at a time from a distant CDN: much more than a window, so that waiting for the first byte costs little.
const PIECE: u64 = 8 << 20;

const MAX_DOWNLOADS: usize = 8;

/// How often a waiting reader checks whether its client is gone.
const CANCELLATION_CHECK: Duration = Duration::from_millis(250);

/// A chunk that a reader waited for.
pub(super) enum Chunk {
    /// It has just arrived, and is proven.
    Recent(Arc<PageBuffer>),
    /// It is in the file, and has to be compared with this hash.
    Stored(ChunkHash),
    /// It cannot be stored, so the reader has to fetch it, and to compare it with this hash if it is known.
    Fetch(Option<ChunkHash>),
}

/// Waits for a chunk, and starts downloads if none will bring it soon.
pub(super) fn wait_for(version: &Arc<Version>, index: usize, demand: Demand) -> io::Result<Chunk> {
    let mut state = version.state();
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
        if !is_coming(&state, index) {
            if let Some(reason) = &state.failure {
                return Err(io::Error::other(reason.clone()));
            }
            start(version, &mut state, index, demand)?;
        }
        Cancellation::check()?;
        state = version.wait(state, CANCELLATION_CHECK);
    }
}

/// Whether a download will soon reach this chunk.
fn is_coming(state: &State, index: usize) -> bool {
    let is_near = |claim: &Range<usize>| claim.contains(&index) && index - claim.start <= AHEAD;
    state.claims.iter().any(|(_, claim)| is_near(claim))
        || (state.claims.len() >= MAX_DOWNLOADS && state.is_claimed(index))
        || state.finishing
}

/// Starts the downloads that bring a reader the chunk at `index` and those after it.
fn start(version: &Arc<Version>, state: &mut State, index: usize, demand: Demand) -> io::Result<()> {
    let Some((_, chunks)) = state.demands.iter().find(|(number, _)| *number == demand.number) else { return Ok(()) };
    let wanted = index..chunks.end;
    let is_far = demand.connections > 1 && (wanted.len() as u64) * version.chunk >= 2 * PIECE;
    let limit = if is_far { (PIECE / version.chunk).max(1) as usize } else { usize::MAX };
    spawn(version, state, run_at(state, index, wanted.end, limit), limit)?;
    while is_far && state.claims.len() < demand.connections.min(MAX_DOWNLOADS) {
        let Some(run) = next_run(state, limit) else { break };
        // One download is enough if there can be no more threads.
        if spawn(version, state, run, limit).is_err() {
            break;
        }
    }
    Ok(())
}

/// The chunks from `index` on for one download: up to the next one that is stored or claimed.
fn run_at(state: &State, index: usize, end: usize, limit: usize) -> Range<usize> {
    let last = end.min(index.saturating_add(limit));
    let stop = (index + 1..last).find(|next| state.stored[*next] || state.is_claimed(*next));
    index..stop.unwrap_or(last)
}

/// The first chunks that a reader wants and no download has claimed.
fn next_run(state: &State, limit: usize) -> Option<Range<usize>> {
    state.demands.iter().find_map(|(_, demand)| {
        let missing = demand.clone().find(|index| !state.stored[*index] && !state.is_claimed(*index))?;
        Some(run_at(state, missing, demand.end, limit))
    })
}

fn spawn(version: &Arc<Version>, state: &mut State, run: Range<usize>, limit: usize) -> io::Result<()> {
    let number = state.new_number();
    state.claims.push((number, run.clone()));
    let download = Download { version: Arc::clone(version), number, limit, finishes: false };
    threads::spawn("download", move || download.run(run)).map(drop).inspect_err(|_| {
        state.claims.retain(|(claim, _)| *claim != number);
    })
}

/// One download. Dropping it gives up its claim, even after a panic, so that nobody waits for it.
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
    fn run(mut self, first: Range<usize>) {
        let version = Arc::clone(&self.version);
        let mut durable = Durable::new();
        let mut claim = Some(first);
        while let Some(run) = claim {
            if let Err(error) = self.fetch(run, &mut durable) {
                version.state().failure = Some(error.to_string());
                break;
            }
            claim = self.next_claim();
        }
        durable.finish(&version);
        {
            let mut state = version.state();
            state.claims.retain(|(number, _)| *number != self.number);
            // The last download renames the file.
            self.finishes =
                state.claims.is_empty() && !state.finishing && state.place == Place::Part && state.is_whole();
            state.finishing |= self.finishes;
        }
        if self.finishes {
            durable::finish(&version);
        }
    }

    /// Claims the next chunks. The old claim ends under the same lock, so no two downloads fetch the same chunk.
    fn next_claim(&self) -> Option<Range<usize>> {
        let mut state = self.version.state();
        let mine = state.claims.iter().position(|(number, _)| *number == self.number)?;
        state.claims[mine].1 = 0..0;
        let run = if state.place == Place::Nowhere { None } else { next_run(&state, self.limit) };
        match &run {
            Some(run) => state.claims[mine].1 = run.clone(),
            // A reader whose chunk was claimed but not fetched starts a download of its own.
            None => self.version.notify(),
        }
        run
    }

    /// Fetches chunks until the run ends, the next one is stored already, or nobody wants it.
    fn fetch(&self, run: Range<usize>, durable: &mut Durable) -> io::Result<()> {
        let version = &self.version;
        let mut stream = ChunkStream::new(run.clone());
        let mut spare = PageBuffer::default();
        for index in run {
            if !self.is_needed(index) {
                return Ok(());
            }
            let expected = version.state().hashes.get(index).copied();
            let mut bytes = std::mem::take(&mut spare);
            let hash = stream.read(version, index, &mut bytes, expected)?;
            match self.store(index, bytes, hash, expected.is_none())? {
                Some(buffer) => spare = buffer,
                None => return Ok(()),
            }
            version.report();
            durable.now_and_then(version);
        }
        Ok(())
    }

    /// Whether the chunk still has to be fetched. If so, the claim begins there.
    fn is_needed(&self, index: usize) -> bool {
        let mut state = self.version.state();
        if state.demands.is_empty() {
            log::info!("{}: the download stops at chunk {index}, no client is left", self.version.entry.big.display());
        }
        let needed = !state.stored[index] && state.is_wanted(index) && state.place != Place::Nowhere;
        if needed && let Some((_, claim)) = state.claims.iter_mut().find(|(number, _)| *number == self.number) {
            claim.start = index;
        }
        needed
    }

    /// Puts a chunk into the file and wakes the readers that wait for it. Returns a buffer for reuse, or none if the chunk cannot
    /// be written.
    fn store(&self, index: usize, bytes: PageBuffer, hash: ChunkHash, is_new: bool) -> io::Result<Option<PageBuffer>> {
        let version = &self.version;
        let Some(file) = &version.file else { return Ok(None) };
        if let Err(error) = file.write_all_at(&bytes, version.bytes_of(index..index + 1).start) {
            if !is_new {
                // A reader that waits for it need not fetch it once more.
                version.state().recent = Some((index, Arc::new(bytes)));
            }
            version.end_caching(&error);
            return Ok(None);
        }
        if is_new {
            let mut prefix = lock(&version.prefix);
            prefix.add(&bytes);
            let seen = prefix.clone();
            drop(prefix);
            // No reader has the last chunk yet, so none has a complete wrong model.
            if version.is_refuted_by(&seen) {
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
