//! Upload: the model is encrypted while it is received, into a spool file or straight to the CDN. Then it is published in the
//! four steps of SPEC section 5, so that readers get the previous version or the new one.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;

use super::ApiClient;
use super::big_sink::{Big, BigSink, Target};
use super::login::{Login, LoginError};
use super::resource_api::{ApiError, small_name};
use crate::cdn_manager::{BigPart, CdnError, CdnManager};
use crate::manifest::{ChunkHasher, Manifest, Subject};
use crate::names::ModelName;
use crate::security::{EncryptWriter, HashWriter, OpenBig, Parts, PartsWriter, SmallHash};
use crate::threads::lock;

/// Give up setting the plain key after this many commits by other boxes at the same time.
const MAX_CONCURRENT_COMMITS: usize = 4;

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
    /// The big part could not be stored. The previous version remains current.
    Big(CdnError),
    /// The small part was not stored, or the answer was lost. If the Resource API refused it, the previous version remains
    /// current.
    Small(ApiError),
    /// The new version is current for this program's readers, but the plain key could not be set.
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
                "the model was uploaded, but old readers still get the previous version; upload it again: {error}"
            ),
        }
    }
}

impl From<io::Error> for UploadError {
    /// The error of a write to an [`Upload`]: it comes from the CDN or from local storage.
    fn from(error: io::Error) -> Self {
        error.downcast::<CdnError>().map_or_else(Self::Spool, Self::Big)
    }
}

/// An upload that is being received: what is written to it is encrypted, then spooled or sent to the CDN.
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
    hash: SmallHash,
    big: Big,
    manifest: Manifest,
}

impl Upload {
    /// Ends the encryption.
    pub fn finish(self) -> Result<ReceivedUpload, UploadError> {
        let Parts { small, big } = self.encrypt.finish().and_then(PartsWriter::finish)?;
        let HashWriter { sink, whole, chunks } = big;
        let chunks = chunks.into_hasher().finish();
        let chunks =
            chunks.ok_or_else(|| io::Error::other("the upload has another length than its request announced"))?;
        let big = sink.finish(whole.map(|whole| whole.into_hasher().finish()))?;
        let manifest = Manifest { chunks, plain_length: self.plain_length };
        Ok(ReceivedUpload { login: self.login, hash: SmallHash::of(&small), small, big, manifest })
    }
}

impl ApiClient {
    /// Starts an upload of at least `shortest` and at most `longest` bytes. If the model is known already, its big part is sent
    /// to the CDN while it is received; a form may also name the folder last.
    pub fn begin_upload(&self, model: Option<ModelName>, shortest: u64, longest: u64) -> Result<Upload, UploadError> {
        self.held.expire();
        let login = self.current().ok_or(UploadError::NotLoggedIn)?;
        let (shortest, longest) = (shortest.saturating_sub(NOT_IN_BIG_PART), longest.saturating_add(NOT_IN_FILE));
        let target = match model {
            Some(model) => {
                let cdn = self.cdn(&login).map_err(UploadError::Config)?;
                let part_length = cdn.part_length(longest);
                Some(Target { cdn, model, part_length })
            }
            None => None,
        };
        let expected = target.as_ref().map_or(shortest, |target: &Target| shortest.min(target.part_length));
        let spool = self.cache.spool(expected)?;
        let open: OpenBig<_> = Box::new(move |small| {
            let is_local = target.as_ref().is_none_or(|target| shortest <= target.part_length);
            let sink = BigSink::new(spool, SmallHash::of(small), target);
            Ok(HashWriter::new(sink, is_local, ChunkHasher::new(shortest, longest)))
        });
        let encrypt = EncryptWriter::new(PartsWriter::new(open), &self.resource_key)?;
        Ok(Upload { login, encrypt, plain_length: 0 })
    }

