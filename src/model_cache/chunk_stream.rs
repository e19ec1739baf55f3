//! Chunks from the CDN, one after the other, each compared with its hash.

use std::fmt;
use std::io::{self, Read};
use std::ops::Range;

use sha2::{Digest, Sha256};

use super::version::Version;
use crate::manifest::ChunkHash;
use crate::page_buffer::PageBuffer;

/// How often a chunk is fetched in all if it arrives with the wrong hash.
const TRIES: usize = 2;

pub(super) struct ChunkStream {
    body: Option<Box<dyn Read + Send>>,
    /// The chunks that `body` has yet to deliver.
    chunks: Range<usize>,
}

impl ChunkStream {
    pub(super) fn new(chunks: Range<usize>) -> Self {
        Self { body: None, chunks }
    }

    pub(super) fn position(&self) -> usize {
        self.chunks.start
    }

    /// Reads and hashes the next chunk, whose index is `index`. If it does not have the expected hash, it is fetched again.
    pub(super) fn read(
        &mut self,
        version: &Version,
        index: usize,
        bytes: &mut PageBuffer,
        expected: Option<ChunkHash>,
    ) -> io::Result<ChunkHash> {
        for _ in 0..TRIES {
            self.chunks.start = index;
            let hash = self.read_once(version, bytes).inspect_err(|_| self.body = None)?;
            if expected.is_none_or(|expected| expected == hash) {
                self.chunks.start = index + 1;
                return Ok(hash);
            }
            log::warn!("chunk {index} of {} arrived from the CDN with the wrong hash", version.entry.big.display());
            self.body = None;
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, WrongChunk { index, is_old: version.is_old() }))
    }

    fn read_once(&mut self, version: &Version, bytes: &mut PageBuffer) -> io::Result<ChunkHash> {
        let range = version.bytes_of(self.chunks.start..self.chunks.start + 1);
        bytes.resize((range.end - range.start) as usize);
        let body = self.body.get_or_insert_with(|| version.open(version.bytes_of(self.chunks.clone())));
        let mut hasher = Sha256::new();
        for piece in bytes.chunks_mut(version.rate.piece()) {
            version.wait_for_rate(piece.len())?;
            body.read_exact(piece)?;
            hasher.update(piece);
        }
        if self.chunks.len() == 1 {
            // A body that was read to its end leaves its connection to the next request.
            let _ = body.read(&mut [0]);
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

impl fmt::Display for WrongChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
