//! The CDN: an S3-compatible store that holds the big parts. The bucket is the model's folder. The object key is
//! `{filename}.big`, next to the keys of the generations that make an upload atomic (SPEC section 5).

mod config;
mod error;
mod object;
mod publish;
mod s3;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use self::object::Downloader;
use self::publish::Destination;
use self::s3::{Role, S3Account, S3Endpoint};
use crate::http_client::{HttpClient, TRANSFER_TRIES, TRIES};
use crate::manifest::MAX_MANIFEST_BYTES;
use crate::names::ModelName;
use crate::security::SmallHash;

pub use self::config::{AccessKey, CdnConfig, CdnConfigError};
pub use self::error::{CdnError, CdnErrorKind};
pub use self::object::{BigObject, ContentRange, ObjectReader, generation_key};
pub use self::publish::{BigPart, Limits, Multipart};
pub use self::s3::RenewConfig;

/// A CDN that takes longer than this to respond is far away. A near one takes a few milliseconds.
const FAR: Duration = Duration::from_millis(25);

/// How many connections it takes to use the bandwidth of a link with a long round trip. Each needs about a third of a MiB.
const CONNECTIONS_WHEN_FAR: usize = 8;

/// The object key that seed-compatible readers ask for.
fn plain_key(file_name: &str) -> String {
    format!("{file_name}.big")
}

/// The object key of a generation's manifest.
fn manifest_key(file_name: &str, small: SmallHash) -> String {
    format!("{file_name}.{}.manifest", small.generation())
}

