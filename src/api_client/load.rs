//! Load: the small part from the Resource API, the big part from the cache or the CDN, joined and decrypted as they stream.

use std::io::{self, BufRead, Cursor, Read};
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use zeroize::Zeroizing;

use super::ApiClient;
use super::held_versions::Found;
use super::load_error::LoadError;
use super::login::Login;
use super::offline::{OfflineCopy, SmallPart, SmallSource};
use super::range_reader::RangeReader;
use super::range_request::RangeRequest;
use crate::cdn_manager::{BigObject, CdnManager};
use crate::manifest::{MAX_BIG_PART, Subject};
use crate::metrics;
use crate::model_cache::{Entry, Evidence, OfflineError, Remote, Verified, VerifyError, Version};
use crate::names::ModelName;
use crate::security::{BLOCK, DecryptError, DecryptReader, HELD_BACK, SmallHash, plain_length, sha256_hex};

/// A model's plaintext, or a range of it. Every byte was proven before the reader gives it out. (An old upload has no manifest:
/// if its reader fails, the bytes before may be wrong, but the last one has not been given out.)
pub struct Plaintext {
    /// Length of the whole plaintext in bytes.
    pub length: u64,
    /// The requested range, if there was one.
    pub range: Option<Range<u64>>,
    /// The strong entity tag of the plaintext, with its quotes.
    pub tag: String,
    /// When this box got the version, if all of it is in the cache.
    pub modified: Option<SystemTime>,
    /// The bytes.
    pub reader: Box<dyn BufRead + Send>,
}

impl ApiClient {
    /// Loads a model, or a range of it. Everything that can be checked before the first byte has been checked when this returns.
    pub fn load(self: &Arc<Self>, model: &ModelName, request: &RangeRequest) -> Result<Plaintext, LoadError> {
        let login = self.current().ok_or(LoadError::NotLoggedIn)?;
        self.held.expire();
        Load { client: self, login: &login, entry: self.cache.entry(model) }.run(request)
    }

    /// Why this model needs a manifest, if it does.
    fn needs_manifest(&self, entry: &Entry) -> Option<&'static str> {
        if self.manifest_keys.are_required() {
            Some("REQUIRE_MANIFEST or TRUSTED_KEYS_PATH demands one")
        } else if entry.was_proven() {
            Some("this box has had a version of it with one, which somebody may have removed")
        } else {
            None
        }
    }

    /// The length of the plaintext of both parts, from their last two cipher blocks.
    fn plain_length(&self, small: &[u8], big_length: u64, big_tail: &[u8]) -> Result<u64, DecryptError> {
        // A big part can be shorter than two blocks; then the blocks begin in the small part.
        let mut joined = small[small.len().saturating_sub(HELD_BACK)..].to_vec();
        joined.extend_from_slice(big_tail);
        let tail = joined.last_chunk::<HELD_BACK>().ok_or(DecryptError::TooShort)?;
        plain_length(small.len() as u64 + big_length, tail, &self.resource_key)
    }

    /// Compares chunks of a cached model with its manifest, and fetches the damaged ones again.
    pub fn verify(self: &Arc<Self>, model: &ModelName, chunks: Range<usize>) -> Result<Verified, VerifyError> {
        self.cache.verify(model, chunks, &self.remote(self.current()))
    }

    fn remote(self: &Arc<Self>, login: Option<Arc<Login>>) -> Arc<dyn Remote> {
        Arc::new(LoginRemote { client: Arc::clone(self), login })
    }

    /// The plaintext of both parts. A range of it is cut out of the whole.
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

    /// A range of the plaintext, decrypted from only the cipher blocks that hold it.
    fn plaintext_of_blocks(&self, small: &[u8], version: &Arc<Version>, range: &Range<u64>) -> Box<dyn BufRead + Send> {
        let block = BLOCK as u64;
        // In the ciphertext a block lies one block further on, after the block that is its initialization vector.
        let (start, end) = (range.start / block * block, (range.end.div_ceil(block) + 1) * block);
        let small_length = small.len() as u64;
        let of_small = Zeroizing::new(small[start.min(small_length) as usize..end.min(small_length) as usize].to_vec());
        let of_big = version.read(start.saturating_sub(small_length)..end.saturating_sub(small_length));
        let source = Cursor::new(of_small).chain(of_big);
        let blocks = DecryptReader::of_stretch(source, self.resource_key.clone(), end - start);
        Box::new(RangeReader::new(blocks, range.start - start, range.end - range.start))
    }
}

/// One load of a model.
pub(super) struct Load<'a> {
    pub(super) client: &'a Arc<ApiClient>,
    pub(super) login: &'a Arc<Login>,
    pub(super) entry: Entry,
}

