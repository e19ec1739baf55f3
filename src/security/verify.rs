//! SHA-256 of bytes that pass by, and a reader that does not end well unless they match.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

use super::{Absorb, HashBeside};
use crate::constants::CHUNK;

/// How far apart the checkpoints of a [`Proof`] are, in bytes: so much at each end of a range is read besides it.
const CHECKPOINT: u64 = 8 << 20;

/// A running SHA-256. Cloning it keeps the state so far.
#[derive(Clone, Default)]
pub struct Hasher {
    sha: Sha256,
    length: u64,
    checkpoints: Vec<Sha256>,
}

impl Hasher {
    /// Adds `bytes`.
    pub fn update(&mut self, mut bytes: &[u8]) {
        loop {
            let room = CHECKPOINT - self.length % CHECKPOINT;
            if (bytes.len() as u64) < room {
                self.sha.update(bytes);
                self.length += bytes.len() as u64;
                return;
            }
            let (head, rest) = bytes.split_at(room as usize);
            self.sha.update(head);
            self.length += room;
            self.checkpoints.push(self.sha.clone());
            bytes = rest;
        }
    }

    /// One that has seen a range of a file.
    ///
    /// # Errors
    /// Those of the file, also where it ends before the range.
    pub fn of_range(file: &File, range: Range<u64>) -> io::Result<Self> {
        let mut hasher = Self::default();
        let mut buffer = vec![0; CHUNK];
        let mut position = range.start;
        while position < range.end {
            let limit = buffer.len().min((range.end - position) as usize);
            file.read_exact_at(&mut buffer[..limit], position)?;
            hasher.update(&buffer[..limit]);
            position += limit as u64;
        }
        Ok(hasher)
    }

    /// The hash of all bytes added, in lower-case hex.
    #[must_use]
    pub fn finish(self) -> String {
        hex(&self.sha.finalize())
    }

    /// The hash of all bytes added, and what it takes to check stretches of them later.
    #[must_use]
    pub fn prove(self) -> Proof {
        Proof { sha256: hex(&self.sha.finalize()), length: self.length, checkpoints: self.checkpoints }
    }
}

/// What is known of bytes that were hashed from end to end: their SHA-256, and its state every 8 MiB on the way (some
/// hundred bytes each). With it a stretch in the middle is checked without the bytes far from it: from the state before
/// it, hashing must come to the state behind it.
pub struct Proof {
    sha256: String,
    length: u64,
    checkpoints: Vec<Sha256>,
}

impl Proof {
    /// SHA-256 of all bytes, in lower-case hex.
    #[must_use]
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Length of all bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The last checkpoint that is not behind `position`, and the hasher there.
    #[must_use]
    pub fn checkpoint_before(&self, position: u64) -> (u64, Hasher) {
        let passed = ((position / CHECKPOINT) as usize).min(self.checkpoints.len());
        let sha = passed.checked_sub(1).map(|index| self.checkpoints[index].clone()).unwrap_or_default();
        let length = passed as u64 * CHECKPOINT;
        (length, Hasher { sha, length, checkpoints: Vec::new() })
    }

    /// The first checkpoint at or behind `position`; the end of all bytes is one.
    #[must_use]
    pub fn checkpoint_after(&self, position: u64) -> u64 {
        position.div_ceil(CHECKPOINT).saturating_mul(CHECKPOINT).min(self.length)
    }

    /// Whether `hasher`, which stands at a checkpoint, has seen the right bytes.
    #[must_use]
    pub fn confirms(&self, hasher: &Hasher) -> bool {
        let seen = hasher.sha.clone().finalize();
        if hasher.length == self.length {
            return hex(&seen) == self.sha256;
        }
        let index = (hasher.length / CHECKPOINT) as usize;
        let expected = index.checked_sub(1).and_then(|index| self.checkpoints.get(index));
        expected.is_some_and(|expected| expected.clone().finalize() == seen)
    }
}

/// SHA-256 of `bytes` in lower-case hex.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes in lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether `text` is a SHA-256 in lower-case hex.
#[must_use]
pub fn is_sha256_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The bytes read are not the ones expected. As an [`io::Error`] it has the kind `InvalidData`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashMismatch;

impl fmt::Display for HashMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the SHA-256 of the big part is not the recorded one: the data is damaged")
    }
}

impl std::error::Error for HashMismatch {}