/// Whether `key` is a generation of `file_name`.
fn is_generation_of(key: &str, file_name: &str) -> bool {
    key.strip_prefix(file_name)
        .and_then(|rest| rest.strip_prefix('.')?.strip_suffix(".big"))
        .is_some_and(|middle| middle.len() == 16 && middle.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// The CDN with its two access keys.
pub struct CdnManager {
    downloads: Downloader,
    uploader: S3Account,
    limits: Limits,
}

impl CdnManager {
    /// The CDN that `config` describes.
    pub fn new(http: HttpClient, config: &CdnConfig) -> Self {
        Self::at(S3Endpoint::new(http, config, None))
    }

    /// The same. If the CDN refuses the access keys, `renew` fetches the ones that replaced them.
    pub fn with_renewal(http: HttpClient, config: &CdnConfig, renew: RenewConfig) -> Self {
        Self::at(S3Endpoint::new(http, config, Some(renew)))
    }

    fn at(endpoint: S3Endpoint) -> Self {
        let endpoint = Arc::new(endpoint);
        let account = |role| S3Account { endpoint: Arc::clone(&endpoint), role };
        let (downloads, uploader) = (Downloader::new(account(Role::Download)), account(Role::Upload));
        Self { downloads, uploader, limits: Limits::default() }
    }

    /// The same with other limits.
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// The object under the plain key. The caller checks by its metadata that it belongs to his small part.
    pub fn find_plain(&self, model: &ModelName) -> Result<BigObject, CdnError> {
        let mut object = self.downloads.describe(&model.folder, &plain_key(&model.file), TRIES)?;
        object.tail = self.downloads.tail(&object)?;
        Ok(object)
    }

    /// The bytes of an object in `range`, which must lie within it.
    pub fn read(&self, object: &BigObject, range: Range<u64>) -> ObjectReader {
        ObjectReader::new(self.downloads.clone(), object.clone(), range)
    }

    /// How many connections a long object should be read over: if the CDN is slow to answer it is far away, and one connection
    /// cannot fill the line.
    pub fn connections(&self) -> usize {
        if self.downloads.latency() >= FAR { CONNECTIONS_WHEN_FAR } else { 1 }
    }

    /// The length of the parts in which a big part of at most `longest` bytes is uploaded.
    pub fn part_length(&self, longest: u64) -> u64 {
        self.limits.part.max(longest.div_ceil(publish::MAX_PARTS))
    }

    /// Step 1 of an upload: stores the generation, which no reader requests yet.
    pub fn put_generation(&self, model: &ModelName, part: BigPart<'_>) -> Result<(), CdnError> {
        self.destination(model).put(&generation_key(&model.file, part.small), part)
    }

    /// Step 1 of an upload whose big part is still being received: it is stored part by part, and exists on completion.
    pub fn begin_generation(&self, model: &ModelName, small: SmallHash) -> Result<Multipart, CdnError> {
        self.destination(model).begin(&generation_key(&model.file, small), publish::metadata(None, Some(small)))
    }

    /// Between steps 1 and 2 of an upload: stores the manifest of the generation.
    pub fn put_manifest(&self, model: &ModelName, small: SmallHash, manifest: &str) -> Result<(), CdnError> {
        self.destination(model).put_text(&manifest_key(&model.file, small), manifest)
    }

    /// The manifest of the generation that belongs to the small part with this hash, if there is one.
    pub fn manifest(&self, model: &ModelName, small: SmallHash) -> Result<Option<String>, CdnError> {
        match self.downloads.text(&model.folder, &manifest_key(&model.file, small), MAX_MANIFEST_BYTES) {
            Err(error) if error.is_missing() => Ok(None),
            // S3's status for a missing object if the key may not list the bucket.
            Err(CdnError { kind: CdnErrorKind::Refused { status: StatusCode::FORBIDDEN, .. }, .. }) => Ok(None),
            found => found.map(Some),
        }
    }

    /// Step 3 of an upload: sets the plain key to the generation that belongs to the small part with this hash.
    pub fn set_plain(&self, model: &ModelName, small: SmallHash) -> Result<(), CdnError> {
        let key = generation_key(&model.file, small);
        let generation = self.downloads.describe(&model.folder, &key, TRANSFER_TRIES)?;
        self.destination(model).copy(&generation, &plain_key(&model.file))
    }

    /// Deletes the generation of an upload that was not committed, and its manifest.
    pub fn delete_generation(&self, model: &ModelName, small: SmallHash) -> Result<(), CdnError> {
        let destination = self.destination(model);
        // The generation goes last: if it stays, a later upload finds and deletes it.
        destination.delete(&manifest_key(&model.file, small))?;
        destination.delete(&generation_key(&model.file, small))
    }

    /// Whether the generation of the small part with this hash exists.
    pub fn has_generation(&self, model: &ModelName, small: SmallHash) -> Result<bool, CdnError> {
        match self.downloads.describe(&model.folder, &generation_key(&model.file, small), TRANSFER_TRIES) {
            Err(error) if error.is_missing() || error.is_refused() => Ok(false),
            found => found.map(|_| true),
        }
    }

    /// Step 4 of an upload: deletes the generations that are older than both `previous`, the version that was in force before,
    /// and `uploaded`. `previous` can be the newer one, if another box stored its upload later but committed it first.
    ///
    /// A newer one may belong to another box that is about to commit it. If it does not, the upload after the next deletes it.
    pub fn prune(&self, model: &ModelName, previous: SmallHash, uploaded: SmallHash) -> Result<(), CdnError> {
        let file = &model.file;
        let found = self.destination(model).list(&format!("{file}."), |key| is_generation_of(key, file))?;
        let time_of = |small| {
            let key = generation_key(file, small);
            found.iter().find(|(found, _)| *found == key).map(|(_, time)| time)
        };
        let (Some(previous), Some(uploaded)) = (time_of(previous), time_of(uploaded)) else { return Ok(()) };
        let limit = previous.min(uploaded);
        for (key, _) in found.iter().filter(|(_, time)| time < limit) {
            // Another model may be named like a generation of this one. Only a real generation has the hash in its metadata.
            if let Some(small) = self.downloads.describe(&model.folder, key, TRIES)?.small
                && generation_key(file, small) == *key
            {
                self.delete_generation(model, small)?;
            }
        }
        Ok(())
    }

    fn destination(&self, model: &ModelName) -> Destination {
        Destination { account: self.uploader.clone(), bucket: model.folder.to_string(), limits: self.limits }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_are_told_from_other_models() {
        let hash = SmallHash::parse(&"0123456789abcdef".repeat(4)).unwrap();
        assert_eq!(generation_key("m.bin", hash), "m.bin.0123456789abcdef.big");
        assert_eq!(manifest_key("m.bin", hash), "m.bin.0123456789abcdef.manifest");
        assert!(is_generation_of("m.bin.0123456789abcdef.big", "m.bin"));
        for other in
            ["m.bin.big", "m.bin.0123456789abcde.big", "m.bin.0123456789ABCDEF.big", "m.bin.v2.0123456789abcdef.big"]
        {
            assert!(!is_generation_of(other, "m.bin"), "{other}");
        }
    }
}
