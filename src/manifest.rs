//! The manifest of a big part: the signed hashes of its chunks, with which every byte of a model is proven before anybody gets
//! it (SPEC section 5).
//!
//! It is a text of one or two lines, each a compact JWS over the same payload. `jwt-simple` makes and checks the signatures;
//! the payload is checked here.

mod chunks;
mod key_files;
mod keys;

use std::fmt;

use jwt_simple::reexports::ct_codecs::{Base64UrlSafeNoPadding, Decoder, Encoder};
use serde::{Deserialize, Serialize};

use crate::names::ModelName;
use crate::security::{SmallHash, split_point};

pub use self::chunks::{ChunkHasher, ChunkHashes, MAX_BIG_PART, MAX_CHUNKS, chunk_size};
pub use self::key_files::Keygen;
pub use self::keys::ManifestKeys;

/// The longest manifest that is read. Two lines with 4,096 hashes have 480 KiB.
pub const MAX_MANIFEST_BYTES: u64 = 1 << 20;

pub type ChunkHash = [u8; 32];

/// The upload that a manifest has to describe.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub model: &'a ModelName,
    /// The version, by its small part.
    pub small: SmallHash,
    /// Length of the small part in bytes, if the part is at hand.
    pub small_length: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub chunks: ChunkHashes,
    /// Length of the plaintext in bytes.
    pub plain_length: u64,
}

/// Why a manifest is refused. The text of each follows "the manifest of models/m.bin".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManifestError {
    /// Longer than any manifest can be.
    TooLong,
    /// Line one was not signed with this installation's salt.
    Forged,
    /// `TRUSTED_KEYS_PATH` is set and there is no line two.
    Unsigned,
    /// Line two was not signed with a key in `TRUSTED_KEYS_PATH`.
    Untrusted,
    /// Signed, but this field is of another version than the requested one.
    OtherUpload(&'static str),
    /// Signed, but this field is impossible.
    Malformed(&'static str),
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "has more than {MAX_MANIFEST_BYTES} bytes; upload the model again"),
            Self::Forged => f.write_str(
                "was not made with this box's RESOURCE_KEY_SALT: the salt is wrong, or somebody has changed the manifest; \
                 check the salt, otherwise upload the model again",
            ),
            Self::Unsigned => f.write_str(
                "has no signature by a signing key, which TRUSTED_KEYS_PATH demands; \
                 upload the model again from a box with SIGNING_KEY_PATH",
            ),
            Self::Untrusted => f.write_str(
                "is signed by a key that is not in TRUSTED_KEYS_PATH; \
                 add the key, or upload the model again with a trusted one",
            ),
            Self::OtherUpload(field) => {
                write!(f, "is of another upload, its {field} is not the requested one; upload the model again")
            }
            Self::Malformed(field) => write!(f, "cannot be used, its {field} is not valid; upload the model again"),
        }
    }
}

/// The payload of both lines. Other claims are ignored.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Payload {
    v: u64,
    folder: String,
    filename: String,
    small_sha256: String,
    big_length: u64,
    plain_length: u64,
    chunk: u64,
    sha256: String,
}

impl Payload {
    fn new(subject: Subject<'_>, manifest: &Manifest) -> Self {
        let chunks = &manifest.chunks;
        Self {
            v: 1,
            folder: subject.model.folder.to_string(),
            filename: subject.model.file.to_string(),
            small_sha256: subject.small.to_string(),
            big_length: chunks.length,
            plain_length: manifest.plain_length,
            chunk: chunks.chunk,
            // Encoding fails only for lengths that no memory holds.
            sha256: Base64UrlSafeNoPadding::encode_to_string(chunks.hashes.as_flattened()).unwrap_or_default(),
        }
    }

    /// Checks every field against the request and against the others.
    fn check(self, subject: Subject<'_>) -> Result<Manifest, ManifestError> {
        use ManifestError::{Malformed, OtherUpload};
        if self.v != 1 {
            return Err(Malformed("v"));
        }
        if self.folder != *subject.model.folder {
            return Err(OtherUpload("folder"));
        }
        if self.filename != *subject.model.file {
            return Err(OtherUpload("filename"));
        }
        if SmallHash::parse(&self.small_sha256) != Some(subject.small) {
            return Err(OtherUpload("small_sha256"));
        }
        // The length of the plaintext implies the ciphertext's, of which the small part is known.
        let encrypted = encrypted_length(self.plain_length).ok_or(Malformed("plain_length"))?;
        let small_length = subject.small_length.unwrap_or_else(|| split_point(encrypted));
        if self.big_length > MAX_BIG_PART || self.big_length.checked_add(small_length) != Some(encrypted) {
            return Err(Malformed("big_length"));
        }
        if self.chunk != chunk_size(self.big_length) {
            return Err(Malformed("chunk"));
        }
        // At most 4,096, because of the length of a chunk.
        let count = self.big_length.div_ceil(self.chunk) as usize;
        let mut hashes = vec![[0; 32]; count];
        if self.sha256.len() != (count * 32 * 4).div_ceil(3) {
            return Err(Malformed("sha256"));
        }
        let decoded = Base64UrlSafeNoPadding::decode(hashes.as_flattened_mut(), &self.sha256, None);
        if decoded.map(|bytes| bytes.len()) != Ok(count * 32) {
            return Err(Malformed("sha256"));
        }
        let chunks = ChunkHashes { length: self.big_length, chunk: self.chunk, hashes };
        Ok(Manifest { chunks, plain_length: self.plain_length })
    }
}

/// The length of the plaintext as a manifest states it, without checking the signature.
pub fn claimed_plain_length(text: &str) -> Option<u64> {
    let payload = text.split('.').nth(1)?;
    let payload = Base64UrlSafeNoPadding::decode_to_vec(payload, None).ok()?;
    serde_json::from_slice::<Payload>(&payload).ok().map(|payload| payload.plain_length)
}

/// The length of this many bytes after encryption: initialization vector, AES-256-CBC with PKCS#7 padding.
fn encrypted_length(plain_length: u64) -> Option<u64> {
    (plain_length / 16).checked_add(2)?.checked_mul(16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ciphertext_has_an_initialization_vector_and_one_to_sixteen_bytes_of_padding() {
        for (plain, encrypted) in [(0, 32), (1, 32), (15, 32), (16, 48), (17, 48), (31, 48), (32, 64)] {
            assert_eq!(encrypted_length(plain), Some(encrypted), "{plain}");
        }
        assert_eq!(encrypted_length(u64::MAX), None);
    }
}
