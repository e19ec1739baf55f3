//! Files that only this service's user can read, and that survive a power cut whole.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::UNIX_EPOCH;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::constants::MAX_JSON_BYTES;
use crate::threads;

/// Creates a directory that only this service's user can enter, and its missing parents.
pub fn create_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Creates the parent directory of `path`.
pub fn create_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), create_dir)
}

/// Opens a file for reading and writing. If it does not exist, it is created so that only this service's user can read it.
pub fn open_private(path: &Path, truncate: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(truncate).mode(0o600).open(path)
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

/// Work on a background thread that waits for the disk, since storage can be slower than its source.
#[derive(Debug, Default)]
pub struct DiskSync(Option<JoinHandle<io::Result<()>>>);

impl DiskSync {
    /// Whether the last work has ended.
    pub fn is_idle(&self) -> bool {
        self.0.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Starts `work`. If no thread can be started it is skipped: it is useful only ahead of time.
    pub fn start(&mut self, work: impl FnOnce() -> io::Result<()> + Send + 'static) {
        self.0 = threads::spawn("disk-sync", work).ok();
    }

    /// Waits for the last work to end. The system reports an error of the disk only once.
    pub fn wait(&mut self) -> io::Result<()> {
        match self.0.take().map(JoinHandle::join) {
            Some(Err(_)) => Err(io::Error::other("the data could not be written to the disk")),
            Some(Ok(result)) => result,
            None => Ok(()),
        }
    }
}

/// Length and modification time: they distinguish a file from one that replaced it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Length in bytes.
    pub length: u64,
    /// Nanoseconds since 1970 as text: they do not fit a JSON number.
    modified: String,
}

impl FileIdentity {
    /// The identity of an open file.
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string();
        Ok(Self { length: metadata.len(), modified })
    }
}

/// Reads a JSON document. An unreadable one counts as missing, since its content can be determined again.
pub fn read_document<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let mut json = Vec::new();
    File::open(path).ok()?.take(MAX_JSON_BYTES).read_to_end(&mut json).ok()?;
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
