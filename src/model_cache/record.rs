//! The small JSON documents beside cached files.

use std::fs::File;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cdn_manager::BigObject;
use crate::storage::{FileIdentity, read_document, write_document};

/// What is known of a cached big part.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// SHA-256 of the small part that it belongs to.
    pub(super) small_sha256: String,
    /// SHA-256 of the big part itself.
    pub(super) sha256: String,
    /// The file that this record was written for: a file that was put in its place is another.
    pub(super) file: FileIdentity,
}

impl Record {
    pub(super) fn new(file: &File, sha256: &str, small_sha256: &str) -> io::Result<Self> {
        let file = FileIdentity::of(file)?;
        Ok(Self { small_sha256: small_sha256.to_owned(), sha256: sha256.to_owned(), file })
    }

    pub(super) fn read(path: &Path) -> Option<Self> {
        read_document(path)
    }

    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        write_document(self, path)
    }
}

/// What is known of a download that has not ended.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartRecord {
    key: String,
    etag: Option<String>,
    sha256: Option<String>,
    length: u64,
    /// How many bytes are on the disk for certain. After a power cut the file may be longer, with anything in it.
    pub(super) durable: u64,
}

impl PartRecord {
    pub(super) fn new(object: &BigObject, durable: u64) -> Self {
        let BigObject { key, etag, sha256, length, .. } = object.clone();
        Self { key, etag, sha256, length, durable }
    }

    /// The record of a download of this very object; an object that nothing tells from another cannot be resumed.
    pub(super) fn read(path: &Path, object: &BigObject) -> Option<Self> {
        let record: Self = read_document(path)?;
        let identified = record.etag.is_some() || record.sha256.is_some();
        (identified && record == Self::new(object, record.durable) && record.durable <= record.length).then_some(record)
    }

    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        write_document(self, path)
    }
}
