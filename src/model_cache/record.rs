//! The small JSON documents beside cached files.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{create_parent, open_private, rename_durably};
use crate::cdn_manager::BigObject;
use crate::constants::MAX_JSON_BYTES;

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

/// Length and time of change of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileIdentity {
    pub(super) length: u64,
    /// Nanoseconds since 1970 as text: they do not fit a JSON number.
    modified: String,
}

impl FileIdentity {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string();
        Ok(Self { length: metadata.len(), modified })
    }
}

impl Record {
    pub(super) fn new(file: &File, sha256: &str, small_sha256: &str) -> io::Result<Self> {
        let file = FileIdentity::of(file)?;
        Ok(Self { small_sha256: small_sha256.to_owned(), sha256: sha256.to_owned(), file })
    }

    pub(super) fn read(path: &Path) -> Option<Self> {
        read(path)
    }

    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        write(self, path)
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
        let record: Self = read(path)?;
        let identified = record.etag.is_some() || record.sha256.is_some();
        (identified && record == Self::new(object, record.durable) && record.durable <= record.length).then_some(record)
    }

    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        write(self, path)
    }
}

/// A document that cannot be read is one that is not there: what it describes is fetched again.
fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let mut json = Vec::new();
    File::open(path).ok()?.take(MAX_JSON_BYTES).read_to_end(&mut json).ok()?;
    serde_json::from_slice(&json).ok()
}

/// Writes a document so that there is the old one or the new one at any moment.
fn write<T: Serialize>(document: &T, path: &Path) -> io::Result<()> {
    create_parent(path)?;
    let mut temporary = PathBuf::from(path).into_os_string();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let result = open_private(&temporary, true).and_then(|mut file| {
        file.write_all(&serde_json::to_vec(document)?)?;
        rename_durably(&file, &temporary, path)
    });
    result.inspect_err(|_| drop(fs::remove_file(&temporary)))
}
