//! A file that receives an upload.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::security::hex;
use crate::storage::{create_dir, open_private, rename_durably};

/// A new file in the spool directory. It is removed when this is dropped.
#[derive(Debug)]
pub struct Spool {
    file: File,
    path: PathBuf,
    moved: bool,
}

impl Spool {
    pub(super) fn create(directory: &Path) -> io::Result<Self> {
        create_dir(directory)?;
        let mut name = [0; 16];
        getrandom::fill(&mut name).map_err(io::Error::from)?;
        let path = directory.join(hex(&name));
        Ok(Self { file: open_private(&path, true)?, path, moved: false })
    }

    pub fn another(&self) -> io::Result<Self> {
        Self::create(self.path.parent().unwrap_or(Path::new(".")))
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn move_to(mut self, target: &Path) -> io::Result<()> {
        rename_durably(&self.file, &self.path, target)?;
        self.moved = true;
        Ok(())
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if !self.moved
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}
