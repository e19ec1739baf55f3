//! Chunks and their hashes.

use sha2::{Digest, Sha256};

use super::ChunkHash;
use crate::security::Absorb;

/// The most chunks that a big part has.
pub const MAX_CHUNKS: u64 = 4096;

/// The length of a chunk of any but the longest big parts.
const SMALLEST_CHUNK: u64 = 1 << 20;

/// The longest big part: whoever names a longer one wants memory for its chunks.
pub const MAX_BIG_PART: u64 = 256 << 30;

/// The length of the chunks of a big part: 1 MiB, doubled until at most [`MAX_CHUNKS`] are enough.
pub fn chunk_size(length: u64) -> u64 {
    let mut chunk = SMALLEST_CHUNK;
    while length.div_ceil(chunk) > MAX_CHUNKS {
        chunk *= 2;
    }
    chunk
}

/// The chunks of a big part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkHashes {
    /// Length of the big part in bytes.
    pub length: u64,
    /// Length of every chunk but the last, which may be shorter.
    pub chunk: u64,
    /// SHA-256 of each.
    pub hashes: Vec<ChunkHash>,
}

/// Hashes a stream chunk by chunk, although the length of a chunk depends on that of the stream, which is known at its end.
///
/// The hash of a chunk cannot be made of the hashes of its halves. So every length of a chunk that is still possible is hashed
/// at once. A stream whose length is nearly known, from a `Content-Length`, has one; only one that can have any length up to
/// 16 GiB has three, and the smallest of them ends when the stream has outgrown it.
#[derive(Clone)]
pub struct ChunkHasher {
    /// By the length of the chunk.
    levels: Vec<Level>,
    length: u64,
}

#[derive(Clone)]
struct Level {
    chunk: u64,
    hashes: Vec<ChunkHash>,
    running: Sha256,
    /// Bytes in `running`.
    filled: u64,
}

impl ChunkHasher {
    /// For a stream that will have at least `shortest` bytes and at most `longest`.
    pub fn new(shortest: u64, longest: u64) -> Self {
        let longest = longest.min(MAX_BIG_PART);
        let (mut chunk, largest) = (chunk_size(shortest.min(longest)), chunk_size(longest));
        let mut levels = Vec::new();
        while chunk <= largest {
            levels.push(Level { chunk, hashes: Vec::new(), running: Sha256::new(), filled: 0 });
            chunk *= 2;
        }
        Self { levels, length: 0 }
    }

    /// The hashes of all bytes; none if there were more or fewer of them than announced.
    pub fn finish(self) -> Option<ChunkHashes> {
        let chunk = chunk_size(self.length);
        let mut level = self.levels.into_iter().find(|level| level.chunk == chunk)?;
        if level.filled > 0 {
            level.end_chunk();
        }
        Some(ChunkHashes { length: self.length, chunk, hashes: level.hashes })
    }
}

impl Absorb for ChunkHasher {
    fn absorb(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        // What is outgrown is not needed any more, whatever comes.
        self.levels.retain(|level| level.chunk.saturating_mul(MAX_CHUNKS) >= self.length);
        self.levels.iter_mut().for_each(|level| level.absorb(bytes));
    }
}

impl Level {
    fn absorb(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = usize::try_from(self.chunk - self.filled).unwrap_or(usize::MAX);
            let (head, rest) = bytes.split_at(room.min(bytes.len()));
            self.running.update(head);
            self.filled += head.len() as u64;
            if self.filled == self.chunk {
                self.end_chunk();
            }
            bytes = rest;
        }
    }

    fn end_chunk(&mut self) {
        self.hashes.push(self.running.finalize_reset().into());
        self.filled = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_chunk_doubles_when_4096_are_not_enough() {
        for (length, chunk) in [
            (0, MIB),
            (1, MIB),
            (4096 * MIB, MIB),
            (4096 * MIB + 1, 2 * MIB),
            (8192 * MIB, 2 * MIB),
            (8192 * MIB + 1, 4 * MIB),
        ] {
            assert_eq!(chunk_size(length), chunk, "{length}");
        }
        // An absurd length ends, and overflows nothing.
        assert_eq!(chunk_size(u64::MAX).trailing_zeros(), 52);
    }

    #[test]
    fn the_hashes_are_those_of_the_chunks_whatever_portions_come() {
        for length in [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 7] {
            let bytes: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            let expected: Vec<ChunkHash> =
                bytes.chunks(MIB as usize).map(|chunk| Sha256::digest(chunk).into()).collect();
            for portion in [65_537, MIB as usize, usize::MAX] {
                let mut hasher = ChunkHasher::new(0, u64::from(u32::MAX) * 4);
                bytes.chunks(portion).for_each(|bytes| hasher.absorb(bytes));
                assert_eq!(hasher.finish(), Some(ChunkHashes { length, chunk: MIB, hashes: expected.clone() }));
            }
        }
    }

    /// Long streams, of which nothing but the count of chunks is looked at: a level of one byte a chunk stands for one of a MiB.
    #[test]
    fn levels_that_are_outgrown_go_and_the_next_has_seen_everything() {
        let level = |chunk| Level { chunk, hashes: Vec::new(), running: Sha256::new(), filled: 0 };
        let mut hasher = ChunkHasher { levels: vec![level(1), level(2), level(4)], length: 0 };
        let bytes: Vec<u8> = (0..4096 * 2 + 1).map(|i| (i % 251) as u8).collect();
        bytes.chunks(100).for_each(|bytes| hasher.absorb(bytes));
        assert_eq!(hasher.levels.iter().map(|level| level.chunk).collect::<Vec<_>>(), [4]);
        assert_eq!(hasher.levels[0].hashes.len(), 2048);
        assert_eq!(hasher.levels[0].hashes[2047], <ChunkHash>::from(Sha256::digest(&bytes[8188..8192])));
    }

    #[test]
    fn a_length_that_is_known_costs_one_hash() {
        assert_eq!(ChunkHasher::new(5_000 * MIB, 5_001 * MIB).levels.len(), 1);
        assert_eq!(ChunkHasher::new(0, 16_384 * MIB).levels.len(), 3);
        assert_eq!(ChunkHasher::new(0, u64::MAX).levels.len(), 7);
        // More than was announced is found out, not mislabelled.
        let mut hasher = ChunkHasher::new(5_000 * MIB, 5_001 * MIB);
        hasher.absorb(b"much less");
        assert_eq!(hasher.finish(), None);
    }
}
