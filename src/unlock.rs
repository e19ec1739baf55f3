//! The unlock: from credentials to images in the Docker engine, on a thread of its own.

pub mod docker;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use self::docker::{Docker, DockerError, Load};
use crate::api_client::{ApiClient, ApiError};
use crate::binary_split::{
    Archive, ArchiveError, ArchiveIdentity, Format, ManifestReader, UnlockRecord, loaded_tags, tag_of,
};
use crate::configuration::Configuration;
use crate::constants::CHUNK;
use crate::credentials::Credentials;
use crate::metrics::{Stage, Transfer};
use crate::storage::{read_document, write_document};
use crate::threads;
use crate::unlock_state::{Claim, UnlockMonitor, UnlockState, UnlockStatus};

/// The record of the last unlock, in the cache's root. No folder can have this name.
const RECORD: &str = ".unlock.json";

/// The version that any archive satisfies.
const ANY_VERSION: &str = "latest";

/// Why an unlock failed.
#[derive(Debug)]
pub enum UnlockError {
    /// The credentials were not accepted, or the Resource API could not be asked.
    Login(ApiError),
    /// The key fragment could not be fetched.
    KeyFragment(ApiError),
    /// The archive cannot be used.
    Archive(ArchiveError),
    /// Docker did not take the images.
    Docker(DockerError),
    /// The archive turned out to be damaged while it was read.
    Damaged(io::Error),
    /// The archive names no image, so nothing could be confirmed.
    NoTags,
    /// `API_VERSION` is not among the archive's tags.
    WrongVersion {
        /// The expected tag.
        expected: String,
        /// The tags that the archive names.
        found: Vec<String>,
    },
    /// docker reported success, but does not have this image.
    NotLoaded(String),
}

impl fmt::Display for UnlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Login(error) => write!(f, "login failed: {error}"),
            Self::KeyFragment(error) => write!(f, "the key fragment cannot be fetched: {error}"),
            Self::Archive(error) => error.fmt(f),
            Self::Docker(error) => error.fmt(f),
            Self::Damaged(error) => {
                write!(f, "the encrypted archive at IMAGES_PATH is damaged ({error}); copy it to the box again")
            }
            Self::NoTags => f.write_str("the archive names no image; make it with docker save NAME:TAG"),
            Self::WrongVersion { expected, found } => {
                write!(f, "API_VERSION is {expected}, but the archive holds {}", found.join(", "))
            }
            Self::NotLoaded(tag) => write!(f, "docker load reported success, but the engine has no image {tag}"),
        }
    }
}

impl std::error::Error for UnlockError {}

impl From<DockerError> for UnlockError {
    fn from(error: DockerError) -> Self {
        Self::Docker(error)
    }
}

impl From<ArchiveError> for UnlockError {
    fn from(error: ArchiveError) -> Self {
        Self::Archive(error)
    }
}

/// The one unlock in a process.
pub struct Unlock {
    client: Arc<ApiClient>,
    docker: Docker,
    monitor: UnlockMonitor,
    images_path: PathBuf,
    api_version: String,
    record_path: PathBuf,
}

impl Unlock {
    /// An unlock as configured, which logs in through `client`.
    pub fn new(configuration: &Configuration, client: Arc<ApiClient>) -> Self {
        Self {
            client,
            docker: Docker::default(),
            monitor: UnlockMonitor::default(),
            images_path: configuration.images_path.clone(),
            api_version: configuration.api_version.clone(),
            record_path: configuration.model_cache_dir.join(RECORD),
        }
    }

    /// Starts the unlock, unless it is running or the engine has its images already. Returns the state, or none if there is no
    /// archive.
    pub fn start(self: &Arc<Self>, credentials: Credentials) -> Option<UnlockState> {
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
        // The engine is asked after the claim: of two callers before it, one could find the images missing, wait while the
        // other's unlock runs and ends, and unlock again. A panic must not leave the claim behind.
        if catch_unwind(AssertUnwindSafe(|| self.is_done())).unwrap_or(false) {
            log::info!("the archive's images are loaded already");
            self.monitor.advance(UnlockState::Ready);
            return Some(UnlockState::Ready);
        }
        let unlock = Arc::clone(self);
        if let Err(error) = threads::spawn("unlock", move || unlock.run(credentials)) {
            self.monitor.fail(format!("the unlock cannot be started: {error}"));
        }
        Some(self.status().state)
    }

    /// Where the unlock is.
    pub fn status(&self) -> UnlockStatus {
        self.monitor.status()
    }

    /// Ends a `docker load` that is running.
    pub fn stop(&self) {
        self.docker.kill();
    }