impl Load<'_> {
    fn run(&self, request: &RangeRequest) -> Result<Plaintext, LoadError> {
        let held = self.held(request)?;
        let is_held = held.is_some();
        let (found, copy) = match held {
            Some(found) => (found, None),
            None => retried(|| self.find(true))?,
        };
        let tag = entity_tag(found.hash);
        if !request.is_for(&tag) {
            return Err(LoadError::Replaced);
        }
        if request.if_match.is_some() && !is_held {
            self.client.held.hold(&self.entry.model, self.login.session.user().email, &found);
        }
        let Found { small, version, .. } = found;
        self.entry.touch();
        if version.is_old() {
            metrics::OLD_UPLOADS.add();
        }
        let length = version.plain_length;
        let modified = version.modified();
        let range = request.of(length, &tag).map_err(|_| LoadError::NoSuchRange { length })?;
        let reader = match &range {
            Some(range) if version.proves_ranges() => {
                if let Some(copy) = copy.filter(|_| version.is_complete()) {
                    copy.store();
                }
                self.client.plaintext_of_blocks(&small, &version, range)
            }
            _ => {
                let big = version.read(0..version.length);
                match copy {
                    Some(copy) => self.client.plaintext(small, copy.store_after(big, version), range.as_ref()),
                    None => self.client.plaintext(small, big, range.as_ref()),
                }
            }
        };
        Ok(Plaintext { length, range, tag, modified, reader })
    }

    /// The version that the client continues with, current or not.
    fn held(&self, request: &RangeRequest) -> Result<Option<Found>, LoadError> {
        let (held, model) = (&self.client.held, &self.entry.model);
        let is_wanted = |found: &Found| request.is_for(&entity_tag(found.hash));
        if request.if_match.is_none() {
            return Ok(None);
        }
        let Some((found, is_to_be_asked)) = held.get(model, &self.login.session.user().email, is_wanted) else {
            return Ok(None);
        };
        if is_to_be_asked {
            match self.ask_again() {
                Ok(SmallPart { plain, source }) => {
                    held.permit(model);
                    // The hours without the Resource API are counted from its last permission.
                    if let SmallSource::Api(copy) = source
                        && SmallHash::of(&plain) == found.hash
                        && found.version.is_complete()
                    {
                        copy.store();
                    }
                }
                Err(error) => {
                    if error.is_away() {
                        held.suspend(model)
                    } else {
                        held.let_go(model)
                    }
                    return Err(error);
                }
            }
        }
        found.version.set_remote(self.remote());
        Ok(Some(found))
    }

    /// Asks whether a held version may be read on. While the Resource API is away, it may if the model can be loaded offline.
    fn ask_again(&self) -> Result<SmallPart, LoadError> {
        if let Some(away) = self.client.api.outage.recent()
            && let Ok(part) = self.client.small_part_offline(self.login, &self.entry, away.into())
        {
            self.client.ask_in_background(self.login, &self.entry);
            return Ok(part);
        }
        self.client.small_part(self.login, &self.entry)
    }

    /// Finds the newest version, whatever of it is here.
    pub(super) fn find_newest(&self) -> Result<(Found, Option<OfflineCopy>), LoadError> {
        retried(|| self.find(false))
    }

    /// Finds the version to load. With `may_be_older` it may be an older one in two cases: a model in `KEEP`, until its newest
    /// version is complete, and a model that can be loaded offline, for a minute after the Resource API was found to be away.
    fn find(&self, may_be_older: bool) -> Result<(Found, Option<OfflineCopy>), LoadError> {
        if may_be_older && let Some(away) = self.client.api.outage.recent() {
            let small = self.client.small_part_offline(self.login, &self.entry, away.into());
            if let Ok(found) = small.and_then(|small| self.find_big(small, may_be_older)) {
                self.client.ask_in_background(self.login, &self.entry);
                return Ok(found);
            }
        }
        self.find_big(self.client.small_part(self.login, &self.entry)?, may_be_older)
    }

    fn find_big(&self, small: SmallPart, may_be_older: bool) -> Result<(Found, Option<OfflineCopy>), LoadError> {
        let SmallPart { plain: small, source } = small;
        let hash = SmallHash::of(&small);
        let subject = Subject { model: &self.entry.model, small: hash, small_length: Some(small.len() as u64) };
        let cached = self.client.cache.find(&self.entry, subject, &self.remote());
        if may_be_older
            && !cached.as_ref().is_some_and(|version| version.is_complete())
            && let Some(kept) = self.client.keep.instead_of(&self.entry.model, hash)
        {
            return Ok((kept, None));
        }
        let (version, copy) = match source {
            SmallSource::Offline(away) => (self.offline_version(cached, away)?, None),
            SmallSource::Api(copy) => match cached.filter(|version| self.is_current(version)) {
                Some(version) => (version, Some(copy)),
                None => (self.find_in_cdn(&small, subject)?, Some(copy)),
            },
        };
        Ok((Found { small, hash, version }, copy))
    }

    /// The cached version that can be used while the Resource API is away.
    fn offline_version(&self, cached: Option<Arc<Version>>, away: super::ApiError) -> Result<Arc<Version>, LoadError> {
        let Some(version) = cached.filter(|version| version.is_complete()) else {
            return Err(LoadError::Offline(away, OfflineError::DoesNotOpen));
        };
        match self.missing_manifest(&version) {
            Some(reason) => Err(LoadError::Offline(away, OfflineError::NoManifest(reason))),
            None => {
                log::warn!("{} is loaded offline: {away}", self.entry.model);
                Ok(version)
            }
        }
    }

    /// Why this version cannot be used, if it is an old upload and needs a manifest.
    fn missing_manifest(&self, version: &Version) -> Option<&'static str> {
        if version.is_old() { self.client.needs_manifest(&self.entry) } else { None }
    }

    /// Whether a cached version can be used without asking the CDN. An old uploader replaces the parts one after the
    /// other, so an old upload that was downloaded in between is no pair.
    fn is_current(&self, version: &Version) -> bool {
        let was_replaced = || {
            let now = self.client.cdn(self.login).ok().and_then(|cdn| cdn.find_plain(&self.entry.model).ok());
            now.is_some_and(|now| version.is_replaced_by(&now))
        };
        self.missing_manifest(version).is_none() && !(version.may_be_torn() && was_replaced())
    }

    /// Finds the big part of a small part in the CDN: a version with a manifest, or an old upload where those are allowed.
    fn find_in_cdn(&self, small: &[u8], subject: Subject<'_>) -> Result<Arc<Version>, LoadError> {
        let (client, model) = (self.client, &self.entry.model);
        let cdn = self.cdn()?;
        let create = |evidence| client.cache.create(&self.entry, subject, evidence, self.remote());
        if let Some(text) = cdn.manifest(model, subject.small).map_err(LoadError::Big)? {
            let manifest = client.manifest_keys.verify(&text, subject).map_err(LoadError::Manifest)?;
            return Ok(create(Evidence::Manifest(manifest, text)));
        }
        let mut object = cdn.find_plain(model).map_err(LoadError::Big)?;
        if object.small.is_some_and(|expected| expected != subject.small) {
            return Err(LoadError::TornPair);
        }
        if let Some(reason) = client.needs_manifest(&self.entry) {
            return Err(LoadError::NoManifest(reason));
        }
        if object.length > MAX_BIG_PART {
            return Err(LoadError::Io(io::Error::other(
                "the CDN reports a length that no model has; upload the model again",
            )));
        }
        if object.tail.is_none() {
            log::info!("the CDN serves no ranges: {model} is downloaded once before the load, to find its padding");
            object.tail = Some(
                tail_of_whole(client.cache.rate().limit(cdn.read(&object, 0..object.length)), object.length)
                    .map_err(LoadError::Io)?,
            );
        }
        let plain_length = client.plain_length(small, object.length, object.tail.as_deref().unwrap_or_default());
        let plain_length = plain_length.map_err(LoadError::Decrypt)?;
        log::warn!("{model} is an old upload without a manifest, so it cannot be verified; upload it again");
        Ok(create(Evidence::Old(object, plain_length)))
    }

    fn cdn(&self) -> Result<Arc<CdnManager>, LoadError> {
        self.client.cdn(self.login).map_err(LoadError::Config)
    }

    fn remote(&self) -> Arc<dyn Remote> {
        self.client.remote(Some(Arc::clone(self.login)))
    }
}

