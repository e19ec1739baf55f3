//! What is in the cache, in memory, for those who must not wait for a disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

/// How many models are listed.
const LISTED: usize = 100;

/// A cached model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CachedModel {
    /// The folder.
    pub folder: String,
    /// The file name.
    pub name: String,
    /// Length of its big part in bytes.
    pub bytes: u64,
}

/// What the cache holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CacheSummary {
    /// Length of all big parts in bytes.
    pub bytes: u64,
    /// How many big parts there are.
    pub files: usize,
    /// The first hundred, by folder and name.
    pub models: Vec<CachedModel>,
}

/// The big parts in the cache with their lengths. It follows the disk: whoever gives a file its name or removes it says so.
#[derive(Debug, Default)]
pub(super) struct Catalog(Mutex<BTreeMap<PathBuf, u64>>);

impl Catalog {
    /// The big part at `big` is there now, and whole.
    pub(super) fn insert(&self, big: &Path, bytes: u64) {
        self.lock().insert(big.to_owned(), bytes);
    }

    /// The big part at `big` is gone.
    pub(super) fn remove(&self, big: &Path) {
        self.lock().remove(big);
    }

    pub(super) fn summary(&self) -> CacheSummary {
        let entries = self.lock();
        let models = entries.iter().take(LISTED).filter_map(|(big, bytes)| {
            let text = |part: Option<&std::ffi::OsStr>| Some(part?.to_str()?.to_owned());
            let (folder, name) = (text(big.parent()?.file_name())?, text(big.file_stem())?);
            Some(CachedModel { folder, name, bytes: *bytes })
        });
        CacheSummary { bytes: entries.values().sum(), files: entries.len(), models: models.collect() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_counts_all_and_lists_a_hundred() {
        let catalog = Catalog::default();
        for number in 0..150 {
            catalog.insert(Path::new(&format!("cache/models/m{number:03}.v2.bin.big")), 10);
        }
        catalog.insert(Path::new("cache/models/m000.v2.bin.big"), 7);
        catalog.remove(Path::new("cache/models/m001.v2.bin.big"));
        let summary = catalog.summary();
        assert_eq!((summary.bytes, summary.files, summary.models.len()), (1487, 149, LISTED));
        let expected = CachedModel { folder: "models".into(), name: "m000.v2.bin".into(), bytes: 7 };
        assert_eq!(summary.models[0], expected);
    }
}
