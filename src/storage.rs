//! Files that only this service's user can read, and that survive a power cut whole.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{Errno, retry_on_intr};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::constants::MAX_JSON_BYTES;

/// Creates a directory that only this service's user can enter, and its missing parents.
pub fn create_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

pub fn create_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), create_dir)
}

/// Opens a file for reading and writing. If it does not exist, it is created so that only this service's user can read it.
pub fn open_private(path: &Path, truncate: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(truncate).mode(0o600).open(path)
}

/// Reserves space for all bytes of a file, which gets at least this length.
pub fn reserve_space(file: &File, length: u64) -> Result<(), Errno> {
    if length == 0 {
        return Ok(());
    }
    retry_on_intr(|| fallocate(file, FallocateFlags::empty(), 0, length))
}

/// Gives a new file its length, and its space where the file system can reserve it. Then others cannot fill the disk before the file
/// is whole, and on ext4 no writer waits while a sync finds space for what was written before.
pub fn allocate(file: &File, length: u64) -> io::Result<()> {
    match reserve_space(file, length) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(length),
        result => Ok(result?),
    }
}

/// Renames `file`, which is at `from`, so that a power cut leaves the old name or the new one with the whole content.
pub fn rename_durably(file: &File, from: &Path, to: &Path) -> io::Result<()> {
    file.sync_all()?;
    fs::rename(from, to)?;
    match to.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => File::open(directory)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

pub fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Length and modification time: they distinguish a file from one that replaced it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    pub length: u64,
    /// Nanoseconds since 1970 as text: they do not fit a JSON number.
    modified: String,
}

impl FileIdentity {
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string();
        Ok(Self { length: metadata.len(), modified })
    }
}

/// Reads a JSON document. An unreadable one counts as missing, since its content can be determined again.
pub fn read_document<T: DeserializeOwned>(path: &Path) -> Option<T> {
    read_document_up_to(MAX_JSON_BYTES, path)
}

/// The same for a document of at most `limit` bytes.
pub fn read_document_up_to<T: DeserializeOwned>(limit: u64, path: &Path) -> Option<T> {
    let mut json = Vec::new();
    File::open(path).ok()?.take(limit).read_to_end(&mut json).ok()?;
    serde_json::from_slice(&json).ok()
}

/// Replaces a JSON document atomically.
pub fn write_document<T: Serialize>(document: &T, path: &Path) -> io::Result<()> {
    create_parent(path)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let result = open_private(&temporary, true).and_then(|mut file| {
        file.write_all(&serde_json::to_vec(document)?)?;
        rename_durably(&file, &temporary, path)
    });
    result.inspect_err(|_| drop(fs::remove_file(&temporary)))
}
