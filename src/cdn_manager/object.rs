//! Reading a big part: what it is, and its bytes as a `Read` that survives broken connections.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, StatusCode, header};
use ureq::BodyReader;

use super::s3::{CdnError, S3Account, S3Request, empty_sha256, object_name, refusal};
use super::{META_SHA256, META_SMALL_SHA256, generation_key};
use crate::metrics::Stage;
use crate::security::{HELD_BACK, is_sha256_hex};
use crate::transfer::Transfer;
use crate::uplink::{Pauses, Payload, Uplink, UplinkError};

/// How often in a row a download is taken up again without a byte of progress. With the pauses between them these tries
/// span about half a minute, the time an uplink needs to come back.
const TRIES_WITHOUT_PROGRESS: u32 = 7;

/// How often an object is asked for its description in all.
const TRIES_TO_DESCRIBE: u32 = 3;

/// What the CDN says of an object before it is downloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BigObject {
    /// The bucket, which is the model's folder.
    pub bucket: String,
    /// The object key.
    pub key: String,
    /// Length in bytes.
    pub length: u64,
    /// The entity tag: another one means another content.
    pub etag: Option<String>,
    /// SHA-256 of the object, from its metadata (lower-case hex).
    pub sha256: Option<String>,
    /// SHA-256 of the small part it belongs to, from its metadata (lower-case hex).
    pub small_sha256: Option<String>,
    /// Its last bytes, at most two cipher blocks. None if the CDN does not serve ranges.
    pub tail: Option<Vec<u8>>,
}

impl BigObject {
    /// The generation that belongs to a small part, of whose content a manifest tells everything.
    #[must_use]
    pub fn proven(bucket: &str, file_name: &str, small_sha256: &str) -> Self {
        Self {
            bucket: bucket.to_owned(),
            key: generation_key(file_name, small_sha256),
            length: 0,
            etag: None,
            sha256: None,
            small_sha256: Some(small_sha256.to_owned()),
            tail: None,
        }
    }
}

/// An access key for reading, and the way to the CDN.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) uplink: Uplink,
    pub(super) account: Arc<S3Account>,
    /// How long the last description took to come, in nanoseconds.
    pub(super) latency: Arc<AtomicU64>,
}

impl Source {
    /// How long the CDN took to answer the last time that it was asked for little.
    pub(super) fn latency(&self) -> Duration {
        Duration::from_nanos(self.latency.load(Ordering::Relaxed))
    }

    /// Asks for the last two cipher blocks of an object; the answer's headers tell the rest.
    pub(super) fn describe(&self, bucket: &str, key: &str) -> Result<BigObject, CdnError> {
        let headers = [(header::RANGE, format!("bytes=-{HELD_BACK}"))];
        let sha256 = empty_sha256();
        let request =
            S3Request { method: Method::GET, bucket, key, query: &[], headers: &headers, payload_sha256: &sha256 };

        let mut pauses = Pauses::default();
        loop {
            match self.describe_once(&request) {
                Err(error) if error.may_pass() && pauses.taken() + 1 < TRIES_TO_DESCRIBE => {
                    log::info!("trying again: {error}");
                    pauses.pause(error.retry_after());
                }
                result => return result,
            }
        }
    }