    /// Publishes an upload as `model`. If it is cut off at any point, the previous version remains loadable.
    pub fn publish(&self, upload: ReceivedUpload, model: &ModelName) -> Result<(), UploadError> {
        let turn = self.uploads.of(model.clone());
        let _turn = lock(&turn);
        let cdn = self.cdn(&upload.login).map_err(UploadError::Config)?;
        let subject = Subject { model, small: upload.hash, small_length: Some(upload.small.len() as u64) };
        let manifest = self.manifest_keys.sign(subject, &upload.manifest)?;
        let publication = Publication { model, upload: &upload, cdn: &cdn, manifest: &manifest };
        publication.store().map_err(UploadError::Big)?;
        let previous = publication.current_version().ok().flatten();
        publication.commit()?;
        publication.serve_old_readers(self.old_readers).map_err(UploadError::Plain)?;
        if let Some(previous) = previous
            && let Err(error) = cdn.prune(model, previous, upload.hash)
        {
            log::warn!("old generations of {model} remain in the CDN: {error}");
        }
        if let Big::Local(spool, _) = upload.big {
            let entry = self.cache.entry(model);
            if let Err(error) = self.cache.adopt(&entry, spool, upload.hash, manifest) {
                log::warn!("the upload of {model} is not kept in the cache: {error}");
            }
        }
        Ok(())
    }
}

/// The steps that make a received upload the current version.
struct Publication<'a> {
    model: &'a ModelName,
    upload: &'a ReceivedUpload,
    cdn: &'a CdnManager,
    manifest: &'a str,
}

impl Publication<'_> {
    /// Stores the generation and its manifest, which nobody asks for yet.
    fn store(&self) -> Result<(), CdnError> {
        let small = self.upload.hash;
        match &self.upload.big {
            Big::Stored(parts) => parts.complete()?,
            Big::Local(spool, sha256) => {
                let (length, sha256) = (self.upload.manifest.chunks.length, *sha256);
                self.cdn.put_generation(self.model, BigPart { file: spool.file(), length, sha256, small })?;
            }
        }
        self.cdn.put_manifest(self.model, small, self.manifest)
    }

    /// The version that the Resource API has, if any.
    fn current_version(&self) -> Result<Option<SmallHash>, ApiError> {
        match self.upload.login.session.fetch(&self.model.folder, &small_name(self.model)) {
            Ok(small) => Ok(Some(SmallHash::of(&small.plain))),
            Err(ApiError::NotFound(_) | ApiError::Business { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Stores the small part: from here on readers get the new version.
    fn commit(&self) -> Result<(), UploadError> {
        let (folder, name) = (&*self.model.folder, small_name(self.model));
        let stored = self.upload.login.session.call(|api, token| api.store(token, folder, &name, &self.upload.small));
        let Err(error) = stored else { return Ok(()) };
        // Without an answer the small part may have been stored. An error may also answer a repetition of a call that did it.
        if !matches!(error, ApiError::HttpClient(_))
            && self.current_version().is_ok_and(|current| current != Some(self.upload.hash))
            && let Err(error) = self.cdn.delete_generation(self.model, self.upload.hash)
        {
            log::warn!("an unused big part of {} remains in the CDN: {error}", self.model);
        }
        Err(UploadError::Small(error))
    }

    /// Sets the plain key to the current version, which is this one unless another box has committed since. Of several uploads
    /// at once, the last one to finish leaves the plain key at the version that the Resource API has.
    fn serve_old_readers(&self, old_readers: bool) -> Result<(), CdnError> {
        let uploaded = self.upload.hash;
        if !old_readers {
            // Before the commit another box may have deleted this generation as unused.
            return if self.cdn.has_generation(self.model, uploaded)? { Ok(()) } else { self.store() };
        }
        let mut current = uploaded;
        for _ in 0..MAX_CONCURRENT_COMMITS {
            match self.cdn.set_plain(self.model, current) {
                // As above. (A key without the right to list a bucket gets 403 for a missing object.)
                Err(error) if current == uploaded && (error.is_missing() || error.is_refused()) => {
                    self.store()?;
                    self.cdn.set_plain(self.model, current)?;
                }
                result => result?,
            }
            match self.upload.login.session.fetch(&self.model.folder, &small_name(self.model)) {
                Ok(small) if SmallHash::of(&small.plain) != current => current = SmallHash::of(&small.plain),
                Ok(_) => return Ok(()),
                Err(error) => {
                    log::warn!("cannot check whether another box uploaded {} meanwhile: {error}", self.model);
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
