//! SHA-256 of bytes that pass by, and a reader that does not end well unless they match.

use std::fmt;
use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

use super::HashBeside;

/// A running SHA-256. Cloning it keeps the state so far.
#[derive(Clone, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all bytes added, in lower-case hex.
    #[must_use]
    pub fn finish(self) -> String {
        hex(&self.0.finalize())
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
    Matched,
    Mismatched,
}

impl<R: Read> VerifyReader<R> {
    /// Expects the bytes of `source`, behind those that `hasher` has seen already, to have the SHA-256 `expected`
    /// (lower-case hex).
    pub fn new(source: R, hasher: Hasher, expected: impl Into<String>) -> Self {
        Self { source, expected: expected.into(), state: State::Hashing(hasher.into()) }
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
            let matched = std::mem::take(hasher).into_hasher().finish() == self.expected;
            self.state = if matched { State::Matched } else { State::Mismatched };
        }
        match self.state {
            State::Mismatched => Err(io::Error::new(io::ErrorKind::InvalidData, HashMismatch)),
            _ => Ok(0),
        }
    }
}

/// Passes bytes on to a sink while it hashes and counts them.
#[derive(Default)]
pub struct HashWriter<W> {
    /// Where the bytes go.
    pub sink: W,
    /// The hash of the bytes so far.
    pub hasher: HashBeside,
    /// How many bytes there were so far.
    pub length: u64,
}

impl<W: Write> Write for HashWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.sink.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.length += count as u64;
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
    fn the_right_hash_ends_well_with_a_hasher_that_saw_the_beginning() {
        let mut hasher = Hasher::default();
        hasher.update(b"ab");
        let mut out = Vec::new();
        VerifyReader::new(&b"c"[..], hasher, sha256_hex(b"abc")).read_to_end(&mut out).unwrap();
        assert_eq!(out, b"c");
    }
}
