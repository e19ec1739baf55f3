//! Reads the bytes of a version in order. Each chunk is proven before its first byte is given out.
//!
//! Chunks from the file are hashed on a background thread while earlier ones are decrypted and sent, since hashing is the
//! slowest stage of a load.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

use super::chunk_stream::ChunkStream;
use super::download::{self, Chunk};
use super::old_upload::Prefix;
use super::version::{Demand, Version};
use crate::manifest::ChunkHash;
use crate::page_buffer::PageBuffer;
use crate::security::HashMismatch;
use crate::threads::{self, lock};

/// The number of chunks hashed ahead of the current one.
const AHEAD: usize = 2;

/// During a download fewer are enough: its threads hash too, and hold chunks in memory.
const AHEAD_OF_DOWNLOAD: usize = 1;

/// The buffer of the last reader that came to its end. Without it, a read of a few bytes would spend a quarter of its time on the
/// page faults of a new one.
static LEFT: Mutex<Option<PageBuffer>> = Mutex::new(None);

/// The largest buffer that is kept: chunks of very large models are larger.
const MAX_LEFT: usize = 2 << 20;

/// See the module. A read that fails gives out no byte of the chunk that could not be proven.
pub struct ChunkReader {
    version: Arc<Version>,
    demand: Demand,
    /// The chunks after the current one.
    rest: Range<usize>,
    /// The next chunk to send to the prover.
    ahead: usize,
    /// The chunks that the prover has, and the hashes that they must have.
    pending: VecDeque<(usize, ChunkHash)>,
    prover: Option<Prover>,
    /// A buffer for reuse.
    spare: Option<PageBuffer>,
    current: Option<Arc<PageBuffer>>,
    /// The bytes that have not been given out yet.
    bytes: Range<u64>,
    /// A download for this reader alone, if chunks cannot be stored.
    own: Option<ChunkStream>,
    /// For an old upload that is downloaded for this reader alone.
    prefix: Option<Prefix>,
}

impl ChunkReader {
    fn new(version: Arc<Version>, bytes: Range<u64>, is_for_client: bool) -> Self {
        let bytes = bytes.start..bytes.end.min(version.length).max(bytes.start);
        let chunks = if bytes.is_empty() {
            0..0
        } else {
            (bytes.start / version.chunk) as usize..bytes.end.div_ceil(version.chunk) as usize
        };
        let demand = version.demand(chunks.clone(), is_for_client);
        Self {
            version,
            demand,
            ahead: chunks.start,
            rest: chunks,
            pending: VecDeque::new(),
            prover: None,
            spare: None,
            current: None,
            bytes,
            own: None,
            prefix: None,
        }
    }

    fn next_chunk(&mut self) -> io::Result<()> {
        if let Some(Ok(buffer)) = self.current.take().map(Arc::try_unwrap) {
            self.spare = Some(buffer);
        }
        let index = self.rest.start;
        self.version.advance(self.demand, index);
        self.read_ahead();
        self.current = Some(match self.proven(index) {
            Some(bytes) => Arc::new(bytes),
            None => self.wait_for(index)?,
        });
        self.rest.start = index + 1;
        self.ahead = self.ahead.max(self.rest.start);
        if self.ahead == self.rest.end {
            self.spare = None;
        }
        Ok(())
    }

    /// Sends the next chunks to the prover, as far as they are in the file.
    fn read_ahead(&mut self) {
        let depth = if self.version.is_complete() { AHEAD } else { AHEAD_OF_DOWNLOAD };
        let worth_a_thread = self.prover.is_some() || self.rest.len() > 1;
        while worth_a_thread && self.pending.len() < depth && self.ahead < self.rest.end {
            let Some(expected) = self.version.stored(self.ahead) else { return };
            if self.prover.is_none() {
                self.prover = Prover::start();
            }
            let Some(prover) = &self.prover else { return };
            let mut buffer = take_buffer(&mut self.spare);
            if !self.version.read_stored(self.ahead, &mut buffer) {
                self.spare = Some(buffer);
                self.version.mark_bad(self.ahead);
                return;
            }
            if !prover.send(buffer) {
                return;
            }
            self.pending.push_back((self.ahead, expected));
            self.ahead += 1;
        }
    }

    /// The chunk at `index`, if it was sent to the prover and has its hash.
    fn proven(&mut self, index: usize) -> Option<PageBuffer> {
        let (_, expected) = self.pending.front().copied().filter(|(pending, _)| *pending == index)?;
        self.pending.pop_front();
        let (bytes, hash) = self.prover.as_ref()?.receive()?;
        if hash == expected {
            return Some(bytes);
        }
        self.spare = Some(bytes);
        None
    }

