//! Reading big parts: the description of an object, and its bytes as a `Read` that survives broken connections.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, Method, Response, StatusCode, header};
use ureq::{Body, BodyReader};

use super::error::{CdnError, CdnErrorKind};
use super::s3::{S3Account, S3Request, empty_sha256, object_name};
use crate::http_client::{Backoff, HttpClientError, HttpClientErrorKind, Payload, TRANSFER_TRIES, TRIES, with_retries};
use crate::metrics::Stage;
use crate::metrics::Transfer;
use crate::names::ModelName;
use crate::security::{HELD_BACK, Sha256Hash, SmallHash};

/// Object metadata: SHA-256 of the big part itself.
pub(super) const META_SHA256: &str = "x-amz-meta-sha256";

/// Object metadata: SHA-256 of the small part that the big part belongs to.
pub(super) const META_SMALL_SHA256: &str = "x-amz-meta-small-sha256";

/// The object key of a generation. It contains the hash of the small part, so its content never changes.
pub fn generation_key(file_name: &str, small: SmallHash) -> String {
    format!("{file_name}.{}.big", small.generation())
}

/// An object as the CDN describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BigObject {
    /// The bucket, which is the model's folder.
    pub bucket: String,
    /// The object key.
    pub key: String,
    /// Length in bytes.
    pub length: u64,
    /// The entity tag, which changes with the content.
    pub etag: Option<String>,
    /// The hash of the object, from its metadata.
    pub sha256: Option<Sha256Hash>,
    /// The hash of the small part that it belongs to, from its metadata.
    pub small: Option<SmallHash>,
    /// Its last bytes, at most two cipher blocks. None if the CDN does not serve ranges.
    pub tail: Option<Vec<u8>>,
}

impl BigObject {
    /// The generation that belongs to a small part. Its manifest has everything else, so the CDN is not asked.
    pub fn proven(model: &ModelName, small: SmallHash, length: u64) -> Self {
        Self {
            bucket: model.folder.to_string(),
            key: generation_key(&model.file, small),
            length,
            etag: None,
            sha256: None,
            small: Some(small),
            tail: None,
        }
    }
}

/// The CDN with the downloader's access key.
#[derive(Clone)]
pub(super) struct Downloader {
    pub(super) account: S3Account,
    /// How long the last request for little data took, in nanoseconds.
    latency: Arc<AtomicU64>,
}

impl Downloader {
    pub(super) fn new(account: S3Account) -> Self {
        Self { account, latency: Arc::default() }
    }

    /// How long the last request for little data took.
    pub(super) fn latency(&self) -> Duration {
        Duration::from_nanos(self.latency.load(Ordering::Relaxed))
    }

