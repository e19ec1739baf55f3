//! Load: the small part from the Resource API, the big part from the cache or the CDN, both joined and decrypted as they
//! stream.

use std::fmt;
use std::io::{self, BufRead, Cursor, Read};
use std::ops::Range;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::offline::{SmallPart, Source};
use super::part::{RangeReader, Wanted, entity_tag};
use super::{ApiClient, ApiError, Login, LoginError};
use crate::cdn_manager::{BigObject, CdnError, CdnManager};
use crate::manifest::{MAX_BIG_PART, ManifestError, Subject};
use crate::metrics;
use crate::model_cache::{Entry, Evidence, Refusal, Remote, Version};
use crate::names::{FileName, Folder};
use crate::security::{BLOCK, DecryptError, DecryptReader, HELD_BACK, plain_length, sha256_hex};

/// A model's plaintext, or a range of it: its exact length, and its bytes. Every byte
/// was proven before it is given out. (Of an old upload, a read that fails means that the bytes given out so far may be wrong;
/// at least the last one has then not been given out.)
pub struct Plaintext {
    /// Length of the whole plaintext in bytes.
    pub length: u64,
    /// Which bytes of it these are, if a range was asked for.
    pub range: Option<Range<u64>>,
    /// The strong entity tag of the plaintext, with its quotes.
    pub tag: String,
    /// The bytes.
    pub reader: Box<dyn BufRead + Send>,
}

/// Why a model could not be loaded.
#[derive(Debug)]
pub enum LoadError {
    /// Nobody has logged in since the start.
    NotLoggedIn,
    /// The small part could not be fetched.
    Small(ApiError),
    /// The Resource API is away, and what is kept cannot be used.
    Offline(ApiError, Refusal),
    /// The range that was asked for begins behind the end.
    NoSuchRange {
        /// Length of the plaintext in bytes.
        length: u64,
    },
    /// The CDN configuration could not be loaded.
    Config(LoginError),
    /// The big part could not be fetched.
    Big(CdnError),
    /// The manifest of the big part is not one that this box accepts.
    Manifest(ManifestError),
    /// The big part has no manifest, and needs one, as this says.
    NoManifest(&'static str),
    /// The parts that the Resource API and the CDN have do not belong together.
    TornPair,
    /// The parts do not decrypt.
    Decrypt(DecryptError),
    /// The cache, or the transfer into it, failed.
    Io(io::Error),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLoggedIn => f.write_str("log in first: POST /login with email and password"),
            Self::Small(ApiError::NotFound(_)) => {
                f.write_str("the Resource API has no model of this name in this folder; check both")
            }
            Self::Small(error) => write!(f, "the small part of the model cannot be fetched: {error}"),
            Self::Offline(away, refusal) => {
                write!(f, "the small part of the model cannot be fetched: {away}; offline: {refusal}")
            }
            Self::NoSuchRange { length } => write!(f, "the range begins behind the model's {length} bytes"),
            Self::Config(error) => write!(f, "the big part of the model cannot be fetched: {error}"),
            Self::Big(error) => write!(f, "the big part of the model cannot be fetched: {error}"),
            Self::Manifest(error) => write!(f, "the manifest of the model {error}"),
            Self::NoManifest(reason) => {
                write!(f, "the model has no manifest in the CDN, so nothing proves it, and {reason}; upload it again")
            }
            Self::TornPair => f.write_str(
                "the model's parts in the Resource API and in the CDN are of different uploads; upload the model again",
            ),
            Self::Decrypt(error) => write!(f, "the model cannot be decrypted: {error} (check RESOURCE_KEY_SALT)"),
            Self::Io(error) => write!(f, "the model cannot be loaded: {error}"),
        }
    }
}

impl std::error::Error for LoadError {}

/// What one look at both parts can come to.
enum Attempt {
    Loaded(Plaintext),
    /// The parts do not fit: somebody may be uploading right now, so both are worth a second look.
    Mismatch(LoadError),
}

impl ApiClient {
    /// Loads a model, or a range of it. Everything that can be known before the first byte has been checked when this returns.
    pub fn load(
        self: &Arc<Self>,
        folder: &Folder,
        file_name: &FileName,
        wanted: &Wanted,
    ) -> Result<Plaintext, LoadError> {
        let login = self.current().ok_or(LoadError::NotLoggedIn)?;
        match self.try_load(&login, folder, file_name, wanted)? {
            Attempt::Loaded(plaintext) => Ok(plaintext),
            Attempt::Mismatch(_) => match self.try_load(&login, folder, file_name, wanted)? {
                Attempt::Loaded(plaintext) => Ok(plaintext),
                Attempt::Mismatch(error) => Err(error),
            },
        }
    }

