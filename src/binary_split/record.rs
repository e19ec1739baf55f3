//! What was unlocked: so that a restart knows that the images of this very archive are loaded already.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::security::Hasher;

/// How much of both ends of an archive is hashed. All of it would take as long as unlocking it.
const HASHED: u64 = 1024 * 1024;

/// What tells an archive from another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveIdentity {
    length: u64,
    /// Nanoseconds since 1970 as text: they do not fit a JSON number.
    modified: String,
    /// SHA-256 of the first and the last MiB.
    ends_sha256: String,
}

impl ArchiveIdentity {
    /// That of the archive at `path`.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn of(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        let length = metadata.len();
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string();
        let mut hasher = Hasher::default();
        let mut end = vec![0; HASHED.min(length) as usize];
        for offset in [0, length - end.len() as u64] {
            file.read_exact_at(&mut end, offset)?;
            hasher.update(&end);
        }
        Ok(Self { length, modified, ends_sha256: hasher.finish() })
    }
}

/// The record of a successful unlock.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnlockRecord {
    /// The archive.
    pub archive: ArchiveIdentity,
    /// Tag to image id, as docker gave it.
    pub images: BTreeMap<String, String>,
}
