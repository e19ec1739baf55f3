//! A wall clock for one process, by a preloaded library.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use tempfile::TempDir;

use super::service::ServiceBuilder;
use super::{loader_binary, skip};

/// Adds the seconds in a file to the wall clock. The monotonic clock and the times of files stay.
const LIBRARY: &str = r"#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        char seconds[32] = {0};
        int file = open(OFFSET_FILE, O_RDONLY | O_CLOEXEC);
        if (file < 0 || read(file, seconds, sizeof seconds - 1) < 1) abort();
        close(file);
        time->tv_sec += atoll(seconds);
    }
    return result;
}
";

/// A clock that runs on from the time to which it was set.
pub struct WallClock(TempDir);

impl WallClock {
    /// A clock at so many seconds since 1970. None if the loader cannot be given one; then the test is skipped.
    pub fn at(test: &str, seconds: i64) -> Option<Self> {
        let loader = fs::read(loader_binary()).expect("the loader can be read");
        if !loader.windows(9).any(|bytes| bytes == b"/ld-linux") {
            skip(test, "a static program preloads no library");
            return None;
        }
        let clock = Self(tempfile::tempdir().expect("a temporary directory"));
        build(&clock.library(), &clock.offset());
        clock.set(offset_to(seconds));
        Some(clock)
    }

    /// Sets the clock to the machine's time.
    pub fn set_right(&self) {
        self.set(0);
    }

    /// The variable that gives a process this clock.
    pub fn variable(&self) -> (&'static str, PathBuf) {
        ("LD_PRELOAD", self.library())
    }

    /// Gives a loader this clock.
    pub fn of(&self, builder: ServiceBuilder) -> ServiceBuilder {
        let (name, value) = self.variable();
        builder.env(name, value)
    }

    fn set(&self, offset: i64) {
        let new = self.0.path().join("new");
        fs::write(&new, offset.to_string()).and_then(|()| fs::rename(new, self.offset())).expect("it can be written");
    }

    fn library(&self) -> PathBuf {
        self.0.path().join("clock.so")
    }

    fn offset(&self) -> PathBuf {
        self.0.path().join("offset")
    }
}

/// Builds the library, for a process that finds the number of seconds in the file `offset`.
pub fn build(library: &Path, offset: &Path) {
    let source = library.with_extension("c");
    fs::write(&source, LIBRARY.replace("OFFSET_FILE", &format!("{offset:?}"))).expect("the source can be written");
    let status = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(library).arg(source).status();
    assert!(status.is_ok_and(|status| status.success()), "cc builds the library of the clock");
}

/// What to add to the machine's clock for so many seconds since 1970.
pub fn offset_to(seconds: i64) -> i64 {
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("the machine's clock is set").as_secs();
    seconds - i64::try_from(now).expect("an i64 holds all seconds")
}
