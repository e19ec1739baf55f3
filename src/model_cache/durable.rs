//! What makes a download survive a power cut: its bitmap while it runs, its record and its final name at the end.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::files::Place;
use super::old_upload::Prefix;
use super::reader::digest;
use super::record::{PartRecord, Record};
use super::version::Version;
use crate::manifest::{ChunkHashes, Manifest, Subject};
use crate::page_buffer::PageBuffer;
use crate::storage::{remove_file, rename_durably};
use crate::threads::{self, lock};

/// How often the bitmap is written. A power cut costs at most what came since.
const EVERY: Duration = Duration::from_secs(1);

/// Syncs the chunks of a download and writes its bitmap, now and then and in the background: storage can be slower than the
/// network.
pub(super) struct Durable {
    running: Option<JoinHandle<io::Result<()>>>,
    last: Instant,
}

impl Durable {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        // The first time comes sooner.
        Self { running: None, last: now.checked_sub(EVERY * 3 / 4).unwrap_or(now) }
    }

    pub(super) fn now_and_then(&mut self, version: &Arc<Version>) {
        if self.last.elapsed() >= EVERY && self.running.as_ref().is_none_or(JoinHandle::is_finished) {
            self.wait(version);
            self.start(version);
        }
    }

    fn start(&mut self, version: &Arc<Version>) {
        self.last = Instant::now();
        let stored = {
            let state = version.state();
            if state.place != Place::Part {
                return;
            }
            state.stored.clone()
        };
        let version = Arc::clone(version);
        // Without a thread the bitmap is just written later.
        self.running = threads::spawn("disk-sync", move || make_durable(&version, &stored)).ok();
    }

    /// After a failed sync, which the system reports only once, the disk is not trusted with the rest.
    fn wait(&mut self, version: &Version) {
        let panicked = |_| Err(io::Error::other("the data could not be written to the disk"));
        if let Some(Err(error)) = self.running.take().map(|thread| thread.join().unwrap_or_else(panicked)) {
            version.end_caching(&error);
        }
    }

    pub(super) fn finish(mut self, version: &Arc<Version>) {
        self.wait(version);
        let is_unfinished = {
            let state = version.state();
            state.place == Place::Part && !state.is_whole() && state.stored.iter().any(|stored| *stored)
        };
        if is_unfinished {
            self.start(version);
            self.wait(version);
        }
    }
}

fn make_durable(version: &Version, stored: &[bool]) -> io::Result<()> {
    let Some(file) = &version.file else { return Ok(()) };
    file.sync_data()?;
    if !version.uses_part() {
        return Ok(());
    }
    let entry = &version.entry;
    let _turn = lock(&version.records);
    let source = entry.part_source();
    // If the disk has no room for the records, the download continues: only a later start would need them.
    let written = if source.exists() { Ok(()) } else { version.record.write(&source) };
    let record = PartRecord::new(version.record.small_sha256, stored);
    if let Err(error) = written.and_then(|()| record.write(&entry.part_record())) {
        log::warn!("the download cannot be resumed after a power cut, {}: {error}", source.display());
    }
    Ok(())
}

/// Gives the finished file its record and its name. The record goes first: after a power cut between the two, the part file is
/// still whole and is found first.
pub(super) fn finish(version: &Version) {
    if let Err(error) = try_finish(version) {
        log::warn!("{} is not kept in the cache: {error}", version.entry.big.display());
        version.end_caching(&error);
    }
}

fn try_finish(version: &Version) -> io::Result<()> {
    let (Some(file), entry) = (&version.file, &version.entry) else { return Ok(()) };
    complete_record(version)?.write(&entry.record())?;
    rename_durably(file, &entry.part(), &entry.big)?;
    version.state().place = Place::Big;
    entry.is_cached(version.length, Some(version.plain_length));
    remove_file(&entry.part_record())?;
    remove_file(&entry.part_source())?;
    version.give_room_back();
    Ok(())
}

/// The record of a complete version. For an old upload, this box makes the manifest.
fn complete_record(version: &Version) -> io::Result<Record> {
    let record = version.record.clone();
    if record.old.is_none() {
        return Ok(record);
    }
    let hashes = version.state().hashes.clone();
    let chunks = ChunkHashes { length: version.length, chunk: version.chunk, hashes };
    let manifest = Manifest { chunks, plain_length: version.plain_length };
    let subject = Subject { model: &version.entry.model, small: record.small_sha256, small_length: None };
    let text = version.keys.sign_own(subject, &manifest)?;
    Ok(Record { manifest: Some(text), ..record })
}

/// Resumes a download of an earlier process.
pub(super) fn resume(version: &Version, part: &PartRecord) {
    let mut stored = part.stored(version.count());
    if version.is_old() {
        hash_again(version, &mut stored);
    }
    let (there, count) = (stored.iter().filter(|stored| **stored).count(), version.count());
    log::info!("{}: the download is resumed with {there} of {count} chunks", version.entry.big.display());
    version.state().stored = stored;
    if version.is_complete() {
        finish(version);
    }
}

/// Hashes the chunks of an old upload that are there from the beginning on: nothing else is known of them.
fn hash_again(version: &Version, stored: &mut [bool]) {
    let mut prefix = lock(&version.prefix);
    let (mut hashes, mut bytes) = (Vec::new(), PageBuffer::default());
    while stored.get(hashes.len()) == Some(&true) && version.read_stored(hashes.len(), &mut bytes) {
        hashes.push(digest(&bytes));
        prefix.add(&bytes);
    }
    if version.is_refuted_by(&prefix) {
        (hashes, *prefix) = (Vec::new(), Prefix::default());
    }
    stored[hashes.len()..].fill(false);
    version.state().hashes = hashes;
}
