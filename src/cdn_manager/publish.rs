//! Writing big parts: streaming uploads from a file, whole or in parts, server-side copies, listing and deletion.
//!
//! Every call here is retried as often as a download: giving up an upload wastes the whole transfer.

use std::fs::File;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use http::{HeaderName, Method, header};
use s3::serde_types::{CompleteMultipartUploadData, InitiateMultipartUploadResponse, ListBucketResult, Part};
use s3::signing::uri_encode;
use serde::Deserialize;

use super::error::{CdnError, CdnErrorKind};
use super::object::{BigObject, META_SHA256, META_SMALL_SHA256};
use super::s3::{MAX_XML_BYTES, S3Account, S3Request, empty_sha256, object_name, xml};
use crate::http_client::{BufferedResponse, Payload, TRANSFER_TRIES};
use crate::metrics::Stage;
use crate::metrics::Transfer;
use crate::security::{Hasher, Sha256Hash, SmallHash};
use crate::threads::{self, lock};

/// The payload of a PUT or POST without content: S3 requires a `Content-Length`.
const NO_CONTENT: Payload<'static> = Payload::Bytes(&[]);

/// A model's generations do not fill more pages of a listing than this.
const MAX_PAGES: usize = 100;

/// S3 accepts 10,000 parts.
pub(super) const MAX_PARTS: u64 = 9_000;

/// The longest object that one request stores or copies.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A longer big part is uploaded in parts of this length, so that a broken connection costs one part.
    pub part: u64,
    /// A longer object is copied in ranges of this length: a server is silent while it copies, and S3 copies at most 5 GiB in
    /// one request.
    pub copy: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { part: 16 << 20, copy: 128 << 20 }
    }
}

type Metadata = Vec<(HeaderName, String)>;

/// A big part in a local file, and its metadata.
#[derive(Clone, Copy)]
pub struct BigPart<'a> {
    /// The file.
    pub file: &'a File,
    /// Its length in bytes.
    pub length: u64,
    /// Its hash.
    pub sha256: Sha256Hash,
    /// The hash of the small part that it belongs to.
    pub small: SmallHash,
}

/// One bucket, with the uploader's access key.
#[derive(Clone)]
pub(super) struct Destination {
    pub(super) account: S3Account,
    pub(super) bucket: String,
    pub(super) limits: Limits,
}

impl Destination {
    /// Stores `part` under `key`. The object becomes visible when it is complete.
    pub(super) fn put(&self, key: &str, part: BigPart<'_>) -> Result<(), CdnError> {
        let metadata = metadata(Some(part.sha256), Some(part.small));
        let transfer = &Transfer::begin(Stage::Publish, object_name(&self.bucket, key), 0, Some(part.length));
        if part.length <= self.limits.part {
            let payload = Payload::File { file: part.file, offset: 0, length: part.length, transfer };
            return self.ask(Method::PUT, key, &[], &metadata, payload, part.sha256).map(drop);
        }
        let upload = self.begin(key, metadata)?;
        upload.for_each_part(part.length, self.limits.part, |number, offset, length| {
            upload.store(number, part.file, offset, length, transfer)
        })?;
        upload.complete()
    }

    /// Stores a short text under `key`.
    pub(super) fn put_text(&self, key: &str, text: &str) -> Result<(), CdnError> {
        let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8".to_owned())];
        let payload = Payload::Bytes(text.as_bytes());
        self.ask(Method::PUT, key, &[], &headers, payload, Sha256Hash::of(text.as_bytes())).map(drop)
    }

    /// Copies an object within the bucket, in the CDN.
    pub(super) fn copy(&self, object: &BigObject, to: &str) -> Result<(), CdnError> {
        const SOURCE: HeaderName = HeaderName::from_static("x-amz-copy-source");
        const RANGE: HeaderName = HeaderName::from_static("x-amz-copy-source-range");
        let source = format!("/{}/{}", self.bucket, uri_encode(&object.key, true));
        if object.length <= self.limits.copy {
            let headers = [(SOURCE, source)];
            let answer = self.ask(Method::PUT, to, &[], &headers, NO_CONTENT, empty_sha256())?;
            return self.without_error(to, &answer);
        }
        let upload = self.begin(to, metadata(object.sha256, object.small))?;
        upload.for_each_part(object.length, self.limits.copy, |number, offset, length| {
            let headers = [(SOURCE, source.clone()), (RANGE, format!("bytes={offset}-{}", offset + length - 1))];
            let answer = upload.ask_part(number, &headers, NO_CONTENT, empty_sha256())?;
            #[derive(Deserialize)]
            struct CopyPartResult {
                #[serde(rename = "ETag")]
                etag: String,
            }
            upload.note(number, xml::<CopyPartResult>(&answer.body).map(|copied| copied.etag))
        })?;
        upload.complete()
    }