    /// Describes the object under a key.
    pub(super) fn describe(&self, bucket: &str, key: &str, tries: u32) -> Result<BigObject, CdnError> {
        let head = with_retries(tries, CdnError::retry, || {
            let asked = Instant::now();
            let response = self.get(Method::HEAD, bucket, key, &[])?;
            self.latency.store(u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
            Ok(response.into_parts().0)
        })?;
        let metadata = |name: &str| Some(head.headers.get(name)?.to_str().ok()?.to_ascii_lowercase());
        let length = head.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        Ok(BigObject {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            length: length.ok_or_else(|| bad(bucket, key, "it has no Content-Length"))?,
            etag: etag(&head.headers),
            sha256: metadata(META_SHA256).and_then(|text| Sha256Hash::parse(&text)),
            small: metadata(META_SMALL_SHA256).and_then(|text| SmallHash::parse(&text)),
            tail: None,
        })
    }

    /// The whole of a short object, as text.
    pub(super) fn text(&self, bucket: &str, key: &str, limit: u64) -> Result<String, CdnError> {
        let payload_sha256 = empty_sha256();
        let request = S3Request { method: Method::GET, bucket, key, query: &[], headers: &[], payload_sha256 };
        let asked = Instant::now();
        let answer = self.account.ask(&request, Payload::None, limit, TRIES)?;
        self.latency.store(u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        // The signature of a text with replaced characters does not match.
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }

    /// The last two cipher blocks of an object. None if the CDN ignores ranges and would send all of it.
    pub(super) fn tail(&self, object: &BigObject) -> Result<Option<Vec<u8>>, CdnError> {
        let range = object.length.saturating_sub(HELD_BACK as u64)..object.length;
        if range.is_empty() {
            return Ok(Some(Vec::new()));
        }
        with_retries(TRIES, CdnError::retry, || {
            let (response, before) = self.open(object, range.clone())?;
            if before > 0 && response.status() == StatusCode::OK {
                return Ok(None);
            }
            let mut tail = vec![0; (range.end - range.start) as usize];
            let mut reader = response.into_body().into_reader();
            let read = skip(&mut reader, before).and_then(|()| reader.read_exact(&mut tail));
            read.map_err(|error| self.broken(object, range.start, &error))?;
            // A body that was read to its end leaves its connection to the next request.
            let _ = reader.read(&mut [0]);
            Ok(Some(tail))
        })
    }

    /// Opens a range of `object`, in the version that was described. Also returns how many bytes of the body come before the
    /// range: a CDN may send more than was requested (206), or ignore ranges and send everything (200).
    fn open(&self, object: &BigObject, range: Range<u64>) -> Result<(Response<Body>, u64), CdnError> {
        let changed = || CdnError { object: object_name(&object.bucket, &object.key), kind: CdnErrorKind::Changed };
        let bad = |reason: &str| bad(&object.bucket, &object.key, reason);
        let mut headers = Vec::new();
        if range != (0..object.length) {
            headers.push((header::RANGE, format!("bytes={}-{}", range.start, range.end - 1)));
        }
        // By definition `If-Match` never matches a weak tag.
        if let Some(etag) = object.etag.as_ref().filter(|etag| !etag.starts_with("W/")) {
            headers.push((header::IF_MATCH, etag.clone()));
        }
        let response = self.get(Method::GET, &object.bucket, &object.key, &headers)?;
        // A CDN that ignores preconditions still names the version that it sends. A proxy in between may have weakened the tag.
        let opaque = |tag: &Option<String>| tag.as_deref().map(|tag| tag.trim_start_matches("W/").to_owned());
        if object.etag.is_some() && opaque(&etag(response.headers())) != opaque(&object.etag) {
            return Err(changed());
        }
        let start = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let sent = ContentRange::of(response.headers()).ok_or_else(|| bad("it has no valid Content-Range"))?;
                if sent.length.is_some_and(|length| length != object.length) {
                    return Err(changed());
                }
                if sent.start > range.start || sent.end != range.end {
                    return Err(bad(&format!(
                        "it does not hold the bytes that were requested, from {} on",
                        range.start
                    )));
                }
                sent.start
            }
            StatusCode::OK if response.body().content_length().is_none_or(|length| length == object.length) => 0,
            StatusCode::OK => return Err(changed()),
            status => return Err(bad(&format!("its status is {status}"))),
        };
        Ok((response, range.start - start))
    }

    fn get(
        &self,
        method: Method,
        bucket: &str,
        key: &str,
        headers: &[(HeaderName, String)],
    ) -> Result<Response<Body>, CdnError> {
        let request = S3Request { method, bucket, key, query: &[], headers, payload_sha256: empty_sha256() };
        self.account.send(&request, Payload::None)
    }

    /// The error for a body that ended early. The pooled connections have most likely died as well.
    fn broken(&self, object: &BigObject, at: u64, error: &io::Error) -> CdnError {
        self.account.endpoint.http.forget_connections();
        let reason = format!("at byte {at} of {}: {error}", object.length);
        let kind = HttpClientErrorKind::Interrupted(reason);
        let error = HttpClientError { server: "the CDN".into(), kind };
        CdnError { object: object_name(&object.bucket, &object.key), kind: CdnErrorKind::HttpClient(error) }
    }
}

