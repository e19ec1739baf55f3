//! The unlock: from credentials to images in the Docker engine, on a worker thread.

pub mod docker;
mod error;
mod old_images;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use self::docker::{Docker, DockerError, Load};
use self::error::UnlockError;
use crate::api_client::ApiClient;
use crate::binary_split::{
    Archive, ArchiveError, ArchiveIdentity, Format, ManifestReader, UnlockRecord, loaded_tags, tag_of,
};
use crate::configuration::Configuration;
use crate::constants::CHUNK;
use crate::credentials::Credentials;
use crate::metrics::{Stage, Transfer};
use crate::storage::{read_document_up_to, write_document};
use crate::threads::{self, lock};
use crate::unlock_state::{Claim, UnlockMonitor, UnlockState, UnlockStatus};

/// The record of the last unlock, in the root of the cache. It is no valid folder name.
const RECORD: &str = ".unlock.json";

/// The longest record. An image of the engine takes less than two hundred bytes.
const MAX_RECORD: u64 = 4 * 1024 * 1024;

/// How long a start waits for the engine, which may come up later than this service.
const ENGINE_STARTS: Duration = Duration::from_secs(120);

/// How often it is asked.
const ENGINE_CHECK: Duration = Duration::from_secs(5);

/// The `API_VERSION` that every archive satisfies.
const ANY_VERSION: &str = "latest";

/// The one unlock of a process.
pub struct Unlock {
    client: Arc<ApiClient>,
    docker: Docker,
    monitor: UnlockMonitor,
    images_path: PathBuf,
    api_version: String,
    record_path: PathBuf,
    /// `PRUNE_OLD_IMAGES`.
    prunes: bool,
    /// Held while images are loaded or removed, and the record changes with them.
    changing: Mutex<()>,
}

impl Unlock {
    /// An unlock that logs in through `client`.
    pub fn new(configuration: &Configuration, client: Arc<ApiClient>) -> Self {
        Self {
            client,
            docker: Docker::default(),
            monitor: UnlockMonitor::default(),
            images_path: configuration.images_path.clone(),
            api_version: configuration.api_version.clone(),
            record_path: configuration.model_cache_dir.join(RECORD),
            prunes: configuration.prune_old_images,
            changing: Mutex::default(),
        }
    }

    /// Starts the unlock unless it is running or the engine has the images already. Without credentials it uses the login that
    /// is in force. Returns the state, or none if there is no archive.
    pub fn start(self: &Arc<Self>, credentials: Option<Credentials>) -> Option<UnlockState> {
        let state = self.monitor.status().state;
        if state.is_running() {
            return Some(state);
        }
        if !self.images_path.is_file() {
            return None;
        }
        if let Claim::Running(state) = self.monitor.claim() {
            return Some(state);
        }
        // Checked after the claim: otherwise a second caller could find the images missing, be overtaken by the whole
        // unlock of the first, and unlock again. A panic must not leave the claim in place.
        if let Ok(Ok(true)) = catch_unwind(AssertUnwindSafe(|| self.is_done())) {
            log::info!("the engine has the images of the archive already");
            self.monitor.advance(UnlockState::Ready);
            // The unlock does not need the login any more, but loads do.
            if let Some(credentials) = credentials {
                self.client.log_in_soon(credentials);
            }
            let unlock = Arc::clone(self);
            if self.prunes && threads::spawn("prune", move || unlock.prune()).is_err() {
                log::warn!("old images stay until the next unlock: no thread can be started");
            }
            return Some(UnlockState::Ready);
        }
        let unlock = Arc::clone(self);
        match threads::spawn("unlock", move || unlock.run(credentials)) {
            // Not what the monitor says: the worker may be further by now.
            Ok(_) => Some(UnlockState::Authenticating),
            Err(error) => {
                self.monitor.fail(format!("the unlock cannot be started: {error}"));
                Some(UnlockState::Error)
            }
        }
    }

