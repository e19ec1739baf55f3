//! The small documents beside cached files.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use jwt_simple::reexports::ct_codecs::{Base64, Decoder, Encoder};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cdn_manager::BigObject;
use crate::manifest::{MAX_CHUNKS, MAX_MANIFEST_BYTES};
use crate::security::{Sha256Hash, SmallHash};
use crate::storage::{read_document, write_document};

/// What a cached big part is, and what its chunks are compared with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) small_sha256: SmallHash,
    /// The manifest as text: the uploader's, or for an old upload the one that this box has made. None while an old upload
    /// is being downloaded.
    pub(super) manifest: Option<String>,
    /// What the CDN said of an old upload, which has no manifest there.
    pub(super) old: Option<OldObject>,
}

/// An object without a manifest, as the CDN described it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OldObject {
    pub(super) key: String,
    pub(super) etag: Option<String>,
    pub(super) sha256: Option<Sha256Hash>,
    pub(super) small_sha256: Option<SmallHash>,
    pub(super) length: u64,
    pub(super) plain_length: u64,
}

impl OldObject {
    pub(super) fn new(object: &BigObject, plain_length: u64) -> Self {
        let BigObject { key, etag, sha256, small, length, .. } = object.clone();
        Self { key, etag, sha256, small_sha256: small, length, plain_length }
    }

    /// Whether anything tells it from another object under the same key.
    pub(super) fn is_identified(&self) -> bool {
        self.etag.is_some() || self.sha256.is_some()
    }
}

impl Record {
    pub(super) fn read(path: &Path) -> Option<Self> {
        read_long(path)
    }

    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        write_document(self, path)
    }
}

/// How far a download has come.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartRecord {
    pub(super) small_sha256: SmallHash,
    /// The chunks that are on the disk for certain, one bit each, in base64. After a power cut the file may hold more, with
    /// anything in it.
    chunks: String,
}

impl PartRecord {
    pub(super) fn new(small: SmallHash, stored: &[bool]) -> Self {
        let mut bits = vec![0_u8; stored.len().div_ceil(8)];
        for (index, _) in stored.iter().enumerate().filter(|(_, stored)| **stored) {
            bits[index / 8] |= 1 << (index % 8);
        }
        // Encoding fails for lengths only that no memory holds.
        let chunks = Base64::encode_to_string(bits).unwrap_or_default();
        Self { small_sha256: small, chunks }
    }

    pub(super) fn read(path: &Path) -> Option<Self> {
        read_document(path)
    }

    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        write_document(self, path)
    }

    /// Which of `count` chunks are on the disk.
    pub(super) fn stored(&self, count: usize) -> Vec<bool> {
        let bits =
            if self.chunks.len() as u64 <= MAX_CHUNKS { Base64::decode_to_vec(&self.chunks, None).ok() } else { None };
        let bits = bits.unwrap_or_default();
        (0..count).map(|index| bits.get(index / 8).is_some_and(|byte| byte & (1 << (index % 8)) != 0)).collect()
    }
}

/// As [`read_document`], for a document that holds a manifest.
fn read_long<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let mut json = Vec::new();
    File::open(path).ok()?.take(2 * MAX_MANIFEST_BYTES).read_to_end(&mut json).ok()?;
    serde_json::from_slice(&json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_record_remembers_every_chunk() {
        for count in [0, 1, 7, 8, 9, 4096] {
            let stored: Vec<bool> = (0..count).map(|index| index % 3 == 0).collect();
            let record = PartRecord::new(SmallHash::of(b"small"), &stored);
            assert_eq!(record.stored(count), stored);
            // Less or more chunks than it knows of are not there.
            assert_eq!(record.stored(count + 20)[count + 8..], [false; 12]);
        }
        let garbage = PartRecord { small_sha256: SmallHash::of(b"small"), chunks: "?".repeat(100_000) };
        assert_eq!(garbage.stored(3), [false; 3]);
    }
}
