//! The list of cached models, in memory, for `/status` and others that must not wait for a disk.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::Serialize;

use crate::threads::lock;

/// The number of models that are listed.
const LISTED: usize = 100;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CachedModel {
    pub folder: String,
    pub name: String,
    /// Length of its big part in bytes.
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CacheSummary {
    /// Length of all big parts in bytes.
    pub bytes: u64,
    pub files: usize,
    /// The first hundred, by folder and name.
    pub models: Vec<CachedModel>,
}

/// The big parts in the cache with their lengths. Code that renames or removes one has to update it.
#[derive(Debug, Default)]
pub(super) struct Catalog(Mutex<BTreeMap<PathBuf, u64>>);

impl Catalog {
    pub(super) fn insert(&self, big: &Path, bytes: u64) {
        lock(&self.0).insert(big.to_owned(), bytes);
    }

    pub(super) fn remove(&self, big: &Path) {
        lock(&self.0).remove(big);
    }

    pub(super) fn summary(&self) -> CacheSummary {
        let models = self.models(LISTED);
        let entries = lock(&self.0);
        CacheSummary { bytes: entries.values().sum(), files: entries.len(), models }
    }

    /// The first models, at most so many.
    pub(super) fn models(&self, limit: usize) -> Vec<CachedModel> {
        let entries = lock(&self.0);
        let models = entries.iter().take(limit).filter_map(|(big, bytes)| {
            let text = |part: Option<&std::ffi::OsStr>| Some(part?.to_str()?.to_owned());
            let (folder, name) = (text(big.parent()?.file_name())?, text(big.file_stem())?);
            Some(CachedModel { folder, name, bytes: *bytes })
        });
        models.collect()
    }

    /// Lists the big parts under `root` and removes unfinished files. What cannot be read does not keep the rest from use.
    pub(super) fn take_stock(&self, root: &Path) -> io::Result<()> {
        for folder in fs::read_dir(root)?.flatten() {
            let folder = folder.path();
            let result = if folder.is_dir() { self.take_stock_of(&folder) } else { remove_temporary(&folder) };
            if let Err(error) = result {
                log::warn!("{} in the model cache is left alone: {error}", folder.display());
            }
        }
        Ok(())
    }

    fn take_stock_of(&self, folder: &Path) -> io::Result<()> {
        for file in fs::read_dir(folder)?.flatten() {
            let file = file.path();
            let name = file.to_string_lossy();
            let exists = |name: &str, suffix: &str| Path::new(&format!("{name}{suffix}")).exists();
            let unfinished = match name.rsplit_once(".big") {
                Some((_, ".json.tmp" | ".small.json.tmp" | ".part.json.tmp" | ".part.source.json.tmp")) => true,
                // A download can be resumed only if all three of its files are there.
                Some((big, ".part" | ".part.json" | ".part.source.json")) => {
                    !["", ".json", ".source.json"].iter().all(|suffix| exists(big, &format!(".big.part{suffix}")))
                }
                _ => false,
            };
            let result = if unfinished {
                fs::remove_file(&file)
            } else if name.ends_with(".big") && exists(&name, ".json") {
                fs::metadata(&file).map(|metadata| self.insert(&file, metadata.len()))
            } else {
                Ok(())
            };
            if let Err(error) = result {
                log::warn!("{name} in the model cache is left alone: {error}");
            }
        }
        Ok(())
    }
}

/// Removes the record of an unlock that was being written.
fn remove_temporary(file: &Path) -> io::Result<()> {
    if file.extension().is_some_and(|extension| extension == "tmp") { fs::remove_file(file) } else { Ok(()) }
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
