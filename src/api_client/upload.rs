//! Upload: encrypted while it is received, into a spool file or on to the CDN; then the four steps of SPEC section 5, which
//! readers cannot see half of.

use std::collections::HashSet;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::big_sink::{Big, BigSink, Target};
use super::{ApiClient, ApiError, Login, LoginError, small_name};
use crate::cdn_manager::{BigPart, CdnError, CdnManager};
use crate::manifest::{ChunkHasher, Manifest, Subject};
use crate::names::{FileName, Folder};
use crate::security::{EncryptWriter, HashWriter, Hasher, OpenBig, Parts, PartsWriter, sha256_hex};

/// How many other uploads of the same model, committed one after the other meanwhile, are followed by the plain key.
const UPLOADS_AT_ONCE: usize = 4;

/// A big part is shorter than its file by at most this: the small part.
const NOT_IN_BIG_PART: u64 = 3072;

/// A big part is longer than its file by at most this: initialization vector and padding.
const NOT_IN_FILE: u64 = 32;

/// Why a model could not be uploaded.
#[derive(Debug)]
pub enum UploadError {
    /// Nobody has logged in since the start.
    NotLoggedIn,
    /// The CDN configuration could not be loaded.
    Config(LoginError),
    /// The upload could not be kept on local storage.
    Spool(io::Error),
    /// The big part could not be stored. The previous version remains in force.
    Big(CdnError),
    /// The small part was not stored, or the answer was lost. Where the Resource API refused it, the previous version
    /// remains in force.
    Small(ApiError),
    /// Stored and in force for this program's readers, but the plain key could not be set.
    Plain(CdnError),
}

impl fmt::Display for UploadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLoggedIn => f.write_str("log in first: POST /login with email and password"),
            Self::Config(error) => write!(f, "the model cannot be uploaded: {error}"),
            Self::Spool(error) => write!(f, "the upload cannot be kept in MODEL_CACHE_DIR: {error}"),
            Self::Big(error) => write!(f, "the model was not uploaded, the previous version remains: {error}"),
            Self::Small(error @ ApiError::HttpClient(_)) => write!(
                f,
                "the upload was not confirmed, readers get the previous version or the new one; upload it again: {error}"
            ),
            Self::Small(error) => write!(f, "the model was not uploaded, the previous version remains: {error}"),
            Self::Plain(error) => write!(
                f,
                "the model was uploaded, but readers of the old kind still get the previous version; upload it again: {error}"
            ),
        }
    }
}

impl std::error::Error for UploadError {}

impl From<io::Error> for UploadError {
    /// What went wrong where an upload is written to.
    fn from(error: io::Error) -> Self {
        error.downcast::<CdnError>().map_or_else(Self::Spool, Self::Big)
    }
}

/// An upload that is being received: what is written to it is encrypted and kept on local storage or passed on to the CDN.
pub struct Upload {
    login: Arc<Login>,
    encrypt: EncryptWriter<PartsWriter<HashWriter<BigSink, ChunkHasher>>>,
    plain_length: u64,
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.encrypt.write(bytes)?;
        self.plain_length += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.encrypt.flush()
    }
}

/// An upload that has been received whole.
pub struct ReceivedUpload {
    login: Arc<Login>,
    small: Vec<u8>,
    small_sha256: String,
    big: Big,
    /// Unknown where the big part never was in local storage as a whole.
    big_sha256: String,
    manifest: Manifest,
}

impl ReceivedUpload {
    fn subject<'a>(&'a self, folder: &'a str, file_name: &'a str) -> Subject<'a> {
        let (small_sha256, small_length) = (self.small_sha256.as_str(), self.small.len() as u64);
        Subject { folder, file_name, small_sha256, small_length }
    }
}

impl Upload {
    /// Ends the encryption.
    pub fn finish(self) -> Result<ReceivedUpload, UploadError> {
        let Parts { small, big } = self.encrypt.finish().and_then(PartsWriter::finish)?;
        let HashWriter { sink, whole, chunks } = big;
        let chunks = chunks.into_hasher().finish();
        let chunks =
            chunks.ok_or_else(|| io::Error::other("the upload has another length than its request announced"))?;
        let big = sink.finish()?;
        let big_sha256 = match (&big, whole) {
            (Big::Stored(_), _) => String::new(),
            (Big::Local(_), Some(whole)) => whole.into_hasher().finish(),
            (Big::Local(spool), None) => Hasher::of_range(spool.file(), 0..chunks.length)?.finish(),
        };
        Ok(ReceivedUpload {
            login: self.login,
            small_sha256: sha256_hex(&small),
            small,
            big,
            big_sha256,
            manifest: Manifest { chunks, plain_length: self.plain_length },
        })
    }
}

impl ApiClient {
    /// Starts an upload of at most `longest` bytes, of which at least `shortest` are announced. If its place is known already,
    /// it is stored while it is received; a form may also name its folder last.
    pub fn begin_upload(
        &self,
        place: Option<(&Folder, &FileName)>,
        shortest: u64,
        longest: u64,
    ) -> Result<Upload, UploadError> {
        let login = self.current().ok_or(UploadError::NotLoggedIn)?;
        let (shortest, longest) = (shortest.saturating_sub(NOT_IN_BIG_PART), longest.saturating_add(NOT_IN_FILE));
        let target = match place {
            Some((folder, file_name)) => {
                let cdn = self.cdn(&login).map_err(UploadError::Config)?;
                let part_length = cdn.part_length(longest);
                Some(Target { cdn, folder: folder.to_string(), file_name: file_name.to_string(), part_length })
            }
            None => None,
        };
        let spool = self.cache.spool()?;
        let open: OpenBig<_> = Box::new(move |small| {
            let is_local = target.as_ref().is_none_or(|target| shortest <= target.part_length);
            let sink = BigSink::new(spool, sha256_hex(small), target);
            Ok(HashWriter::new(sink, is_local, ChunkHasher::new(shortest, longest)))
        });
        let encrypt = EncryptWriter::new(PartsWriter::new(open), &self.resource_key)?;
        Ok(Upload { login, encrypt, plain_length: 0 })
    }

