//! The JSON records of cached files.

use std::io;
use std::path::{Path, PathBuf};

use jwt_simple::reexports::ct_codecs::{Base64, Decoder, Encoder};
use serde::{Deserialize, Serialize};

use super::old_upload::OldObject;
use crate::manifest::{MAX_CHUNKS, MAX_MANIFEST_BYTES, chunk_size, claimed_plain_length};
use crate::security::SmallHash;
use crate::storage::{read_document, read_document_up_to, write_document};

/// A hash of 32 bytes in base64 twice.
const MANIFEST_BYTES_PER_CHUNK: usize = 60;

/// What a cached big part is, and what its chunks are compared with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) small_sha256: SmallHash,
    /// The text of the manifest: the uploader's, or for an old upload the one that this box made. None until an old upload has
    /// been downloaded.
    pub(super) manifest: Option<String>,
    pub(super) old: Option<OldObject>,
}

impl Record {
    pub(super) fn read(path: &Path) -> Option<Self> {
        read_document_up_to(2 * MAX_MANIFEST_BYTES, path)
    }

    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        write_document(self, path)
    }

    /// Length of the plaintext, for display: nothing is verified here.
    pub(super) fn plain_length(&self) -> Option<u64> {
        match &self.old {
            Some(old) => Some(old.plain_length),
            None => claimed_plain_length(self.manifest.as_deref()?),
        }
    }

    /// The most disk space that a download of this many bytes takes before it is in place: its chunks and what a file system
    /// needs to find them, two copies of this record, and a few short ones.
    pub(super) fn download_size(&self, length: u64) -> u64 {
        let old = || length.div_ceil(chunk_size(length)) as usize * MANIFEST_BYTES_PER_CHUNK;
        let record = self.manifest.as_ref().map_or_else(old, String::len) as u64;
        length + length / 512 + 2 * record + 32 * 1024
    }
}

/// The bitmap of an unfinished download.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartRecord {
    pub(super) small_sha256: SmallHash,
    /// The chunks that are certainly on the disk, one bit each, in base64. After a power cut the file may hold others, with any
    /// content.
    chunks: String,
}

impl PartRecord {
    pub(super) fn new(small: SmallHash, stored: &[bool]) -> Self {
        let mut bits = vec![0_u8; stored.len().div_ceil(8)];
        for (index, _) in stored.iter().enumerate().filter(|(_, stored)| **stored) {
            bits[index / 8] |= 1 << (index % 8);
        }
        // Encoding fails only for lengths that no memory holds.
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

/// Where the record of a big part is.
pub(super) fn record_of(big: &Path) -> PathBuf {
    with_suffix(big, ".json")
}

/// Unlike `with_extension`, keeps the model's own extension.
pub(super) fn with_suffix(big: &Path, suffix: &str) -> PathBuf {
    let mut path = big.as_os_str().to_owned();
    path.push(suffix);
    path.into()
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
            // Chunks past the bitmap are not there.
            assert_eq!(record.stored(count + 20)[count + 8..], [false; 12]);
        }
        let garbage = PartRecord { small_sha256: SmallHash::of(b"small"), chunks: "?".repeat(100_000) };
        assert_eq!(garbage.stored(3), [false; 3]);
    }
}
