//! The chunks of a big part and their hashes.

use sha2::{Digest, Sha256};

use super::ChunkHash;
use crate::security::Absorb;

/// The most chunks that a big part can have.
pub const MAX_CHUNKS: u64 = 4096;

/// The length of a chunk in all but very long big parts.
const SMALLEST_CHUNK: u64 = 1 << 20;

/// The longest big part. A manifest or CDN that claims a longer one must not make this program reserve memory for it.
pub const MAX_BIG_PART: u64 = 256 << 30;

/// The length of the chunks of a big part: 1 MiB, doubled until at most [`MAX_CHUNKS`] are enough.
pub fn chunk_size(length: u64) -> u64 {
    let mut chunk = SMALLEST_CHUNK;
    while length.div_ceil(chunk) > MAX_CHUNKS {
        chunk *= 2;
    }
    chunk
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkHashes {
    /// Length of the big part in bytes.
    pub length: u64,
    /// Length of every chunk but the last, which may be shorter.
    pub chunk: u64,
    pub hashes: Vec<ChunkHash>,
}

/// Hashes a stream chunk by chunk, although the length of a chunk depends on the length of the stream, which is known only at
/// its end.
///
/// The hash of a chunk cannot be computed from the hashes of its halves, so all chunk lengths that are still possible are
/// hashed in parallel. If a `Content-Length` nearly tells the length of the stream, there is only one. A stream of up to 16 GiB
/// has three, and the smallest is dropped when the stream has outgrown it.
#[derive(Clone)]
pub struct ChunkHasher {
    /// In order of the chunk length.
    levels: Vec<Level>,
    length: u64,
}

#[derive(Clone)]
struct Level {
    chunk: u64,
    hashes: Vec<ChunkHash>,
    running: Sha256,
    filled: u64,
}

impl ChunkHasher {
    /// For a stream of at least `shortest` and at most `longest` bytes.
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

    /// The hashes of all bytes; none if their number is not in the announced range.
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
        // The stream can no longer be so short.
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
        // An absurd length does not overflow.
        assert_eq!(chunk_size(u64::MAX).trailing_zeros(), 52);
    }

    #[test]
    fn the_hashes_do_not_depend_on_the_portions_that_are_written() {
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

    /// Only the number of chunks matters for long streams, so chunks of one byte stand for chunks of a MiB.
    #[test]
    fn an_outgrown_level_is_dropped_and_the_next_has_seen_everything() {
        let level = |chunk| Level { chunk, hashes: Vec::new(), running: Sha256::new(), filled: 0 };
        let mut hasher = ChunkHasher { levels: vec![level(1), level(2), level(4)], length: 0 };
        let bytes: Vec<u8> = (0..4096 * 2 + 1).map(|i| (i % 251) as u8).collect();
        bytes.chunks(100).for_each(|bytes| hasher.absorb(bytes));
        assert_eq!(hasher.levels.iter().map(|level| level.chunk).collect::<Vec<_>>(), [4]);
        assert_eq!(hasher.levels[0].hashes.len(), 2048);
        assert_eq!(hasher.levels[0].hashes[2047], <ChunkHash>::from(Sha256::digest(&bytes[8188..8192])));
    }

    #[test]
    fn a_known_length_needs_one_hash() {
        assert_eq!(ChunkHasher::new(5_000 * MIB, 5_001 * MIB).levels.len(), 1);
        assert_eq!(ChunkHasher::new(0, 16_384 * MIB).levels.len(), 3);
        assert_eq!(ChunkHasher::new(0, u64::MAX).levels.len(), 7);
        // A stream of another length than announced has no hashes.
        let mut hasher = ChunkHasher::new(5_000 * MIB, 5_001 * MIB);
        hasher.absorb(b"much less");
        assert_eq!(hasher.finish(), None);
    }
}
