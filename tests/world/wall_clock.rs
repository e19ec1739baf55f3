//! A wall clock of its own for a process, by libfaketime.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::service::ServiceBuilder;
use super::{loader_binary, skip};

/// A clock that goes on from the time to which it is set.
pub struct WallClock {
    library: PathBuf,
    directory: TempDir,
}

impl WallClock {
    /// A clock at a time such as `1970-01-01 00:00:10`. None if the loader cannot be given one; then the test is skipped.
    pub fn at(test: &str, time: &str) -> Option<Self> {
        let Some(library) = library() else {
            skip(test, "libfaketime is not installed");
            return None;
        };
        let loader = fs::read(loader_binary()).expect("the loader can be read");
        if !loader.windows(9).any(|bytes| bytes == b"/ld-linux") {
            skip(test, "a static program takes no libfaketime");
            return None;
        }
        let clock = Self { library, directory: tempfile::tempdir().expect("a temporary directory") };
        clock.set(&format!("@{time}"));
        Some(clock)
    }

    /// Sets the clock to what the machine's shows.
    pub fn set_right(&self) {
        self.set("+0");
    }

    /// The variables that give a process this clock.
    pub fn variables(&self) -> [(&'static str, OsString); 6] {
        [
            ("LD_PRELOAD", self.library.clone().into()),
            ("FAKETIME_TIMESTAMP_FILE", self.time().into()),
            ("FAKETIME_NO_CACHE", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
            ("NO_FAKE_STAT", "1".into()),
            ("TZ", "UTC".into()),
        ]
    }

    /// Gives a loader this clock.
    pub fn of(&self, builder: ServiceBuilder) -> ServiceBuilder {
        self.variables().into_iter().fold(builder, |builder, (name, value)| builder.env(name, value))
    }

    fn set(&self, time: &str) {
        let new = self.directory.path().join("new");
        fs::write(&new, time).and_then(|()| fs::rename(new, self.time())).expect("the time can be written");
    }

    fn time(&self) -> PathBuf {
        self.directory.path().join("time")
    }
}

/// Where Debian installs it.
fn library() -> Option<PathBuf> {
    let mut architectures = fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
    architectures.find_map(|path| Some(path.join(Path::new("faketime/libfaketime.so.1"))).filter(|path| path.exists()))
}
