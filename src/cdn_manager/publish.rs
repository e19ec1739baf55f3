//! Writing big parts: streaming PUT from a file, server-side copy, and the removal of old generations.

use std::fs::File;

use http::{HeaderName, Method, header};
use s3::serde_types::{CompleteMultipartUploadData, InitiateMultipartUploadResponse, ListBucketResult, Part};
use s3::signing::uri_encode;
use serde::Deserialize;

use super::s3::{CdnError, MAX_XML_BYTES, S3Account, S3Request, empty_sha256, xml};
use super::{BigObject, Limits, META_SHA256, META_SMALL_SHA256};
use crate::metrics::Stage;
use crate::security::{Hasher, sha256_hex};
use crate::transfer::Transfer;
use crate::uplink::{Answer, Payload, Uplink};

/// The payload of a PUT or POST that has none: S3 wants to be told its length.
const NO_CONTENT: Payload<'static> = Payload::Bytes(&[]);

/// A big part in a local file, and what its metadata will say.
#[derive(Clone, Copy)]
pub struct BigPart<'a> {
    /// The file.
    pub file: &'a File,
    /// Its length in bytes.
    pub length: u64,
    /// Its SHA-256 (lower-case hex).
    pub sha256: &'a str,
    /// SHA-256 of the small part it belongs to (lower-case hex).
    pub small_sha256: &'a str,
}

/// An access key for writing to one bucket, and the way to the CDN.
pub(super) struct Destination<'a> {
    pub(super) uplink: &'a Uplink,
    pub(super) account: &'a S3Account,
    pub(super) bucket: &'a str,
    pub(super) limits: Limits,
}

