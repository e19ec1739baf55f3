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
use crate::cdn_manager::CdnError;
use crate::model_cache::{Cached, Entry, Refusal};
use crate::names::{FileName, Folder};
use crate::security::{BLOCK, DecryptError, DecryptReader, HELD_BACK, plain_length, sha256_hex};

/// A model's plaintext, or a range of it: its exact length, and its bytes. A read that fails means that the bytes given out
/// so far may be wrong; at least the last one has then not been given out.
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
            Self::Small(error) => write!(f, "the small part of the model cannot be fetched: {error}"),
            Self::Offline(away, refusal) => {
                write!(f, "the small part of the model cannot be fetched: {away}; offline: {refusal}")
            }
            Self::NoSuchRange { length } => write!(f, "the range begins behind the model's {length} bytes"),
            Self::Config(error) => write!(f, "the big part of the model cannot be fetched: {error}"),
            Self::Big(error) => write!(f, "the big part of the model cannot be fetched: {error}"),
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
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(&self, folder: &Folder, file_name: &FileName, wanted: &Wanted) -> Result<Plaintext, LoadError> {
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
        &self,
        login: &Login,
        folder: &Folder,
        file_name: &FileName,
        wanted: &Wanted,
    ) -> Result<Attempt, LoadError> {
        let entry = self.cache.entry(folder, file_name);
        let SmallPart { plain: small, source } = self.small_part(login, folder, file_name, &entry)?;
        let small_sha256 = sha256_hex(&small);
        let cached = self.cached_plaintext(&entry, &small, &small_sha256, wanted)?;
        let keep = match (source, cached) {
            (Source::Api(keep), Some(attempt)) => {
                if let Attempt::Loaded(_) = attempt {
                    keep.now();
                }
                return Ok(attempt);
            }
            (Source::Kept(away), Some(attempt)) => {
                log::warn!("{}/{} is loaded offline: {away}", &**folder, &**file_name);
                return Ok(attempt);
            }
            (Source::Kept(away), None) => return Err(LoadError::Offline(away, Refusal::DoesNotOpen)),
            (Source::Api(keep), None) => keep,
        };

        let cdn = self.cdn(login).map_err(LoadError::Config)?;
        let object = cdn.find(folder, file_name, &small_sha256).map_err(LoadError::Big)?;
        if object.small_sha256.as_ref().is_some_and(|expected| *expected != small_sha256) {
            return Ok(Attempt::Mismatch(LoadError::TornPair));
        }
        let length = match &object.tail {
            Some(tail) => match self.plain_length(&small, object.length, tail) {
                Ok(length) => Some(length),
                Err(error) => return Ok(Attempt::Mismatch(LoadError::Decrypt(error))),
            },
            None => None,
        };
        // Each range of a CDN that serves none would cost the whole object.
        let connections = if object.tail.is_some() { cdn.connections() } else { 1 };
        let open = {
            let object = object.clone();
            Arc::new(move |range| Box::new(cdn.read(&object, range)) as Box<dyn Read + Send>)
        };
        let mut big = keep.at_end_of(self.cache.fetch(&entry, &object, &small_sha256, (open, connections)));
        let Some(length) = length else {
            // The CDN serves no ranges, so the padding is known when the whole is here.
            log::info!("the CDN serves no ranges: the model is downloaded before it is given out");
            io::copy(&mut big, &mut io::sink()).map_err(LoadError::Io)?;
            drop(big);
            let attempt = self.cached_plaintext(&entry, &small, &small_sha256, wanted)?;
            let uncached = || io::Error::other("the CDN serves no ranges, and the cache could not take the download");
            return attempt.ok_or_else(|| LoadError::Io(uncached()));
        };
        let tag = entity_tag(&small_sha256);
        let range = wanted.of(length, &tag).map_err(|_| LoadError::NoSuchRange { length })?;
        let reader = self.plaintext(small, big, range.as_ref());
        Ok(Attempt::Loaded(Plaintext { length, range, tag, reader }))
    }

    fn cached_plaintext(
        &self,
        entry: &Entry,
        small: &Zeroizing<Vec<u8>>,
        small_sha256: &str,
        wanted: &Wanted,
    ) -> Result<Option<Attempt>, LoadError> {
        let Some(cached) = self.cache.lookup(entry, small_sha256) else { return Ok(None) };
        let tail = cached.tail(HELD_BACK).map_err(LoadError::Io)?;
        let length = match self.plain_length(small, cached.length(), &tail) {
            Ok(length) => length,
            Err(error) => {
                cached.evict();
                return Ok(Some(Attempt::Mismatch(LoadError::Decrypt(error))));
            }
        };
        let tag = entity_tag(small_sha256);
        let range = wanted.of(length, &tag).map_err(|_| LoadError::NoSuchRange { length })?;
        let reader = range
            .as_ref()
            .and_then(|range| self.stretch(small, &cached, range))
            .unwrap_or_else(|| self.plaintext(small.clone(), cached.into_reader(), range.as_ref()));
        Ok(Some(Attempt::Loaded(Plaintext { length, range, tag, reader })))
    }

    /// The length of the plaintext of both parts, from the last two cipher blocks of them together.
    fn plain_length(&self, small: &[u8], big_length: u64, big_tail: &[u8]) -> Result<u64, DecryptError> {
        // A big part can be shorter than two blocks, then the small part has the beginning of them.
        let mut joined = small[small.len().saturating_sub(HELD_BACK)..].to_vec();
        joined.extend_from_slice(big_tail);
        let tail = joined.last_chunk::<HELD_BACK>().ok_or(DecryptError::TooShort)?;
        plain_length(small.len() as u64 + big_length, tail, &self.resource_key)
    }

    /// The plaintext of both parts. Of a range, what comes before and behind it is decrypted and left out: only at the end of
    /// the big part it is known whether its bytes are the right ones.
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

    /// A range of the plaintext from the cipher blocks that hold it, if the cache can tell that they are the right ones.
    fn stretch(
        &self,
        small: &Zeroizing<Vec<u8>>,
        cached: &Cached,
        range: &Range<u64>,
    ) -> Option<Box<dyn BufRead + Send>> {
        let block = BLOCK as u64;
        // Plaintext lies one block behind its place, and the block before it is its initialization vector.
        let (start, end) = (range.start / block * block, (range.end.div_ceil(block) + 1) * block);
        let small_length = small.len() as u64;
        let of_small = Zeroizing::new(small[start.min(small_length) as usize..end.min(small_length) as usize].to_vec());
        let of_big = cached.stretch(start.saturating_sub(small_length)..end.saturating_sub(small_length))?;
        let blocks = DecryptReader::of_stretch(Cursor::new(of_small).chain(of_big), self.resource_key.clone());
        Some(Box::new(RangeReader::new(blocks, range.start - start, range.end - range.start)))
    }
}
