//! The files of one model in the cache.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::catalog::Catalog;
use super::record::{Record, record_of, with_suffix};
use crate::names::ModelName;
use crate::storage::{create_parent, open_private, remove_file};

/// The suffix of a stored small part, after the name of its big part.
pub(super) const SMALL_SUFFIX: &str = ".small.json";

/// The files of one model.
#[derive(Clone, Debug)]
pub struct Entry {
    pub model: ModelName,
    pub(super) big: PathBuf,
    pub(super) catalog: Arc<Catalog>,
}

impl Entry {
    pub(super) fn new(root: &Path, model: &ModelName, catalog: Arc<Catalog>) -> Self {
        let big = root.join(&*model.folder).join(format!("{}.big", model.file));
        Self { model: model.clone(), big, catalog }
    }

    pub(super) fn record(&self) -> PathBuf {
        record_of(&self.big)
    }

    pub(super) fn part(&self) -> PathBuf {
        with_suffix(&self.big, ".part")
    }

    pub(super) fn part_source(&self) -> PathBuf {
        with_suffix(&self.big, ".part.source.json")
    }

    pub(super) fn part_record(&self) -> PathBuf {
        with_suffix(&self.big, ".part.json")
    }

    fn proven(&self) -> PathBuf {
        with_suffix(&self.big, ".proven")
    }

    /// The small part for the time without the Resource API.
    pub(super) fn small(&self) -> PathBuf {
        with_suffix(&self.big, SMALL_SUFFIX)
    }

    /// Adds the complete big part to the catalog.
    pub(super) fn is_cached(&self, bytes: u64, plain: Option<u64>) {
        self.catalog.insert(&self.big, bytes, plain);
    }

    /// The model is loaded now, which keeps it in a full cache.
    pub fn touch(&self) {
        self.catalog.last_uses.touch(&self.big);
    }

    /// Whether this box has ever had a version of the model with an uploader's manifest.
    pub fn was_proven(&self) -> bool {
        let is_proven = |record: Record| record.manifest.is_some() && record.old.is_none();
        self.proven().exists() || Record::read(&self.record()).is_some_and(is_proven)
    }

    /// From now on only versions with a manifest are accepted.
    pub(super) fn remember_proven(&self) {
        let path = self.proven();
        if path.exists() {
            return;
        }
        // The next record of the model makes the directory durable.
        if let Err(error) = create_parent(&path).and_then(|()| open_private(&path, false)) {
            log::warn!(
                "cannot write {}, so a later version of {} without a manifest may be accepted: {error}",
                path.display(),
                self.model
            );
        }
    }

    /// Removes all files of the model but the mark that it was proven. Returns whether there were any.
    pub(super) fn remove(&self) -> io::Result<bool> {
        if self.was_proven() {
            self.remember_proven();
            if !self.proven().exists() {
                return Err(io::Error::other("the mark that the model was proven cannot be written"));
            }
        }
        let paths =
            [self.record(), self.big.clone(), self.part_record(), self.part_source(), self.part(), self.small()];
        let was_there = paths.iter().any(|path| path.exists());
        paths.iter().try_for_each(|path| remove_file(path))?;
        self.catalog.remove(&self.big);
        Ok(was_there)
    }

    /// Removes an unfinished download. Its bitmap goes first: without it the rest is worth nothing.
    pub(super) fn discard_part(&self) {
        for path in [self.part_record(), self.part_source(), self.part()] {
            if let Err(error) = remove_file(&path) {
                log::warn!("cannot remove {}: {error}", path.display());
            }
        }
    }
}
