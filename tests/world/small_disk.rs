//! A disk that is easily filled: a tmpfs of a given size, mounted where a service keeps its files. Mounting needs root.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::skip;

/// The mounted disk; it is unmounted when dropped.
pub struct SmallDisk {
    directory: TempDir,
}

impl SmallDisk {
    /// A disk of this many KiB for this many files (the root counts as one), or none and a line that the test is
    /// skipped. In CI no test may be skipped.
    pub fn mount_or_skip(test: &str, kib: u64, files: u64) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new("mount");
        let options = format!("size={kib}k,nr_inodes={files},mode=700");
        command.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(directory.path()).stderr(Stdio::null());
        if command.status().is_ok_and(|status| status.success()) {
            return Some(Self { directory });
        }
        skip(test, "it mounts a small disk, which needs root");
        None
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Fills the disk but for this many KiB.
    pub fn fill_but(&self, kib: usize) {
        self.free();
        let mut file = File::create(self.filler()).expect("there is room for a file");
        let page = [1; 4096];
        while file.write_all(&page).is_ok() {}
        let length = file.metadata().expect("an open file").len();
        file.set_len(length.saturating_sub(kib as u64 * 1024)).expect("shorter");
    }

    /// Makes the disk read-only.
    pub fn make_read_only(&self) {
        let status = Command::new("mount").args(["-o", "remount,ro"]).arg(self.path()).status();
        assert!(status.is_ok_and(|status| status.success()), "the disk cannot be made read-only");
    }

    /// Frees the space again.
    pub fn free(&self) {
        let _ = fs::remove_file(self.filler());
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}
