//! The list of cached models, in memory, for `/status` and others that must not wait for a disk.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::Serialize;

use super::last_use::LastUses;
use super::record::{Record, record_of};
use crate::names::ModelName;
use crate::threads::lock;

/// The number of models that are listed.
const LISTED: usize = 100;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CachedModel {
    pub folder: String,
    pub name: String,
    /// Length of its big part in bytes.
    pub bytes: u64,
    /// Length of its plaintext in bytes, if its record tells.
    pub plain_bytes: Option<u64>,
    /// When it was last loaded or uploaded, in seconds since 1970.
    pub last_used: u64,
    /// Whether `KEEP` names it.
    pub kept: bool,
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
pub(super) struct Catalog {
    models: Mutex<BTreeMap<PathBuf, Lengths>>,
    /// The models in `KEEP`.
    keep: HashSet<ModelName>,
    pub(super) last_uses: LastUses,
}

/// The lengths of a big part and of the model's plaintext in bytes.
#[derive(Clone, Copy, Debug)]
struct Lengths {
    big: u64,
    plain: Option<u64>,
}

impl Catalog {
    pub(super) fn new(keep: &[ModelName]) -> Self {
        Self { keep: keep.iter().cloned().collect(), ..Self::default() }
    }

    /// Adds a big part whose record has just been written.
    pub(super) fn insert(&self, big: &Path, bytes: u64, plain: Option<u64>) {
        lock(&self.models).insert(big.to_owned(), Lengths { big: bytes, plain });
        self.last_uses.record_is_new(big);
    }

    pub(super) fn remove(&self, big: &Path) {
        lock(&self.models).remove(big);
        self.last_uses.forget(big);
    }

    /// Whether `KEEP` names the model.
    pub(super) fn is_kept(&self, model: &ModelName) -> bool {
        self.keep.contains(model)
    }

    pub(super) fn summary(&self) -> CacheSummary {
        let models = self.models(LISTED);
        let entries = lock(&self.models);
        CacheSummary { bytes: entries.values().map(|lengths| lengths.big).sum(), files: entries.len(), models }
    }

    /// The first models, at most this many.
    pub(super) fn models(&self, limit: usize) -> Vec<CachedModel> {
        let entries = lock(&self.models);
        let models = entries.iter().take(limit).filter_map(|(big, lengths)| {
            let model = model_of(big)?;
            Some(CachedModel {
                folder: model.folder.to_string(),
                name: model.file.to_string(),
                bytes: lengths.big,
                plain_bytes: lengths.plain,
                last_used: self.last_uses.of(big) / 1_000_000_000,
                kept: self.is_kept(&model),
            })
        });
        models.collect()
    }

    /// Adds a big part of an earlier process.
    fn add(&self, big: &Path) -> io::Result<()> {
        let (bytes, record) = (fs::metadata(big)?.len(), record_of(big));
        self.last_uses.found(big, fs::metadata(&record)?.modified()?);
        let plain = Record::read(&record).and_then(|record| record.plain_length());
        lock(&self.models).insert(big.to_owned(), Lengths { big: bytes, plain });
        Ok(())
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
                self.add(&file)
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

/// The model of a big part.
pub(super) fn model_of(big: &Path) -> Option<ModelName> {
    let folder = big.parent()?.file_name()?.to_str()?;
    ModelName::new(folder, big.file_name()?.to_str()?.strip_suffix(".big")?).ok()
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
            catalog.insert(Path::new(&format!("cache/models/m{number:03}.v2.bin.big")), 10, None);
        }
        catalog.insert(Path::new("cache/models/m000.v2.bin.big"), 7, Some(9));
        catalog.remove(Path::new("cache/models/m001.v2.bin.big"));
        let summary = catalog.summary();
        assert_eq!((summary.bytes, summary.files, summary.models.len()), (1487, 149, LISTED));
        let first = &summary.models[0];
        let (folder, name) = (first.folder.as_str(), first.name.as_str());
        assert_eq!((folder, name, first.bytes, first.plain_bytes), ("models", "m000.v2.bin", 7, Some(9)));
        assert!(!first.kept && first.last_used > 1_700_000_000);
    }
}