    fn try_load(
        self: &Arc<Self>,
        login: &Arc<Login>,
        folder: &Folder,
        file_name: &FileName,
        wanted: &Wanted,
    ) -> Result<Attempt, LoadError> {
        let entry = self.cache.entry(folder, file_name);
        let SmallPart { plain: small, source } = self.small_part(login, folder, file_name, &entry)?;
        let small_sha256 = sha256_hex(&small);
        let subject = Subject { folder, file_name, small_sha256: &small_sha256, small_length: small.len() as u64 };
        let remote = self.remote(login);
        let found = self.cache.find(&entry, subject, &remote);
        let (version, keep) = match source {
            Source::Kept(away) => match found.filter(|version| version.is_complete()) {
                Some(version) => {
                    self.may_be_old(&entry, &version)?;
                    log::warn!("{}/{} is loaded offline: {away}", &**folder, &**file_name);
                    (version, None)
                }
                None => return Err(LoadError::Offline(away, Refusal::DoesNotOpen)),
            },
            Source::Api(keep) => match found.filter(|version| !self.was_replaced(login, folder, file_name, version)) {
                Some(version) if self.may_be_old(&entry, &version).is_ok() => (version, Some(keep)),
                _ => match self.discover(login, &entry, &small, subject)? {
                    Ok(version) => (version, Some(keep)),
                    Err(mismatch) => return Ok(Attempt::Mismatch(mismatch)),
                },
            },
        };
        if version.is_old() {
            metrics::OLD_UPLOADS.add();
        }
        let length = version.plain_length();
        let tag = entity_tag(&small_sha256);
        let range = wanted.of(length, &tag).map_err(|_| LoadError::NoSuchRange { length })?;
        let reader: Box<dyn BufRead + Send> = match &range {
            Some(range) if version.proves_ranges() => {
                if let Some(keep) = keep.filter(|_| version.is_complete()) {
                    keep.now();
                }
                self.stretch(&small, &version, range)
            }
            _ => {
                let big = version.read(0..version.length());
                let big: Box<dyn Read + Send> = match keep {
                    Some(keep) => Box::new(keep.at_end_of(big, Arc::clone(&version))),
                    None => Box::new(big),
                };
                self.plaintext(small, big, range.as_ref())
            }
        };
        Ok(Attempt::Loaded(Plaintext { length, range, tag, reader }))
    }

    /// As [`look`](Self::look). A key that was replaced is told of a manifest what it would be told if there were none, so when
    /// the configuration was fetched again on the way, nothing counts that was learned before.
    fn discover(
        self: &Arc<Self>,
        login: &Arc<Login>,
        entry: &Entry,
        small: &[u8],
        subject: Subject<'_>,
    ) -> Result<Result<Arc<Version>, LoadError>, LoadError> {
        let before = self.cdn(login).map_err(LoadError::Config)?;
        let found = self.look(login, entry, small, subject);
        let now = self.cdn(login).map_err(LoadError::Config)?;
        if Arc::ptr_eq(&before, &now) { found } else { self.look(login, entry, small, subject) }
    }

    /// Finds out what the CDN has for a small part: a proven version, or an old upload where those are allowed.
    fn look(
        self: &Arc<Self>,
        login: &Arc<Login>,
        entry: &Entry,
        small: &[u8],
        subject: Subject<'_>,
    ) -> Result<Result<Arc<Version>, LoadError>, LoadError> {
        let Subject { folder, file_name, small_sha256, .. } = subject;
        let cdn = self.cdn_to_load(login)?;
        let manifest = cdn.manifest(folder, file_name, small_sha256).map_err(LoadError::Big)?;
        if let Some(text) = manifest {
            let manifest = self.manifest_keys.verify(&text, subject).map_err(LoadError::Manifest)?;
            return Ok(Ok(self.cache.create(entry, subject, Evidence::Manifest(manifest, text), self.remote(login))));
        }
        let mut object = cdn.find_plain(folder, file_name).map_err(LoadError::Big)?;
        if object.small_sha256.as_ref().is_some_and(|expected| expected != small_sha256) {
            return Ok(Err(LoadError::TornPair));
        }
        if let Some(reason) = self.needs_manifest(entry) {
            return Ok(Err(LoadError::NoManifest(reason)));
        }
        if object.length > MAX_BIG_PART {
            return Err(LoadError::Io(io::Error::other("the CDN tells a length that no model has; upload it again")));
        }
        if object.tail.is_none() {
            // The CDN serves no ranges, so the padding is known when the whole was here.
            log::info!("the CDN serves no ranges: the model is read once before it is given out");
            object.tail = Some(self.tail_of_whole(login, &object)?);
        }
        let plain_length = match self.plain_length(small, object.length, object.tail.as_deref().unwrap_or_default()) {
            Ok(length) => length,
            Err(error) => return Ok(Err(LoadError::Decrypt(error))),
        };
        log::warn!("{folder}/{file_name} is an old upload without a manifest, so nothing proves it; upload it again");
        Ok(Ok(self.cache.create(entry, subject, Evidence::Old(object, plain_length), self.remote(login))))
    }

