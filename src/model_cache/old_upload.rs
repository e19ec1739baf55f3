//! Old uploads, which have no manifest: all that is known of one is what the CDN says of its object.

use serde::{Deserialize, Serialize};

use crate::cdn_manager::BigObject;
use crate::security::{Hasher, Sha256Hash, SmallHash};

/// The object of an old upload, as the CDN described it.
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

    /// Whether it can be told from another object under the same key.
    pub(super) fn is_identified(&self) -> bool {
        self.etag.is_some() || self.sha256.is_some()
    }
}

/// What has been hashed of an old upload, whose only recorded hash is the hash of the whole.
#[derive(Clone, Default)]
pub(super) struct Prefix {
    /// The number of chunks that `hasher` has seen.
    pub(super) chunks: usize,
    pub(super) hasher: Hasher,
}

impl Prefix {
    pub(super) fn add(&mut self, chunk: &[u8]) {
        self.hasher.update(chunk);
        self.chunks += 1;
    }
}