    /// The whole of a short object, as text.
    pub(super) fn text(&self, bucket: &str, key: &str, limit: u64) -> Result<String, CdnError> {
        let sha256 = empty_sha256();
        let request = S3Request { method: Method::GET, bucket, key, query: &[], headers: &[], payload_sha256: &sha256 };
        let asked = Instant::now();
        let answer = self.account.ask(&self.uplink, &request, Payload::None, limit)?;
        self.latency.store(u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        // What is not text is not what was signed.
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }

    fn describe_once(&self, request: &S3Request<'_>) -> Result<BigObject, CdnError> {
        let bad = |reason: &str| CdnError::BadAnswer { object: request.object(), reason: reason.into() };
        // Not `ask`: a CDN that ignores ranges answers with the whole object, which must not be read here.
        let asked = Instant::now();
        let (head, mut body) = self.uplink.call(&self.account.sign(request)?, Payload::None)?.into_parts();
        self.latency.store(u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let (length, tail) = match head.status {
            StatusCode::PARTIAL_CONTENT => {
                let range = ContentRange::of(&head.headers).ok_or_else(|| bad("it has no valid Content-Range"))?;
                let length = range.length.ok_or_else(|| bad("its Content-Range does not tell the length"))?;
                if range.end != length || range.start != length.saturating_sub(HELD_BACK as u64) {
                    return Err(bad("it is not the range that was asked for"));
                }
                let mut tail = vec![0; (range.end - range.start) as usize];
                let mut reader = body.as_reader();
                reader.read_exact(&mut tail).map_err(|error| broken(&request.object(), &error))?;
                // A body that was read to its end leaves its connection to the next request.
                let _ = reader.read(&mut [0]);
                (length, Some(tail))
            }
            StatusCode::OK => {
                let length = body.content_length().ok_or_else(|| bad("it does not tell the object's length"))?;
                (length, None)
            }
            status => {
                let mut text = Vec::new();
                let _ = body.as_reader().take(8192).read_to_end(&mut text);
                return Err(refusal(&request.object(), status, &text));
            }
        };
        let metadata = |name: &str| {
            let value = head.headers.get(name)?.to_str().ok()?.to_ascii_lowercase();
            is_sha256_hex(&value).then_some(value)
        };
        Ok(BigObject {
            bucket: request.bucket.to_owned(),
            key: request.key.to_owned(),
            length,
            etag: etag(&head.headers),
            sha256: metadata(META_SHA256),
            small_sha256: metadata(META_SMALL_SHA256),
            tail,
        })
    }
}

/// The bytes of a range of an object. A broken transfer continues by range from where it stopped; what is read is
/// always of the one version of the object that was described.
pub struct ObjectReader {
    source: Source,
    object: BigObject,
    offset: u64,
    end: u64,
    body: Option<BodyReader<'static>>,
    pauses: Pauses,
    transfer: Transfer,
}

impl ObjectReader {
    pub(super) fn new(source: Source, object: BigObject, range: Range<u64>) -> Self {
        let name = object_name(&object.bucket, &object.key);
        let transfer = Transfer::begin(Stage::Download, name, range.start, None).of_piece();
        Self { source, object, offset: range.start, end: range.end, body: None, pauses: Pauses::default(), transfer }
    }

    fn name(&self) -> String {
        object_name(&self.object.bucket, &self.object.key)
    }

    /// Opens the rest of the range.
    fn open(&self) -> Result<BodyReader<'static>, CdnError> {
        let bad = |reason: String| CdnError::BadAnswer { object: self.name(), reason };
        let mut headers = Vec::new();
        if self.end < self.object.length {
            headers.push((header::RANGE, format!("bytes={}-{}", self.offset, self.end - 1)));
        } else if self.offset > 0 {
            headers.push((header::RANGE, format!("bytes={}-", self.offset)));
        }
        if let Some(etag) = &self.object.etag {
            headers.push((header::IF_MATCH, etag.clone()));
        }
        let request = self.source.account.sign(&S3Request {
            method: Method::GET,
            bucket: &self.object.bucket,
            key: &self.object.key,
            query: &[],
            headers: &headers,
            payload_sha256: &empty_sha256(),
        })?;
        let (head, mut body) = self.source.uplink.call(&request, Payload::None)?.into_parts();
        // A CDN that knows no preconditions still shows which version it sends.
        if head.status.is_success() && self.object.etag.is_some() && etag(&head.headers) != self.object.etag {
            return Err(CdnError::Changed { object: self.name() });
        }
        let start = match head.status {
            StatusCode::PARTIAL_CONTENT => {
                let range =
                    ContentRange::of(&head.headers).ok_or_else(|| bad("it has no valid Content-Range".into()))?;
                if range.length.is_some_and(|length| length != self.object.length) {
                    return Err(CdnError::Changed { object: self.name() });
                }
                if range.start > self.offset || range.end != self.end {
                    let wanted = self.offset;
                    return Err(bad(format!("bytes from {wanted} were asked for, and it sent others")));
                }
                range.start
            }
            StatusCode::OK => {
                if body.content_length().is_some_and(|length| length != self.object.length) {
                    return Err(CdnError::Changed { object: self.name() });
                }
                if self.offset > 0 {
                    log::info!("the CDN ignores ranges: {} is downloaded again from its beginning", self.name());
                }
                0
            }
            status => {
                let mut text = Vec::new();
                let _ = body.as_reader().take(8192).read_to_end(&mut text);
                return Err(refusal(&self.name(), status, &text));
            }
        };
        let mut reader = body.into_reader();
        skip(&mut reader, self.offset - start).map_err(|error| self.broken(&error))?;
        Ok(reader)
    }

    fn broken(&self, error: &io::Error) -> CdnError {
        broken(&format!("{} at byte {} of {}", self.name(), self.offset, self.object.length), error)
    }

    fn read_once(&mut self, out: &mut [u8]) -> Result<usize, CdnError> {
        let mut body = match self.body.take() {
            Some(body) => body,
            None => self.open()?,
        };
        match body.read(out) {
            // An end before the length is a broken transfer, whatever the connection says.
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
                // As above: the connection can be used again.
                let _ = body.read(&mut [0]);
            }
            return Ok(0);
        }
        loop {
            match self.read_once(&mut out[..limit]) {
                Ok(count) => {
                    self.offset += count as u64;
                    self.transfer.moved(count as u64);
                    self.pauses = Pauses::default();
                    return Ok(count);
                }
                Err(error) if error.may_pass() && self.pauses.taken() < TRIES_WITHOUT_PROGRESS => {
                    log::warn!("the download continues from where it stopped: {error}");
                    self.pauses.pause(error.retry_after());
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}

fn broken(what: &str, error: &io::Error) -> CdnError {
    CdnError::Uplink(UplinkError::Interrupted { server: "the CDN".into(), reason: format!("{what}: {error}") })
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
    /// The offset behind the last byte.
    pub end: u64,
    /// Length of the whole; none for `*`.
    pub length: Option<u64>,
}

impl ContentRange {
    /// Reads the header's value. None if it is malformed or contradicts itself.
    #[must_use]
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

#[cfg(test)]
mod tests {
    use super::ContentRange;

    #[test]
    fn content_range_is_read_strictly() {
        let range = |start, end, length| Some(ContentRange { start, end, length });
        for (value, expected) in [
            ("bytes 0-31/32", range(0, 32, Some(32))),
            ("bytes 5-9/*", range(5, 10, None)),
            ("bytes 5-9/10 ", range(5, 10, Some(10))),
            ("bytes 9-5/10", None),
            ("bytes 5-10/10", None),
            ("bytes */10", None),
            ("bytes 5-/10", None),
            ("bytes +5-9/10", None),
            ("items 5-9/10", None),
            ("5-9/10", None),
            ("", None),
            ("bytes 0-18446744073709551615/*", None),
            ("bytes 0-99999999999999999999/*", None),
        ] {
            assert_eq!(ContentRange::parse(value), expected, "{value:?}");
        }
    }
}