    /// Why an old upload of this model cannot be taken, if so.
    fn needs_manifest(&self, entry: &Entry) -> Option<&'static str> {
        if self.manifest_keys.are_required() {
            Some("REQUIRE_MANIFEST or TRUSTED_KEYS_PATH demands one")
        } else if entry.was_proven() {
            Some("this box has had a version of it with one, which somebody may have taken away")
        } else {
            None
        }
    }

    fn may_be_old(&self, entry: &Entry, version: &Version) -> Result<(), LoadError> {
        let refusal = if version.is_old() { self.needs_manifest(entry) } else { None };
        refusal.map_or(Ok(()), |reason| Err(LoadError::NoManifest(reason)))
    }

    /// Whether the CDN has another object by now than the old upload in the cache. An old uploader replaces both parts one after
    /// the other, so what was downloaded between the two is no pair.
    fn was_replaced(&self, login: &Arc<Login>, folder: &str, file_name: &str, version: &Version) -> bool {
        version.may_be_torn()
            && self
                .cdn(login)
                .is_ok_and(|cdn| cdn.find_plain(folder, file_name).is_ok_and(|now| version.is_replaced_by(&now)))
    }

    fn cdn_to_load(&self, login: &Login) -> Result<Arc<CdnManager>, LoadError> {
        self.cdn(login).map_err(LoadError::Config)
    }

    /// The way to the CDN. Nothing is asked before something is missing.
    fn remote(self: &Arc<Self>, login: &Arc<Login>) -> Remote {
        let (client, login) = (Arc::clone(self), Arc::clone(login));
        let cdn = Arc::new(move || client.cdn(&login));
        let connections = {
            let cdn = Arc::clone(&cdn);
            move || cdn().map_or(1, |cdn| cdn.connections())
        };
        let open = move |object: &BigObject, range| -> Box<dyn Read + Send> {
            match cdn() {
                Ok(cdn) => Box::new(cdn.read(object, range)),
                Err(error) => Box::new(Unreadable(error.to_string())),
            }
        };
        Remote { open: Arc::new(open), connections: Arc::new(connections) }
    }

    /// The last two cipher blocks of an object, of which nothing less than all is to be had.
    fn tail_of_whole(self: &Arc<Self>, login: &Arc<Login>, object: &BigObject) -> Result<Vec<u8>, LoadError> {
        let mut reader = self.cdn_to_load(login)?.read(object, 0..object.length);
        let start = object.length.saturating_sub(HELD_BACK as u64);
        io::copy(&mut (&mut reader).take(start), &mut io::sink()).map_err(LoadError::Io)?;
        let mut tail = Vec::new();
        reader.take(HELD_BACK as u64).read_to_end(&mut tail).map_err(LoadError::Io)?;
        Ok(tail)
    }

    /// The length of the plaintext of both parts, from the last two cipher blocks of them together.
    fn plain_length(&self, small: &[u8], big_length: u64, big_tail: &[u8]) -> Result<u64, DecryptError> {
        // A big part can be shorter than two blocks, then the small part has the beginning of them.
        let mut joined = small[small.len().saturating_sub(HELD_BACK)..].to_vec();
        joined.extend_from_slice(big_tail);
        let tail = joined.last_chunk::<HELD_BACK>().ok_or(DecryptError::TooShort)?;
        plain_length(small.len() as u64 + big_length, tail, &self.resource_key)
    }

    /// The plaintext of both parts. Of a range, what comes before and after it is decrypted and left out.
    fn plaintext(
        &self,
        small: Zeroizing<Vec<u8>>,
        big: impl Read + Send + 'static,
        range: Option<&Range<u64>>,
    ) -> Box<dyn BufRead + Send> {
        let whole = DecryptReader::new(Cursor::new(small).chain(big), self.resource_key.clone());
        match range {
            Some(range) => Box::new(RangeReader::new(whole, range.start, range.end - range.start)),
            None => Box::new(whole),
        }
    }

    /// A range of the plaintext from the cipher blocks that hold it.
    fn stretch(
        &self,
        small: &Zeroizing<Vec<u8>>,
        version: &Arc<Version>,
        range: &Range<u64>,
    ) -> Box<dyn BufRead + Send> {
        let block = BLOCK as u64;
        // Plaintext lies one block after its place, and the block before it is its initialization vector.
        let (start, end) = (range.start / block * block, (range.end.div_ceil(block) + 1) * block);
        let small_length = small.len() as u64;
        let of_small = Zeroizing::new(small[start.min(small_length) as usize..end.min(small_length) as usize].to_vec());
        let of_big = version.read(start.saturating_sub(small_length)..end.saturating_sub(small_length));
        let blocks = DecryptReader::of_stretch(Cursor::new(of_small).chain(of_big), self.resource_key.clone());
        Box::new(RangeReader::new(blocks, range.start - start, range.end - range.start))
    }
}

/// Stands for a big part that cannot be asked for, and says why.
struct Unreadable(String);

impl Read for Unreadable {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other(self.0.clone()))
    }
}