    /// Whether the images of this very archive are in the engine already.
    fn is_done(&self) -> bool {
        let Some(record) = read_document::<UnlockRecord>(&self.record_path) else { return false };
        let same_archive = ArchiveIdentity::of(&self.images_path).is_ok_and(|identity| identity == record.archive);
        let still_there =
            |(tag, id): (&String, &String)| self.docker.image_id(tag).is_ok_and(|found| found.as_ref() == Some(id));
        same_archive
            && !record.images.is_empty()
            && self.check_version(&record.images.keys().cloned().collect::<Vec<_>>()).is_ok()
            && record.images.iter().all(still_there)
    }

    /// Does it all. Ends in [`UnlockState::Ready`] or [`UnlockState::Error`], whatever happens, a panic included.
    fn run(&self, credentials: Credentials) {
        match catch_unwind(AssertUnwindSafe(|| self.try_run(credentials))) {
            Ok(Ok(images)) => {
                log::info!("unlocked: {} loaded", images.join(", "));
                self.monitor.advance(UnlockState::Ready);
            }
            Ok(Err(error)) => {
                log::error!("the unlock failed: {error}");
                self.monitor.fail(error.to_string());
            }
            Err(_) => self.monitor.fail("the unlock failed for an internal reason; see the log".into()),
        }
    }

    fn try_run(&self, credentials: Credentials) -> Result<Vec<String>, UnlockError> {
        self.client.login_for_unlock(credentials).map_err(UnlockError::Login)?;

        self.monitor.advance(UnlockState::DownloadingKey);
        let fragment = self.client.key_fragment().map_err(UnlockError::KeyFragment)?;

        self.monitor.advance(UnlockState::Decrypting);
        // What the archive is now: should it be replaced meanwhile, the record will not fit.
        let identity = ArchiveIdentity::of(&self.images_path).map_err(ArchiveError::Unreadable)?;
        let archive = Archive::open(&self.images_path, &fragment)?;
        self.docker.check()?;

        self.monitor.advance(UnlockState::LoadingImages);
        let tags = self.load(archive)?;
        let mut images = BTreeMap::new();
        for tag in &tags {
            let id = self.docker.image_id(tag)?.ok_or_else(|| UnlockError::NotLoaded(tag.clone()))?;
            images.insert(tag.clone(), id);
        }
        if let Err(error) = write_document(&UnlockRecord { archive: identity, images }, &self.record_path) {
            log::warn!("the next start will unlock again, {} cannot be written: {error}", self.record_path.display());
        }
        Ok(tags)
    }

    /// Streams the archive into `docker load` and answers the tags that must be in the engine now.
    fn load(&self, archive: Archive) -> Result<Vec<String>, UnlockError> {
        let (format, total) = (archive.format(), archive.plain_length());
        self.monitor.progress(0, total);
        let mut load = self.docker.load()?;
        let mut stream = Feed {
            source: archive.into_reader(),
            load: &mut load,
            transfer: Transfer::begin(Stage::Unlock, self.images_path.to_string_lossy(), 0, Some(total)),
            report: &|done| self.monitor.progress(done, total),
            done: 0,
            broken: None,
        };
        let read = match format {
            Format::Tar => ManifestReader::read(&mut stream).map(|manifest| Some(manifest.tags())),
            Format::Compressed => drain(&mut stream).map(|()| None),
        };
        let broken = stream.broken.take();
        let tags = match (read, broken) {
            // Dropping the load kills docker before it sees an end.
            (_, Some(Broken::Source(error))) => return Err(UnlockError::Damaged(error)),
            (_, Some(Broken::Docker)) => return Err(load.why().into()),
            (Err(error), None) => return Err(UnlockError::Damaged(error)),
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

    /// Docker takes the images of an archive one by one. If it fails at one, those before it are in the engine already, and
    /// half an archive is worse than none.
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
                log::warn!("{tag} of the archive that failed remains in the engine: {error}");
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

/// Passes what is read from an archive on to docker.
struct Feed<'a, R> {
    source: R,
    load: &'a mut Load,
    transfer: Transfer,
    report: &'a dyn Fn(u64),
    done: u64,
    broken: Option<Broken>,
}

/// Which side failed: a tar reader in between knows its own words for it only.
enum Broken {
    Source(io::Error),
    Docker,
}

impl<R: Read> Read for Feed<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.broken.is_some() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let count = match self.source.read(out) {
            Ok(count) => count,
            Err(error) => {
                self.broken = Some(Broken::Source(error));
                return Err(io::ErrorKind::InvalidData.into());
            }
        };
        if self.load.write_all(&out[..count]).is_err() {
            self.broken = Some(Broken::Docker);
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
