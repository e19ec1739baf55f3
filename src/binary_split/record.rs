//! The record of the last unlock, by which a restart recognizes an archive whose images are loaded.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::security::Hasher;
use crate::storage::FileIdentity;

/// How much is hashed at each end of an archive. Hashing all of it would take as long as unlocking it.
const HASHED: u64 = 1024 * 1024;

/// Identifies an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveIdentity {
    file: FileIdentity,
    /// SHA-256 of the first and the last MiB.
    ends_sha256: String,
}

impl ArchiveIdentity {
    /// The identity of the archive at `path`.
    pub fn of(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let identity = FileIdentity::of(&file)?;
        let mut hasher = Hasher::default();
        let mut end = vec![0; HASHED.min(identity.length) as usize];
        for offset in [0, identity.length - end.len() as u64] {
            file.read_exact_at(&mut end, offset)?;
            hasher.update(&end);
        }
        Ok(Self { file: identity, ends_sha256: hasher.finish().to_string() })
    }
}

/// The record of unlocks.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct UnlockRecord {
    /// The archive of the last successful unlock.
    pub archive: Option<ArchiveIdentity>,
    /// The image id of each tag in it.
    pub images: BTreeMap<String, String>,
    /// The images that unlocks brought into the engine: the id of each name, or of itself. Records of older versions lack it.
    pub brought: Option<BTreeMap<String, String>>,
    /// The load that is under way, or that a power cut or a failure ended.
    pub loading: Option<Loading>,
}

/// A load of an archive that has not succeeded yet.
#[derive(Debug, Serialize, Deserialize)]
pub struct Loading {
    /// The archive.
    pub archive: ArchiveIdentity,
    /// The ids of the images that were in the engine when it began.
    pub before: Vec<String>,
}
