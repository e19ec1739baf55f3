//! SHA-256: of bytes in memory, of a file, and of a stream on its way to a sink.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Absorb, BackgroundHasher};
use crate::constants::CHUNK;
use crate::page_buffer::PageBuffer;

/// A running SHA-256. Cloning it keeps the state so far.
#[derive(Clone, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// A hasher that has seen a range of a file. If the file ends before the range does, that is an error.
    pub fn of_range(file: &File, range: Range<u64>) -> io::Result<Self> {
        let mut hasher = Self::default();
        let mut buffer = PageBuffer::new(CHUNK);
        let mut position = range.start;
        while position < range.end {
            let limit = buffer.len().min((range.end - position) as usize);
            file.read_exact_at(&mut buffer[..limit], position)?;
            hasher.update(&buffer[..limit]);
            position += limit as u64;
        }
        Ok(hasher)
    }

    /// The hash of all bytes added.
    pub fn finish(self) -> Sha256Hash {
        Sha256Hash(self.0.finalize().into())
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

/// A SHA-256. Its text form is lower-case hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Sha256Hash([u8; 32]);

impl Sha256Hash {
    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Reads the text form.
    pub fn parse(text: &str) -> Option<Self> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let digits: &[u8; 64] = text.as_bytes().try_into().ok()?;
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(hash))
    }
}

impl fmt::Display for Sha256Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl From<Sha256Hash> for String {
    fn from(hash: Sha256Hash) -> Self {
        hash.to_string()
    }
}

impl TryFrom<String> for Sha256Hash {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("not a SHA-256 in lower-case hex")
    }
}

/// The SHA-256 of a small part, which identifies one version of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SmallHash(Sha256Hash);

impl SmallHash {
    /// The hash of a small part.
    pub fn of(small: &[u8]) -> Self {
        Self(Sha256Hash::of(small))
    }

    /// Reads the text form.
    pub fn parse(text: &str) -> Option<Self> {
        Sha256Hash::parse(text).map(Self)
    }

    /// The beginning of the hash, which names the version's generation in the CDN.
    pub fn generation(&self) -> String {
        hex(&self.0.0[..8])
    }
}

impl fmt::Display for SmallHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_read_back_from_its_text_and_nothing_else_is_one() {
        let hash = SmallHash::of(b"small");
        let text = hash.to_string();
        assert_eq!((SmallHash::parse(&text), hash.generation()), (Some(hash), text[..16].to_owned()));
        assert_eq!(serde_json::to_string(&hash).unwrap(), format!("\"{text}\""));
        for bad in ["", &text[1..], &text.to_ascii_uppercase(), &"g".repeat(64), &format!("{text}0")] {
            assert_eq!(SmallHash::parse(bad), None, "{bad:?}");
            assert!(serde_json::from_str::<SmallHash>(&format!("\"{bad}\"")).is_err());
        }
    }
}
