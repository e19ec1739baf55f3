//! When each model was last used, so that the one used longest ago makes room first.
//!
//! The time of the last use is the modification time of the model's record, so that it survives restarts. Each use counts as later
//! than all uses before it, even on a box whose clock starts in 1970.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::record::record_of;
use crate::threads::lock;

/// A model's last use is written at most this often, to spare the flash.
const WRITE_INTERVAL: Duration = Duration::from_secs(60);

/// The last uses of all cached models, by their big parts.
#[derive(Debug, Default)]
pub(super) struct LastUses(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// In nanoseconds since 1970, as all times here.
    newest: u64,
    uses: HashMap<PathBuf, LastUse>,
}

#[derive(Debug, Default)]
struct LastUse {
    at: u64,
    is_written: bool,
    written: Option<Instant>,
}

impl LastUses {
    /// A last use that an earlier process wrote.
    pub(super) fn found(&self, big: &Path, time: SystemTime) {
        let at = nanoseconds(time);
        let mut state = lock(&self.0);
        state.newest = state.newest.max(at);
        let last = state.uses.entry(big.to_owned()).or_default();
        (last.at, last.is_written) = (last.at.max(at), true);
    }

    /// The model is used now.
    pub(super) fn touch(&self, big: &Path) {
        {
            let mut state = lock(&self.0);
            state.newest = nanoseconds(SystemTime::now()).max(state.newest + 1);
            let newest = state.newest;
            let last = state.uses.entry(big.to_owned()).or_default();
            (last.at, last.is_written) = (newest, false);
        }
        self.write_all(WRITE_INTERVAL);
    }

    /// Writes the uses that are not written yet, if the model's last write is at least so long ago.
    pub(super) fn write_all(&self, interval: Duration) {
        let mut due = Vec::new();
        for (big, last) in &mut lock(&self.0).uses {
            if !last.is_written && last.written.is_none_or(|written| written.elapsed() >= interval) {
                due.push((big.clone(), last.at));
            }
        }
        for (big, at) in due {
            self.write(&big, at);
        }
    }

    /// The model's record has just been written.
    pub(super) fn record_is_new(&self, big: &Path) {
        let at = lock(&self.0).uses.get(big).map(|last| last.at);
        match at {
            Some(at) => self.write(big, at),
            None => self.touch(big),
        }
    }

    fn write(&self, big: &Path, at: u64) {
        let time = UNIX_EPOCH + Duration::from_nanos(at);
        match File::open(record_of(big)).and_then(|record| record.set_modified(time)) {
            Ok(()) => {}
            // A model that is being downloaded has no record yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            // On a read-only file system nothing makes room either.
            Err(error) => log::debug!("the last use of {} cannot be written: {error}", big.display()),
        }
        if let Some(last) = lock(&self.0).uses.get_mut(big) {
            last.is_written = last.at == at;
            last.written = Some(Instant::now());
        }
    }

    /// When the model was last used; 0 if nobody knows.
    pub(super) fn of(&self, big: &Path) -> u64 {
        lock(&self.0).uses.get(big).map_or(0, |last| last.at)
    }

    /// The model is no longer in the cache.
    pub(super) fn forget(&self, big: &Path) {
        lock(&self.0).uses.remove(big);
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_is_later_than_all_before_it_whatever_the_clock_says_and_survives_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let bigs: Vec<PathBuf> = ["a", "b", "c"].iter().map(|name| directory.path().join(name)).collect();
        for big in &bigs {
            File::create(record_of(big)).unwrap();
        }
        let modified = |big: &Path| record_of(big).metadata().unwrap().modified().unwrap();
        // An earlier process had a clock that was years ahead of this one's.
        let ahead = SystemTime::now() + Duration::from_secs(1 << 28);
        let uses = LastUses::default();
        uses.found(&bigs[0], ahead);
        uses.found(&bigs[1], ahead - Duration::from_secs(5));
        uses.touch(&bigs[2]);
        uses.touch(&bigs[1]);
        assert!(modified(&bigs[2]) > ahead && modified(&bigs[1]) > modified(&bigs[2]));
        // Within a minute a use is not written, before the end of the process it is.
        let before = modified(&bigs[2]);
        uses.touch(&bigs[2]);
        assert_eq!(modified(&bigs[2]), before);
        assert!(uses.of(&bigs[2]) > uses.of(&bigs[1]) && uses.of(&bigs[1]) > uses.of(&bigs[0]));
        uses.write_all(Duration::ZERO);
        assert!(modified(&bigs[2]) > modified(&bigs[1]));
        uses.forget(&bigs[2]);
        assert_eq!(uses.of(&bigs[2]), 0);
    }
}