    /// Reports `ready` without a start if the engine still has the images that an earlier process loaded. Waits for an engine
    /// that does not answer yet, unless somebody starts an unlock meanwhile.
    pub fn find_loaded_images(&self) {
        for _ in 0..ENGINE_STARTS.as_secs() / ENGINE_CHECK.as_secs() {
            if self.monitor.status().state != UnlockState::Idle {
                return;
            }
            match self.is_done() {
                Ok(true) => {
                    log::info!("the engine has the images of the archive already");
                    self.monitor.set_ready_if_idle();
                    return self.prune();
                }
                Ok(false) => return,
                Err(_) => thread::sleep(ENGINE_CHECK),
            }
        }
    }

    /// Waits until no unlock is running, and returns how the last one ended.
    pub fn wait_until_ended(&self) -> UnlockState {
        self.monitor.wait_until_ended()
    }

    /// The current state.
    pub fn status(&self) -> UnlockStatus {
        self.monitor.status()
    }

    /// Kills a running `docker load`.
    pub fn stop(&self) {
        self.docker.kill();
    }

    /// Whether the engine has the images of this archive, according to the record. The engine is asked only if the record
    /// fits; the error is that it does not answer.
    fn is_done(&self) -> Result<bool, DockerError> {
        let record = self.record();
        let tags: Vec<String> = record.images.keys().cloned().collect();
        if !self.is_of_archive(&record) || self.check_version(&tags).is_err() {
            return Ok(false);
        }
        for (tag, id) in &record.images {
            if self.docker.image_id(tag)?.as_ref() != Some(id) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Runs the whole unlock. It ends in [`UnlockState::Ready`] or [`UnlockState::Error`], even after a panic.
    fn run(&self, credentials: Option<Credentials>) {
        match catch_unwind(AssertUnwindSafe(|| self.try_run(credentials))) {
            Ok(Ok(images)) => {
                log::info!("unlocked: {} loaded", images.join(", "));
                self.monitor.advance(UnlockState::Ready);
                self.prune();
            }
            Ok(Err(error)) => {
                log::error!("the unlock failed: {error}");
                self.monitor.fail(error.to_string());
            }
            Err(_) => self.monitor.fail("the unlock failed because of an internal error; see the log".into()),
        }
    }

    fn try_run(&self, credentials: Option<Credentials>) -> Result<Vec<String>, UnlockError> {
        if let Some(credentials) = credentials {
            self.client.login_for_unlock(credentials).map_err(UnlockError::Login)?;
        }

        self.monitor.advance(UnlockState::DownloadingKey);
        let fragment = self.client.key_fragment().map_err(UnlockError::KeyFragment)?;

        self.monitor.advance(UnlockState::Decrypting);
        // Taken first: if the archive is replaced meanwhile, the record must not match it.
        let identity = ArchiveIdentity::of(&self.images_path).map_err(ArchiveError::Unreadable)?;
        let archive = Archive::open(&self.images_path, &fragment)?;
        self.docker.check()?;

        self.monitor.advance(UnlockState::LoadingImages);
        let _changing = lock(&self.changing);
        let mut record = self.record();
        let before = old_images::list_before_load(&self.docker, &mut record, &identity);
        self.write(&record);
        let tags = self.load(archive)?;
        let mut images = BTreeMap::new();
        for tag in &tags {
            let id = self.docker.image_id(tag)?.ok_or_else(|| UnlockError::NotLoaded(tag.clone()))?;
            images.insert(tag.clone(), id);
        }
        record.archive = Some(identity);
        record.images = images;
        old_images::record_load(&self.docker, &mut record, &before);
        self.write(&record);
        Ok(tags)
    }

    fn record(&self) -> UnlockRecord {
        read_document_up_to(MAX_RECORD, &self.record_path).unwrap_or_default()
    }

    fn write(&self, record: &UnlockRecord) {
        if let Err(error) = write_document(record, &self.record_path) {
            log::warn!("{} cannot be written, so the next start unlocks again: {error}", self.record_path.display());
        }
    }

    /// Whether the archive at `IMAGES_PATH` is the one that was unlocked last.
    fn is_of_archive(&self, record: &UnlockRecord) -> bool {
        record.archive.is_some() && ArchiveIdentity::of(&self.images_path).ok() == record.archive
    }

    /// Removes what earlier archives have left in the engine, if that is wanted.
    fn prune(&self) {
        let _changing = lock(&self.changing);
        let mut record = self.record();
        // A record that could not be written does not know which images the archive has now.
        if self.prunes && self.is_of_archive(&record) && old_images::remove(&self.docker, &mut record) {
            self.write(&record);
        }
    }

    /// Streams the archive into `docker load` and returns the tags that the engine must have now.
    fn load(&self, archive: Archive) -> Result<Vec<String>, UnlockError> {
        let (format, total) = (archive.format(), archive.plain_length());
        self.monitor.progress(0, total);
        let mut load = self.docker.load()?;
        let mut stream = Tee {
            archive: archive.into_reader(),
            load: &mut load,
            transfer: Transfer::begin(Stage::Unlock, self.images_path.to_string_lossy(), 0, Some(total)),
            report: &|done| self.monitor.progress(done, total),
            done: 0,
            failure: None,
        };
        let read = match format {
            Format::Tar => ManifestReader::read(&mut stream).map(|manifest| Some(manifest.tags())),
            Format::Compressed => drain(&mut stream).map(|()| None),
        };
        let failure = stream.failure.take();
        let tags = match (read, failure) {
            (_, Some(TeeFailure::Docker)) => return Err(load.into_error().into()),
            // Dropping the load kills docker before it sees the end of its input.
            (_, Some(TeeFailure::Archive(error))) | (Err(error), None) => return Err(UnlockError::Damaged(error)),
            (Ok(tags), None) => tags,
        };
        let Some(tags) = tags else {
            let tags = loaded_tags(&load.finish()?);
            self.check_version(&tags)?;
            return Ok(tags);
        };
        self.check_version(&tags)?;
        let before = tags.iter().map(|tag| self.docker.image_id(tag)).collect::<Result<Vec<_>, _>>()?;
        if let Err(error) = load.finish() {
            self.roll_back(&tags, &before);
            return Err(error.into());
        }
        Ok(tags)
    }

    /// Restores the tags of an archive that failed halfway: docker loads its images one by one, and half an archive is worse
    /// than none.
    fn roll_back(&self, tags: &[String], before: &[Option<String>]) {
        for (tag, before) in tags.iter().zip(before) {
            let now = self.docker.image_id(tag);
            let result = match (now, before) {
                (Ok(now), before) if now == *before => continue,
                (Ok(_), Some(id)) => self.docker.tag(id, tag),
                (Ok(_), None) => self.docker.remove(tag),
                (Err(error), _) => Err(error),
            };
            if let Err(error) = result {
                log::warn!("docker load failed, and {tag} of its archive remains in the engine: {error}");
            }
        }
    }

    fn check_version(&self, tags: &[String]) -> Result<(), UnlockError> {
        if tags.is_empty() {
            return Err(UnlockError::NoTags);
        }
        if self.api_version == ANY_VERSION || tags.iter().any(|tag| tag_of(tag) == Some(&self.api_version)) {
            return Ok(());
        }
        Err(UnlockError::WrongVersion { expected: self.api_version.clone(), found: tags.to_vec() })
    }
}

/// Reads an archive and writes what it reads to docker.
struct Tee<'a, R> {
    archive: R,
    load: &'a mut Load,
    transfer: Transfer,
    report: &'a dyn Fn(u64),
    done: u64,
    failure: Option<TeeFailure>,
}

/// The side that failed. The tar reader above a [`Tee`] would replace the error by its own.
enum TeeFailure {
    Archive(io::Error),
    Docker,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.failure.is_some() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let count = match self.archive.read(out) {
            Ok(count) => count,
            Err(error) => {
                self.failure = Some(TeeFailure::Archive(error));
                return Err(io::ErrorKind::InvalidData.into());
            }
        };
        if self.load.write_all(&out[..count]).is_err() {
            self.failure = Some(TeeFailure::Docker);
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.done += count as u64;
        self.transfer.moved(count as u64);
        (self.report)(self.done);
        Ok(count)
    }
}

fn drain(source: &mut impl Read) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    while source.read(&mut buffer)? > 0 {}
    Ok(())
}