/// An upload that is under way can make the first try fail.
fn retried<T>(look: impl Fn() -> Result<T, LoadError>) -> Result<T, LoadError> {
    match look() {
        Err(error) if error.is_worth_a_retry() => look(),
        result => result,
    }
}

/// The last two cipher blocks of an object, read from its beginning.
fn tail_of_whole(mut reader: impl Read, length: u64) -> io::Result<Vec<u8>> {
    let start = length.saturating_sub(HELD_BACK as u64);
    io::copy(&mut (&mut reader).take(start), &mut io::sink())?;
    let mut tail = Vec::new();
    reader.take(HELD_BACK as u64).read_to_end(&mut tail)?;
    Ok(tail)
}

/// The strong entity tag of a version. Every upload has a random initialization vector at the beginning of its small part, so
/// no two versions have the same. It is a hash of the hash: clients need not learn the object's name in the CDN.
fn entity_tag(small: SmallHash) -> String {
    let digest = sha256_hex(small.to_string().as_bytes());
    format!("\"{}\"", &digest[..32])
}

/// Access to the CDN with a login. The CDN is not used before something is missing in the cache.
struct LoginRemote {
    client: Arc<ApiClient>,
    login: Option<Arc<Login>>,
}

impl LoginRemote {
    fn cdn(&self) -> Result<Arc<CdnManager>, LoadError> {
        let login = self.login.as_ref().ok_or(LoadError::NotLoggedIn)?;
        self.client.cdn(login).map_err(LoadError::Config)
    }
}

impl Remote for LoginRemote {
    fn open(&self, object: &BigObject, range: Range<u64>) -> Box<dyn Read + Send> {
        match self.cdn() {
            Ok(cdn) => Box::new(cdn.read(object, range)),
            Err(error) => Box::new(FailingReader(error.to_string())),
        }
    }

    fn connections(&self) -> usize {
        self.cdn().map_or(1, |cdn| cdn.connections())
    }
}

/// Fails with the reason why the CDN cannot be used.
struct FailingReader(String);

impl Read for FailingReader {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other(self.0.clone()))
    }
}
