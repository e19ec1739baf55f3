//! What this process has hashed from end to end, and stretches that are checked by it.
//!
//! A range of a model may be given out without reading the whole only if it is checked all the same. Every whole read of a
//! big part (a download into the cache, a load from it) leaves a [`Proof`]; with it the bytes around a range tell whether
//! they are still the right ones, whatever has happened to the file since.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::constants::CHUNK;
use crate::security::{HashMismatch, Hasher, Proof};

/// How many big parts are remembered; a model of 1 GiB takes 15 KiB.
const REMEMBERED: usize = 32;

/// The proofs of this process, the latest last.
#[derive(Default)]
pub(super) struct Proofs(Mutex<Vec<Arc<Proof>>>);

impl Proofs {
    pub(super) fn add(&self, proof: Proof) {
        let mut proofs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        proofs.retain(|known| known.sha256() != proof.sha256());
        if proofs.len() == REMEMBERED {
            proofs.remove(0);
        }
        proofs.push(Arc::new(proof));
    }

    /// The proof of bytes with this SHA-256.
    pub(super) fn of(&self, sha256: &str) -> Option<Arc<Proof>> {
        let proofs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        proofs.iter().find(|proof| proof.sha256() == sha256).cloned()
    }
}

/// Reads a stretch of a file. Its end comes only when the bytes from the checkpoint before it to the one behind it were
/// hashed and are the right ones.
pub(super) struct StretchReader {
    file: File,
    proof: Arc<Proof>,
    hasher: Hasher,
    position: u64,
    stretch: Range<u64>,
    /// The next checkpoint.
    border: u64,
    failed: bool,
}

impl StretchReader {
    /// None for a stretch that is not in the file.
    pub(super) fn new(file: File, proof: Arc<Proof>, stretch: Range<u64>) -> Option<Self> {
        if stretch.start > stretch.end || stretch.end > proof.length() {
            return None;
        }
        let (position, hasher) = proof.checkpoint_before(stretch.start);
        let border = proof.checkpoint_after(position + 1);
        Some(Self { file, proof, hasher, position, stretch, border, failed: false })
    }

    /// Reads on to `end` at most, into `out`, and checks whenever a checkpoint is reached.
    fn advance(&mut self, out: &mut [u8], end: u64) -> io::Result<usize> {
        let room = usize::try_from(end.min(self.border) - self.position).unwrap_or(usize::MAX).min(out.len());
        let count = self.file.read_at(&mut out[..room], self.position)?;
        if count == 0 && room > 0 {
            return Err(self.damaged());
        }
        self.hasher.update(&out[..count]);
        self.position += count as u64;
        if self.position == self.border {
            if !self.proof.confirms(&self.hasher) {
                return Err(self.damaged());
            }
            self.border = self.proof.checkpoint_after(self.border + 1);
        }
        Ok(count)
    }

    /// Reads and discards up to `end`.
    fn pass(&mut self, end: u64) -> io::Result<()> {
        let mut waste = vec![0; if self.position < end { CHUNK } else { 0 }];
        while self.position < end {
            self.advance(&mut waste, end)?;
        }
        Ok(())
    }

    fn damaged(&mut self) -> io::Error {
        self.failed = true;
        io::Error::new(io::ErrorKind::InvalidData, HashMismatch)
    }
}

impl Read for StretchReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.failed {
            return Err(self.damaged());
        }
        if out.is_empty() {
            return Ok(0);
        }
        self.pass(self.stretch.start)?;
        if self.position < self.stretch.end {
            return self.advance(out, self.stretch.end);
        }
        self.pass(self.proof.checkpoint_after(self.stretch.end))?;
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const MIB: usize = 1 << 20;

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn a_stretch_is_given_out_whole_only_if_what_surrounds_it_is_right() {
        let mut bytes: Vec<u8> = (0..20 * MIB).map(|i| (i % 251) as u8).collect();
        let mut hasher = Hasher::default();
        hasher.update(&bytes);
        let proof = Arc::new(hasher.prove());
        let read = |file: &File, stretch: Range<usize>| {
            let stretch = stretch.start as u64..stretch.end as u64;
            let mut out = Vec::new();
            let mut reader = StretchReader::new(file.try_clone().unwrap(), Arc::clone(&proof), stretch).unwrap();
            reader.read_to_end(&mut out).map(|_| out)
        };
        let stretches =
            [0..1, 0..20 * MIB, 5..8 * MIB, 8 * MIB..8 * MIB + 1, 9 * MIB..17 * MIB, 20 * MIB - 1..20 * MIB];
        let file = file_of(&bytes);
        for stretch in stretches.clone() {
            assert!(read(&file, stretch.clone()).unwrap() == bytes[stretch]);
        }
        // A byte before, in and behind each stretch, in the same eight MiB.
        for damaged in [2, 8 * MIB + 20, 19 * MIB] {
            bytes[damaged] ^= 1;
            let file = file_of(&bytes);
            for stretch in stretches.clone() {
                let touched = stretch.start / (8 * MIB)..stretch.end.max(1).div_ceil(8 * MIB);
                let hit = touched.contains(&(damaged / (8 * MIB)));
                assert_eq!(read(&file, stretch.clone()).is_err(), hit, "{stretch:?}, byte {damaged}");
            }
            bytes[damaged] ^= 1;
        }
        bytes.truncate(19 * MIB);
        assert!(read(&file_of(&bytes), 18 * MIB..20 * MIB).is_err());
    }
}