    /// Deletes an object if it exists.
    pub(super) fn delete(&self, key: &str) -> Result<(), CdnError> {
        match self.ask(Method::DELETE, key, &[], &[], Payload::None, empty_sha256()) {
            Err(error) if error.is_missing() => Ok(()),
            result => result.map(drop),
        }
    }

    /// The keys that begin with `prefix` and are `wanted`, each with its last modification time (ISO 8601, so that they compare
    /// as text).
    pub(super) fn list(&self, prefix: &str, wanted: impl Fn(&str) -> bool) -> Result<Vec<(String, String)>, CdnError> {
        let mut found = Vec::new();
        let mut continuation: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let mut query = vec![("list-type", "2"), ("prefix", prefix)];
            if let Some(token) = &continuation {
                query.push(("continuation-token", token));
            }
            let answer = self.ask(Method::GET, "", &query, &[], Payload::None, empty_sha256())?;
            let page: ListBucketResult =
                xml(&answer.body).ok_or_else(|| self.bad("", "it is not a listing of the bucket"))?;
            let objects = page.contents.into_iter().filter(|object| wanted(&object.key));
            found.extend(objects.map(|object| (object.key, object.last_modified)));
            match page.next_continuation_token.filter(|_| page.is_truncated) {
                Some(next) => continuation = Some(next),
                None => return Ok(found),
            }
        }
        Err(self.bad("", "the listing does not end"))
    }

    /// Begins an upload in parts.
    pub(super) fn begin(&self, key: &str, metadata: Metadata) -> Result<Multipart, CdnError> {
        let answer = self.ask(Method::POST, key, &[("uploads", "")], &metadata, NO_CONTENT, empty_sha256())?;
        let begun: InitiateMultipartUploadResponse =
            xml(&answer.body).ok_or_else(|| self.bad(key, "it has no upload id"))?;
        Ok(Multipart {
            to: self.clone(),
            key: key.to_owned(),
            metadata,
            id: begun.upload_id,
            parts: Mutex::default(),
            complete: AtomicBool::new(false),
        })
    }

    fn ask(
        &self,
        method: Method,
        key: &str,
        query: &[(&str, &str)],
        headers: &[(HeaderName, String)],
        payload: Payload<'_>,
        payload_sha256: Sha256Hash,
    ) -> Result<BufferedResponse, CdnError> {
        let request = S3Request { method, bucket: &self.bucket, key, query, headers, payload_sha256 };
        self.account.ask(&request, payload, MAX_XML_BYTES, TRANSFER_TRIES)
    }

    /// Long operations answer 200 before they have finished. An error is then in the body.
    fn without_error(&self, key: &str, answer: &BufferedResponse) -> Result<(), CdnError> {
        let text = String::from_utf8_lossy(&answer.body);
        if text.contains("<Error>") { Err(self.bad(key, "it has status 200 and reports an error")) } else { Ok(()) }
    }

    fn bad(&self, key: &str, reason: &str) -> CdnError {
        CdnError { object: object_name(&self.bucket, key), kind: CdnErrorKind::BadResponse(reason.into()) }
    }
}

/// A multipart upload. Its object becomes visible on completion; if it is dropped before that, it is aborted.
pub struct Multipart {
    to: Destination,
    key: String,
    metadata: Metadata,
    id: String,
    parts: Mutex<Vec<Part>>,
    complete: AtomicBool,
}

impl Multipart {
    /// The bucket and the key, for the log.
    pub fn object(&self) -> String {
        object_name(&self.to.bucket, &self.key)
    }