/// Passes bytes through, and at the end of the source fails with [`HashMismatch`] unless their hash is the expected one.
/// Whoever holds back what it has read until the end of the stream gives out nothing complete that is wrong.
pub struct VerifyReader<R> {
    source: R,
    expected: String,
    state: State,
}

enum State {
    Hashing(HashBeside),
    Matched(Option<Proof>),
    Mismatched,
}

impl<R: Read> VerifyReader<R> {
    /// Expects the bytes of `source`, behind those that `hasher` has seen already, to have the SHA-256 `expected`
    /// (lower-case hex).
    pub fn new(source: R, hasher: Hasher, expected: impl Into<String>) -> Self {
        Self { source, expected: expected.into(), state: State::Hashing(hasher.into()) }
    }

    /// What was learned of the bytes, once, when their end was read and their hash was the expected one.
    pub fn take_proof(&mut self) -> Option<Proof> {
        match &mut self.state {
            State::Matched(proof) => proof.take(),
            _ => None,
        }
    }
}

impl<R: Read> Read for VerifyReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        if let State::Hashing(hasher) = &mut self.state {
            let count = self.source.read(out)?;
            if count > 0 {
                hasher.update(&out[..count]);
                return Ok(count);
            }
            let proof = std::mem::take(hasher).into_hasher().prove();
            let matched = proof.sha256 == self.expected;
            self.state = if matched { State::Matched(Some(proof)) } else { State::Mismatched };
        }
        match self.state {
            State::Mismatched => Err(io::Error::new(io::ErrorKind::InvalidData, HashMismatch)),
            _ => Ok(0),
        }
    }
}

/// Passes bytes on to a sink while it hashes them, as a whole and by chunks.
pub struct HashWriter<W, H: Absorb> {
    /// Where the bytes go.
    pub sink: W,
    /// The hash of the bytes so far, where it is needed.
    pub whole: Option<HashBeside>,
    /// The hashes of their chunks.
    pub chunks: HashBeside<H>,
}

impl<W, H: Absorb> HashWriter<W, H> {
    /// Begins with nothing hashed.
    pub fn new(sink: W, whole: bool, chunks: H) -> Self {
        Self { sink, whole: whole.then(HashBeside::default), chunks: chunks.into() }
    }
}

impl<W: Write, H: Absorb> Write for HashWriter<W, H> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.sink.write(bytes)?;
        if let Some(whole) = &mut self.whole {
            whole.update(&bytes[..count]);
        }
        self.chunks.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_hash_is_an_error_at_the_end_however_often_it_is_read() {
        let mut reader = VerifyReader::new(&b"abd"[..], Hasher::default(), sha256_hex(b"abc"));
        let mut out = [0; 8];
        assert_eq!(reader.read(&mut out).unwrap(), 3);
        for _ in 0..3 {
            assert!(reader.read(&mut out).unwrap_err().get_ref().unwrap().is::<HashMismatch>());
        }
    }

    #[test]
    fn a_proof_confirms_stretches_of_the_right_bytes_only() {
        let step = CHECKPOINT as usize;
        for length in [0, 5, step - 1, step, step + 1, 2 * step, 2 * step + 7] {
            let bytes: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            let mut hasher = Hasher::default();
            bytes.chunks(1_000_003).for_each(|bytes| hasher.update(bytes));
            assert_eq!(hasher.clone().finish(), sha256_hex(&bytes));
            let proof = hasher.prove();
            for position in [0, length / 2, length.saturating_sub(1), length] {
                let (start, at_start) = proof.checkpoint_before(position as u64);
                let end = proof.checkpoint_after(position as u64 + 1);
                assert!(start <= position as u64 && end >= position as u64 && end <= length as u64);
                let mut stretch = bytes[start as usize..end as usize].to_vec();
                let mut right = at_start.clone();
                right.update(&stretch);
                assert!(proof.confirms(&right), "length {length}, position {position}");
                if let Some(byte) = stretch.last_mut() {
                    *byte ^= 1;
                    let mut wrong = at_start;
                    wrong.update(&stretch);
                    assert!(!proof.confirms(&wrong), "length {length}, position {position}");
                }
            }
        }
    }

    #[test]
    fn the_right_hash_ends_well_with_a_hasher_that_saw_the_beginning() {
        let mut hasher = Hasher::default();
        hasher.update(b"ab");
        let mut out = Vec::new();
        VerifyReader::new(&b"c"[..], hasher, sha256_hex(b"abc")).read_to_end(&mut out).unwrap();
        assert_eq!(out, b"c");
    }
}