    /// The chunk at `index`, from a download or the file.
    fn wait_for(&mut self, index: usize) -> io::Result<Arc<PageBuffer>> {
        loop {
            let mut buffer = take_buffer(&mut self.spare);
            match download::wait_for(&self.version, index, self.demand)? {
                Chunk::Recent(bytes) => return Ok(bytes),
                Chunk::Stored(expected) => {
                    if self.version.read_stored(index, &mut buffer) && digest(&buffer) == expected {
                        return Ok(Arc::new(buffer));
                    }
                    self.spare = Some(buffer);
                    self.version.mark_bad(index);
                }
                Chunk::Fetch(expected) => {
                    self.fetch(index, &mut buffer, expected)?;
                    return Ok(Arc::new(buffer));
                }
            }
        }
    }

    /// Fetches a chunk that cannot be stored.
    fn fetch(&mut self, index: usize, buffer: &mut PageBuffer, expected: Option<ChunkHash>) -> io::Result<()> {
        let version = Arc::clone(&self.version);
        let mut own = match self.own.take() {
            Some(own) if own.position() == index => own,
            _ => ChunkStream::new(index..version.missing_from(index, self.rest.end)),
        };
        own.read(&version, index, buffer, expected)?;
        self.own = Some(own);
        if expected.is_some() {
            return Ok(());
        }
        // The chunks of an old upload have no known hashes, but the whole may have one.
        let prefix = self.prefix.get_or_insert_with(|| lock(&version.prefix).clone());
        if prefix.chunks != index {
            return Err(io::Error::other("the download was not in order; load the model again"));
        }
        prefix.add(buffer);
        if version.is_refuted_by(prefix) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, HashMismatch));
        }
        Ok(())
    }
}

impl Version {
    /// A reader of a range of the big part. An incomplete old upload has to be read as a whole.
    pub fn read(self: &Arc<Self>, range: Range<u64>) -> ChunkReader {
        ChunkReader::new(Arc::clone(self), range, true)
    }

    /// The same, for a download that no client waits for.
    pub fn read_in_background(self: &Arc<Self>, range: Range<u64>) -> ChunkReader {
        ChunkReader::new(Arc::clone(self), range, false)
    }

    /// The end of the missing chunks that begin at `index`.
    fn missing_from(&self, index: usize, end: usize) -> usize {
        let state = self.state();
        (index + 1..end).find(|next| state.stored[*next]).unwrap_or(end)
    }
}

impl Read for ChunkReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() || self.bytes.is_empty() {
            return Ok(0);
        }
        let chunk = (self.bytes.start / self.version.chunk) as usize;
        if chunk == self.rest.start {
            self.next_chunk()?;
        }
        let at = (self.bytes.start % self.version.chunk) as usize;
        let current = self.current.as_deref().and_then(|chunk| chunk.get(at..)).unwrap_or_default();
        let left = usize::try_from(self.bytes.end - self.bytes.start).unwrap_or(usize::MAX);
        let count = current.len().min(left).min(out.len());
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        out[..count].copy_from_slice(&current[..count]);
        self.bytes.start += count as u64;
        if self.bytes.is_empty() {
            // The client still has to receive the last bytes; that takes no memory here.
            self.prover = None;
            if let Some(Ok(buffer)) = self.current.take().map(Arc::try_unwrap)
                && buffer.capacity() <= MAX_LEFT
            {
                *lock(&LEFT) = Some(buffer);
            }
        }
        Ok(count)
    }
}

impl Drop for ChunkReader {
    fn drop(&mut self) {
        self.version.withdraw(self.demand);
    }
}

fn take_buffer(spare: &mut Option<PageBuffer>) -> PageBuffer {
    spare.take().or_else(|| lock(&LEFT).take()).unwrap_or_default()
}

pub(super) fn digest(bytes: &[u8]) -> ChunkHash {
    Sha256::digest(bytes).into()
}

/// Hashes chunks on another core.
struct Prover {
    send: Sender<PageBuffer>,
    receive: Receiver<(PageBuffer, ChunkHash)>,
}

impl Prover {
    /// None without a second core, or if no thread can be started: the caller then hashes itself.
    fn start() -> Option<Self> {
        if !threads::has_second_core() {
            return None;
        }
        let (send, chunks) = channel::<PageBuffer>();
        let (hashed, receive) = channel();
        let hash = move || {
            while let Ok(bytes) = chunks.recv() {
                let hash = digest(&bytes);
                if hashed.send((bytes, hash)).is_err() {
                    return;
                }
            }
        };
        threads::spawn("hash", hash).ok()?;
        Some(Self { send, receive })
    }

    /// False if the thread has panicked.
    fn send(&self, bytes: PageBuffer) -> bool {
        self.send.send(bytes).is_ok()
    }

    fn receive(&self) -> Option<(PageBuffer, ChunkHash)> {
        self.receive.recv().ok()
    }
}
