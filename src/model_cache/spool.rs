//! A file that receives an upload.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::reservation::Reservation;
use super::room::{NoRoom, Room};
use crate::security::hex;
use crate::storage::{create_dir, open_private, rename_durably};

/// A file that outgrows its reservation reserves this much more, or as much as there is.
const STEP: u64 = 8 << 20;

/// A new file in the spool directory. It is removed when this is dropped.
pub struct Spool {
    file: File,
    path: PathBuf,
    length: u64,
    /// The length that was announced, or less.
    expected: u64,
    room: Arc<Room>,
    reservation: Reservation,
    moved: bool,
}

impl Spool {
    pub(super) fn create(directory: &Path, room: Arc<Room>, expected: u64) -> io::Result<Self> {
        create_dir(directory)?;
        let mut name = [0; 16];
        getrandom::fill(&mut name).map_err(io::Error::from)?;
        let path = directory.join(hex(&name));
        let reservation = room.reserve(&path, expected, None)?;
        Ok(Self { file: open_private(&path, true)?, path, length: 0, expected, room, reservation, moved: false })
    }

    pub fn another(&self) -> io::Result<Self> {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        Self::create(directory, Arc::clone(&self.room), self.expected)
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Reserves room for this many bytes more than the file has.
    pub(super) fn reserve(&mut self, more: u64) -> Result<(), NoRoom> {
        self.room.grow(&mut self.reservation, self.length + more)
    }

    pub(super) fn move_to(mut self, target: &Path) -> io::Result<()> {
        rename_durably(&self.file, &self.path, target)?;
        self.moved = true;
        Ok(())
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.reservation.is_for(self.length + bytes.len() as u64) {
            self.reserve(STEP.max(bytes.len() as u64)).or_else(|_| self.reserve(bytes.len() as u64))?;
        }
        let count = self.file.write(bytes)?;
        self.length += count as u64;
        Ok(count)
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