    /// Publishes an upload as `file_name` in `folder`. Cut at any point it leaves the previous version loadable.
    pub fn publish(&self, upload: ReceivedUpload, folder: &Folder, file_name: &FileName) -> Result<(), UploadError> {
        let _turn = self.uploads.take(format!("{}/{}", &**folder, &**file_name));
        let cdn = self.cdn(&upload.login).map_err(UploadError::Config)?;
        let manifest = self.manifest_keys.sign(upload.subject(folder, file_name), &upload.manifest)?;
        let store = || {
            match &upload.big {
                Big::Stored(parts) => parts.complete()?,
                Big::Local(spool) => {
                    let (file, length) = (spool.file(), upload.manifest.chunks.length);
                    let (sha256, small_sha256) = (upload.big_sha256.as_str(), upload.small_sha256.as_str());
                    cdn.put_generation(folder, file_name, BigPart { file, length, sha256, small_sha256 })?;
                }
            }
            cdn.put_manifest(folder, file_name, &upload.small_sha256, &manifest)
        };
        store().map_err(UploadError::Big)?;

        // The commit: from here on readers see the new version.
        let small_name = small_name(file_name);
        let in_force = || match self.fetch(&upload.login, folder, &small_name) {
            Ok(small) => Ok(Some(sha256_hex(&small.plain))),
            Err(ApiError::NotFound(_) | ApiError::Business { .. }) => Ok(None),
            Err(error) => Err(error),
        };
        let previous = in_force().ok().flatten();
        let commit = |token: &_| self.api.store(token, folder, &small_name, &upload.small);
        if let Err(error) = upload.login.session.call(&self.api, commit) {
            // Without an answer nobody knows; with one, it may be the second, to a call whose first did it.
            if !matches!(error, ApiError::HttpClient(_))
                && in_force().is_ok_and(|hash| hash.as_ref() != Some(&upload.small_sha256))
                && let Err(error) = cdn.delete_generation(folder, file_name, &upload.small_sha256)
            {
                log::warn!("a big part that nobody needs remains in the CDN: {error}");
            }
            return Err(UploadError::Small(error));
        }

        self.set_plain(&upload, &cdn, folder, file_name, store).map_err(UploadError::Plain)?;
        if let Some(previous) = previous
            && let Err(error) = cdn.prune(folder, file_name, &previous)
        {
            log::warn!("old generations of {} remain in the CDN: {error}", &**file_name);
        }
        if let Big::Local(spool) = upload.big {
            let entry = self.cache.entry(folder, file_name);
            if let Err(error) = self.cache.adopt(&entry, spool, &upload.small_sha256, manifest) {
                log::warn!("the upload of {} is not kept in the cache: {error}", &**file_name);
            }
        }
        Ok(())
    }

    /// Sets the plain key to the version in force, which is this one unless another box has committed another since: of
    /// those that upload at once, whoever comes last must leave the plain key at what the Resource API has.
    fn set_plain(
        &self,
        upload: &ReceivedUpload,
        cdn: &CdnManager,
        folder: &Folder,
        file_name: &FileName,
        store_again: impl Fn() -> Result<(), CdnError>,
    ) -> Result<(), CdnError> {
        if !self.old_readers {
            // Before the commit, another box may have taken this generation for one that nobody needs.
            let is_there = cdn.has_generation(folder, file_name, &upload.small_sha256)?;
            return if is_there { Ok(()) } else { store_again() };
        }
        let mut in_force = upload.small_sha256.clone();
        for _ in 0..UPLOADS_AT_ONCE {
            match cdn.set_plain(folder, file_name, &in_force) {
                // As above. (A key that may not list a bucket is told 403 for what is not there.)
                Err(CdnError::Missing { .. } | CdnError::Refused { .. }) if in_force == upload.small_sha256 => {
                    store_again()?;
                    cdn.set_plain(folder, file_name, &in_force)?;
                }
                result => result?,
            }
            match self.fetch(&upload.login, folder, &small_name(file_name)) {
                Ok(small) if sha256_hex(&small.plain) != in_force => in_force = sha256_hex(&small.plain),
                Ok(_) => return Ok(()),
                Err(error) => {
                    log::warn!("whether {} was uploaded by another box meanwhile is not known: {error}", &**file_name);
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Lets one upload of a model at a time take the steps: two at once could end with one's small part and the other's plain
/// key.
#[derive(Default)]
pub(super) struct Turns {
    taken: Mutex<HashSet<String>>,
    released: Condvar,
}

/// Somebody's turn, until it is dropped.
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    name: String,
}

impl Turns {
    fn take(&self, name: String) -> Turn<'_> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken =
            self.released.wait_while(taken, |taken| taken.contains(&name)).unwrap_or_else(PoisonError::into_inner);
        taken.insert(name.clone());
        Turn { turns: self, name }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
        self.turns.released.notify_all();
    }
}
