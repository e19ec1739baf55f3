//! Load: the small part from the Resource API, the big part from the cache or the CDN, both joined and decrypted as they
//! stream.

use std::fmt;
use std::io::{self, BufRead, Cursor, Read};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::{ApiClient, ApiError, Login, LoginError, small_name};
use crate::cdn_manager::CdnError;
use crate::model_cache::Entry;
use crate::names::{FileName, Folder};
use crate::security::{DecryptError, DecryptReader, HELD_BACK, plain_length, sha256_hex};

/// A model's plaintext: its exact length, and its bytes. A read that fails means that the bytes given out so far may be
/// wrong; at least the last one has then not been given out.
pub struct Plaintext {
    /// Length in bytes.
    pub length: u64,
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
    /// Loads a model. Everything that can be known before the first byte has been checked when this returns.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(&self, folder: &Folder, file_name: &FileName) -> Result<Plaintext, LoadError> {
        let login = self.current().ok_or(LoadError::NotLoggedIn)?;
        match self.try_load(&login, folder, file_name)? {
            Attempt::Loaded(plaintext) => Ok(plaintext),
            Attempt::Mismatch(_) => match self.try_load(&login, folder, file_name)? {
                Attempt::Loaded(plaintext) => Ok(plaintext),
                Attempt::Mismatch(error) => Err(error),
            },
        }
    }

    fn try_load(&self, login: &Login, folder: &Folder, file_name: &FileName) -> Result<Attempt, LoadError> {
        let small = self.resource(login, folder, &small_name(file_name)).map_err(LoadError::Small)?;
        let small_sha256 = sha256_hex(&small);
        let entry = self.cache.entry(folder, file_name);
        if let Some(attempt) = self.cached_plaintext(&entry, &small, &small_sha256)? {
            return Ok(attempt);
        }

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
        let mut big = self.cache.fetch(&entry, &object, &small_sha256, (open, connections));
        let Some(length) = length else {
            // The CDN serves no ranges, so the padding is known when the whole is here.
            log::info!("the CDN serves no ranges: the model is downloaded before it is given out");
            io::copy(&mut big, &mut io::sink()).map_err(LoadError::Io)?;
            drop(big);
            let attempt = self.cached_plaintext(&entry, &small, &small_sha256)?;
            let uncached = || io::Error::other("the CDN serves no ranges, and the cache could not take the download");
            return attempt.ok_or_else(|| LoadError::Io(uncached()));
        };
        Ok(Attempt::Loaded(self.plaintext(length, small, big)))
    }

    fn cached_plaintext(
        &self,
        entry: &Entry,
        small: &Zeroizing<Vec<u8>>,
        small_sha256: &str,
    ) -> Result<Option<Attempt>, LoadError> {
        let Some(cached) = self.cache.lookup(entry, small_sha256) else { return Ok(None) };
        let tail = cached.tail(HELD_BACK).map_err(LoadError::Io)?;
        match self.plain_length(small, cached.length(), &tail) {
            Ok(length) => Ok(Some(Attempt::Loaded(self.plaintext(length, small.clone(), cached.into_reader())))),
            Err(error) => {
                cached.evict();
                Ok(Some(Attempt::Mismatch(LoadError::Decrypt(error))))
            }
        }
    }

    /// The length of the plaintext of both parts, from the last two cipher blocks of them together.
    fn plain_length(&self, small: &[u8], big_length: u64, big_tail: &[u8]) -> Result<u64, DecryptError> {
        // A big part can be shorter than two blocks, then the small part has the beginning of them.
        let mut joined = small[small.len().saturating_sub(HELD_BACK)..].to_vec();
        joined.extend_from_slice(big_tail);
        let tail = joined.last_chunk::<HELD_BACK>().ok_or(DecryptError::TooShort)?;
        plain_length(small.len() as u64 + big_length, tail, &self.resource_key)
    }

    fn plaintext(&self, length: u64, small: Zeroizing<Vec<u8>>, big: impl Read + Send + 'static) -> Plaintext {
        let joined = Cursor::new(small).chain(big);
        Plaintext { length, reader: Box::new(DecryptReader::new(joined, self.resource_key.clone())) }
    }
}
