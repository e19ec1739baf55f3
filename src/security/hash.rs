//! SHA-256 of bytes that pass by.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

use super::{Absorb, BackgroundHasher};
use crate::constants::CHUNK;

/// A running SHA-256. Cloning it keeps the state so far.
#[derive(Clone, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
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
    pub fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

impl Absorb for Hasher {
    fn absorb(&mut self, bytes: &[u8]) {
        self.update(bytes);
    }
}

/// SHA-256 of `bytes` in lower-case hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes in lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether `text` is a SHA-256 in lower-case hex.
pub fn is_sha256_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// An old upload does not have the hash that the CDN recorded for it. As an [`io::Error`] it has the kind `InvalidData`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashMismatch;

impl fmt::Display for HashMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the SHA-256 of the big part is not the recorded one: the data is damaged; upload the model again")
    }
}

impl std::error::Error for HashMismatch {}

/// Passes bytes on to a sink while it hashes them, as a whole and by chunks.
pub struct HashWriter<W, H: Absorb> {
    /// Where the bytes go.
    pub sink: W,
    /// The hash of the bytes so far, where it is needed.
    pub whole: Option<BackgroundHasher<Hasher>>,
    /// The hashes of their chunks.
    pub chunks: BackgroundHasher<H>,
}

impl<W, H: Absorb> HashWriter<W, H> {
    /// Begins with nothing hashed.
    pub fn new(sink: W, whole: bool, chunks: H) -> Self {
        let whole = whole.then(|| BackgroundHasher::new(Hasher::default()));
        Self { sink, whole, chunks: BackgroundHasher::new(chunks) }
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