    /// Stores a range of a file as part `number`, counting from 1.
    pub fn store(
        &self,
        number: u32,
        file: &File,
        offset: u64,
        length: u64,
        transfer: &Transfer,
    ) -> Result<(), CdnError> {
        let hasher = Hasher::of_range(file, offset..offset + length)
            .map_err(|error| CdnError { object: self.object(), kind: CdnErrorKind::LocalFile(error) })?;
        let payload = Payload::File { file, offset, length, transfer };
        let answer = self.ask_part(number, &[], payload, hasher.finish())?;
        self.note(number, answer.headers.get(header::ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned))
    }

    /// Assembles the object from the parts.
    pub fn complete(&self) -> Result<(), CdnError> {
        let mut parts = std::mem::take(&mut *lock(&self.parts));
        parts.sort_by_key(|part| part.part_number);
        let body = CompleteMultipartUploadData { parts }.to_string();
        let payload = Payload::Bytes(body.as_bytes());
        let id = [("uploadId", self.id.as_str())];
        match self.to.ask(Method::POST, &self.key, &id, &[], payload, Sha256Hash::of(body.as_bytes())) {
            Ok(answer) => self.to.without_error(&self.key, &answer)?,
            // The answer to an earlier try was lost. That try succeeded, and with it the upload id became invalid.
            Err(error) if error.is_missing() && self.is_there() => {}
            Err(error) => return Err(error),
        }
        self.complete.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Splits `length` bytes into parts and calls `store` with the number, the offset and the length of each.
    fn for_each_part(
        &self,
        length: u64,
        part_length: u64,
        mut store: impl FnMut(u32, u64, u64) -> Result<(), CdnError>,
    ) -> Result<(), CdnError> {
        let part_length = part_length.max(length.div_ceil(MAX_PARTS));
        (0..length.div_ceil(part_length)).try_for_each(|index| {
            let offset = index * part_length;
            store(index as u32 + 1, offset, part_length.min(length - offset))
        })
    }

    fn ask_part(
        &self,
        number: u32,
        headers: &[(HeaderName, String)],
        payload: Payload<'_>,
        sha256: Sha256Hash,
    ) -> Result<BufferedResponse, CdnError> {
        let query = [("partNumber", number.to_string()), ("uploadId", self.id.clone())];
        let query = query.each_ref().map(|(name, value)| (*name, value.as_str()));
        self.to.ask(Method::PUT, &self.key, &query, headers, payload, sha256)
    }

    fn note(&self, number: u32, etag: Option<String>) -> Result<(), CdnError> {
        let etag = etag.ok_or_else(|| self.to.bad(&self.key, "it has no ETag"))?;
        lock(&self.parts).push(Part { part_number: number, etag });
        Ok(())
    }

    /// Whether the object exists and has the hashes of this upload in its metadata.
    fn is_there(&self) -> bool {
        let hashes = || self.metadata.iter().filter(|(name, _)| *name != header::CONTENT_TYPE);
        self.to.ask(Method::HEAD, &self.key, &[], &[], Payload::None, empty_sha256()).is_ok_and(|answer| {
            hashes().all(|(name, value)| answer.headers.get(name).is_some_and(|found| found == value.as_str()))
        })
    }
}

impl Drop for Multipart {
    /// Parts that are never completed cost storage forever. This runs on a thread, so the upload's error is not delayed.
    fn drop(&mut self) {
        if *self.complete.get_mut() {
            return;
        }
        let (to, key, id) = (self.to.clone(), self.key.clone(), self.id.clone());
        let abort = move || {
            let aborted =
                to.ask(Method::DELETE, &key, &[("uploadId", &id)], &[], Payload::None, empty_sha256()).map(drop);
            if let Err(error) = aborted
                && !error.is_missing()
            {
                log::warn!("the parts of an upload that failed remain in the CDN: {error}");
            }
        };
        if let Err(error) = threads::spawn("abort", abort) {
            log::warn!("the parts of {} remain in the CDN: {error}", self.object());
        }
    }
}

pub(super) fn metadata(sha256: Option<Sha256Hash>, small: Option<SmallHash>) -> Metadata {
    let hashes =
        [(META_SHA256, sha256.map(|hash| hash.to_string())), (META_SMALL_SHA256, small.map(|hash| hash.to_string()))];
    let hashes = hashes.into_iter().filter_map(|(name, hash)| Some((HeaderName::from_static(name), hash?)));
    [(header::CONTENT_TYPE, "application/octet-stream".to_owned())].into_iter().chain(hashes).collect()
}