impl Destination<'_> {
    /// Stores `part` under `key`. Nobody sees the object before it is whole.
    pub(super) fn put(&self, key: &str, part: BigPart<'_>) -> Result<(), CdnError> {
        let metadata = metadata(Some(part.sha256), Some(part.small_sha256));
        let name = super::s3::object_name(self.bucket, key);
        let transfer = &Transfer::begin(Stage::Publish, name, 0, Some(part.length));
        if part.length <= self.limits.part {
            let payload = Payload::File { file: part.file, offset: 0, length: part.length, transfer };
            return self.ask(Method::PUT, key, &[], &metadata, payload, part.sha256).map(drop);
        }
        self.in_parts(key, &metadata, part.length, self.limits.part, |query, offset, length| {
            let hasher = Hasher::of_range(part.file, offset..offset + length).map_err(|error| CdnError::BadAnswer {
                object: format!("local copy of {key}"),
                reason: error.to_string(),
            })?;
            let payload = Payload::File { file: part.file, offset, length, transfer };
            let answer = self.ask(Method::PUT, key, query, &[], payload, &hasher.finish())?;
            let etag = answer.headers.get(header::ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned);
            etag.ok_or_else(|| self.bad(key, "it does not tell the part's ETag"))
        })
    }

    /// Stores a short text.
    pub(super) fn put_text(&self, key: &str, text: &str) -> Result<(), CdnError> {
        let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8".to_owned())];
        let payload = Payload::Bytes(text.as_bytes());
        self.ask(Method::PUT, key, &[], &headers, payload, &sha256_hex(text.as_bytes())).map(drop)
    }

    /// Copies an object within the bucket, in the CDN.
    pub(super) fn copy(&self, object: &BigObject, to: &str) -> Result<(), CdnError> {
        const SOURCE: HeaderName = HeaderName::from_static("x-amz-copy-source");
        const RANGE: HeaderName = HeaderName::from_static("x-amz-copy-source-range");
        let source = format!("/{}/{}", self.bucket, uri_encode(&object.key, true));
        if object.length <= self.limits.copy {
            let headers = [(SOURCE, source)];
            let answer = self.ask(Method::PUT, to, &[], &headers, NO_CONTENT, &empty_sha256())?;
            return self.without_error(to, &answer);
        }
        let metadata = metadata(object.sha256.as_deref(), object.small_sha256.as_deref());
        self.in_parts(to, &metadata, object.length, self.limits.copy, |query, offset, length| {
            let headers = [(SOURCE, source.clone()), (RANGE, format!("bytes={offset}-{}", offset + length - 1))];
            let answer = self.ask(Method::PUT, to, query, &headers, NO_CONTENT, &empty_sha256())?;
            #[derive(Deserialize)]
            struct CopyPartResult {
                #[serde(rename = "ETag")]
                etag: String,
            }
            let copied: Option<CopyPartResult> = xml(&answer.body);
            copied.map(|copied| copied.etag).ok_or_else(|| self.bad(to, "it does not tell the part's ETag"))
        })
    }

    /// Deletes an object.
    pub(super) fn delete(&self, key: &str) -> Result<(), CdnError> {
        self.ask(Method::DELETE, key, &[], &[], Payload::None, &empty_sha256()).map(drop)
    }

    /// The keys that begin with `prefix`, each with the time of its last change (ISO 8601, so text order is time order).
    pub(super) fn list(&self, prefix: &str) -> Result<Vec<(String, String)>, CdnError> {
        let mut found = Vec::new();
        let mut continuation: Option<String> = None;
        loop {
            let mut query = vec![("list-type", "2"), ("prefix", prefix)];
            if let Some(token) = &continuation {
                query.push(("continuation-token", token));
            }
            let answer = self.ask(Method::GET, "", &query, &[], Payload::None, &empty_sha256())?;
            let page: ListBucketResult =
                xml(&answer.body).ok_or_else(|| self.bad("", "it is not a listing of the bucket"))?;
            found.extend(page.contents.into_iter().map(|object| (object.key, object.last_modified)));
            match page.next_continuation_token {
                // A token that does not change would be an endless list.
                Some(next) if page.is_truncated && continuation.as_ref() != Some(&next) => continuation = Some(next),
                _ => return Ok(found),
            }
        }
    }

    /// A multipart upload: `send` stores the range `offset, length` with the given query and answers the part's ETag.
    fn in_parts(
        &self,
        key: &str,
        metadata: &[(HeaderName, String)],
        length: u64,
        part_length: u64,
        send: impl Fn(&[(&str, &str)], u64, u64) -> Result<String, CdnError>,
    ) -> Result<(), CdnError> {
        let answer = self.ask(Method::POST, key, &[("uploads", "")], metadata, NO_CONTENT, &empty_sha256())?;
        let upload: InitiateMultipartUploadResponse =
            xml(&answer.body).ok_or_else(|| self.bad(key, "it does not tell the upload's id"))?;
        let id = [("uploadId", upload.upload_id.as_str())];

        let all_parts = || -> Result<(), CdnError> {
            let mut parts = Vec::new();
            let mut offset = 0;
            while offset < length {
                let number = parts.len() as u32 + 1;
                let this = part_length.min(length - offset);
                let etag = send(&[("partNumber", &number.to_string()), id[0]], offset, this)?;
                parts.push(Part { part_number: number, etag });
                offset += this;
            }
            let body = CompleteMultipartUploadData { parts }.to_string();
            let payload = Payload::Bytes(body.as_bytes());
            match self.ask(Method::POST, key, &id, &[], payload, &sha256_hex(body.as_bytes())) {
                Ok(answer) => self.without_error(key, &answer),
                // The answer to a first try was lost, and with its success the upload's id was gone.
                Err(CdnError::Missing { .. }) if self.has(key, metadata) => Ok(()),
                Err(error) => Err(error),
            }
        };
        all_parts().inspect_err(|_| {
            // Parts that nobody completes cost storage for ever.
            if let Err(error) = self.ask(Method::DELETE, key, &id, &[], Payload::None, &empty_sha256()) {
                log::warn!("the parts of an upload that failed remain in the CDN: {error}");
            }
        })
    }

    /// Whether there is an object with the hashes that `metadata` names.
    fn has(&self, key: &str, metadata: &[(HeaderName, String)]) -> bool {
        let hashes = metadata.iter().filter(|(name, _)| *name != header::CONTENT_TYPE);
        self.ask(Method::HEAD, key, &[], &[], Payload::None, &empty_sha256()).is_ok_and(|answer| {
            hashes.clone().all(|(name, value)| answer.headers.get(name).is_some_and(|found| found == value.as_str()))
        })
    }

    fn ask(
        &self,
        method: Method,
        key: &str,
        query: &[(&str, &str)],
        headers: &[(HeaderName, String)],
        payload: Payload<'_>,
        payload_sha256: &str,
    ) -> Result<Answer, CdnError> {
        let request = S3Request { method, bucket: self.bucket, key, query, headers, payload_sha256 };
        self.account.ask(self.uplink, &request, payload, MAX_XML_BYTES)
    }

    /// Long operations answer 200 before they know how they end; an error is then in the body.
    fn without_error(&self, key: &str, answer: &Answer) -> Result<(), CdnError> {
        let text = String::from_utf8_lossy(&answer.body);
        if text.contains("<Error>") { Err(self.bad(key, "it reports an error after all")) } else { Ok(()) }
    }

    fn bad(&self, key: &str, reason: &str) -> CdnError {
        CdnError::BadAnswer { object: super::s3::object_name(self.bucket, key), reason: reason.into() }
    }
}

fn metadata(sha256: Option<&str>, small_sha256: Option<&str>) -> Vec<(HeaderName, String)> {
    let hashes = [(META_SHA256, sha256), (META_SMALL_SHA256, small_sha256)];
    let hashes = hashes.into_iter().filter_map(|(name, hash)| Some((HeaderName::from_static(name), hash?.to_owned())));
    [(header::CONTENT_TYPE, "application/octet-stream".to_owned())].into_iter().chain(hashes).collect()
}