/// The bytes of a range of an object. A broken transfer continues where it stopped, and all bytes come from the version
/// of the object that was described.
pub struct ObjectReader {
    source: Downloader,
    object: BigObject,
    offset: u64,
    end: u64,
    body: Option<BodyReader<'static>>,
    backoff: Backoff,
    transfer: Transfer,
}

impl ObjectReader {
    pub(super) fn new(source: Downloader, object: BigObject, range: Range<u64>) -> Self {
        let name = object_name(&object.bucket, &object.key);
        let transfer = Transfer::begin(Stage::Download, name, range.start, None).of_piece();
        let backoff = Backoff::new(TRANSFER_TRIES);
        Self { source, object, offset: range.start, end: range.end, body: None, backoff, transfer }
    }

    /// Opens what is left of the range.
    fn open(&self) -> Result<BodyReader<'static>, CdnError> {
        let (response, before) = self.source.open(&self.object, self.offset..self.end)?;
        if before > 0 && response.status() == StatusCode::OK {
            let name = object_name(&self.object.bucket, &self.object.key);
            log::info!("the CDN ignores ranges: {name} is downloaded again from its beginning");
        }
        let mut reader = response.into_body().into_reader();
        skip(&mut reader, before).map_err(|error| self.broken(&error))?;
        Ok(reader)
    }

    fn broken(&self, error: &io::Error) -> CdnError {
        self.source.broken(&self.object, self.offset, error)
    }

    fn read_once(&mut self, out: &mut [u8]) -> Result<usize, CdnError> {
        let mut body = match self.body.take() {
            Some(body) => body,
            None => self.open()?,
        };
        match body.read(out) {
            // Short of the range, the end of the body is a broken transfer, even if the connection was closed cleanly.
            Ok(0) => Err(self.broken(&io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => {
                self.body = Some(body);
                Ok(count)
            }
            Err(error) => Err(self.broken(&error)),
        }
    }
}

impl Read for ObjectReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let remaining = self.end - self.offset;
        let limit = out.len().min(usize::try_from(remaining).unwrap_or(usize::MAX));
        if limit == 0 {
            if let (0, Some(mut body)) = (remaining, self.body.take()) {
                // As in `tail`: the connection can be used again.
                let _ = body.read(&mut [0]);
            }
            return Ok(0);
        }
        loop {
            match self.read_once(&mut out[..limit]) {
                Ok(count) => {
                    self.offset += count as u64;
                    self.transfer.moved(count as u64);
                    self.backoff = Backoff::new(TRANSFER_TRIES);
                    return Ok(count);
                }
                Err(error) if self.backoff.allows(error.retry()) => {
                    log::warn!("the download continues from where it stopped: {error}");
                    self.backoff.pause(error.retry());
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}

fn bad(bucket: &str, key: &str, reason: &str) -> CdnError {
    CdnError { object: object_name(bucket, key), kind: CdnErrorKind::BadResponse(reason.into()) }
}

fn skip(reader: &mut impl Read, count: u64) -> io::Result<()> {
    let skipped = io::copy(&mut reader.take(count), &mut io::sink())?;
    if skipped == count { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn etag(headers: &HeaderMap) -> Option<String> {
    Some(headers.get(header::ETAG)?.to_str().ok()?.to_owned())
}

/// A `Content-Range: bytes start-last/length` as the half-open range `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// The first byte's offset.
    pub start: u64,
    /// The offset after the last byte.
    pub end: u64,
    /// The length of the whole object. None for `*`.
    pub length: Option<u64>,
}

impl ContentRange {
    /// Parses the header's value. None if it is malformed or inconsistent.
    pub fn parse(value: &str) -> Option<Self> {
        let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok())?;
        let (range, length) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (start, last) = range.trim().split_once('-')?;
        let (start, last) = (number(start)?, number(last)?);
        let length = if length == "*" { None } else { Some(number(length)?) };
        if last < start || length.is_some_and(|length| last >= length) {
            return None;
        }
        Some(Self { start, end: last.checked_add(1)?, length })
    }

    fn of(headers: &HeaderMap) -> Option<Self> {
        Self::parse(headers.get(header::CONTENT_RANGE)?.to_str().ok()?)
    }
}
