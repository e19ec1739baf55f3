//! S3 requests: addresses, signatures and error responses. `rust-s3` provides signatures and XML types; [`HttpClient`] sends the
//! requests, because rust-s3's own transport takes a truncated body for a success and limits the time of a whole transfer.

use std::io::Read;
use std::mem;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::SystemTime;

use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use s3::region::Region;
use s3::signing;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::Sha256;
use time::OffsetDateTime;
use ureq::Body;
use url::Url;

use super::config::{AccessKey, CdnConfig};
use super::error::{CdnError, CdnErrorKind};
use crate::http_client::{BufferedResponse, HttpClient, HttpClientError, Payload, server_time, with_retries};
use crate::security::Sha256Hash;
use crate::threads::{lock, read, write};

/// The largest XML response: a page of a listing has at most 1000 keys.
pub(super) const MAX_XML_BYTES: u64 = 4 * 1024 * 1024;

/// How much of a refusal's body is searched for the error code.
const MAX_REFUSAL_BYTES: u64 = 8 * 1024;

/// A server does not complain about a clock error, in seconds, up to this.
const CLOCK_TOLERANCE: i64 = 30;

/// Fetches the CDN configuration again; none if it cannot be had.
pub type RenewConfig = Box<dyn Fn() -> Option<CdnConfig> + Send + Sync>;

/// One request, before it is signed.
pub(super) struct S3Request<'a> {
    pub(super) method: Method,
    pub(super) bucket: &'a str,
    /// Empty for a request about the bucket.
    pub(super) key: &'a str,
    pub(super) query: &'a [(&'a str, &'a str)],
    /// `Range` and `If-Match` are sent but not signed: a caching proxy in front of the CDN sends its own.
    pub(super) headers: &'a [(HeaderName, String)],
    /// It is signed, so the CDN refuses a payload that was damaged on its way.
    pub(super) payload_sha256: Sha256Hash,
}

impl S3Request<'_> {
    fn error(&self, kind: CdnErrorKind) -> CdnError {
        CdnError { object: object_name(self.bucket, self.key), kind }
    }

    fn http_error(&self, error: HttpClientError) -> CdnError {
        self.error(CdnErrorKind::HttpClient(error))
    }
}

/// An object's name in errors and logs.
pub(super) fn object_name(bucket: &str, key: &str) -> String {
    if key.is_empty() { format!("bucket {bucket}") } else { format!("object {bucket}/{key}") }
}

/// What a request is made for, and so with which key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Download,
    Upload,
}

/// The CDN as its configuration describes it.
pub(super) struct S3Endpoint {
    pub(super) http: HttpClient,
    url: Url,
    host: String,
    region: Region,
    /// The downloader's and the uploader's, which may be replaced by newer ones.
    keys: RwLock<[AccessKey; 2]>,
    renew: Option<RenewConfig>,
    /// Held while it is called, so that all who are refused together share the answer.
    renewing: Mutex<()>,
    /// By how many seconds the CDN's clock is ahead of the box's.
    clock_error: AtomicI64,
}

/// The access key for one role at the CDN.
#[derive(Clone)]
pub(super) struct S3Account {
    pub(super) endpoint: Arc<S3Endpoint>,
    pub(super) role: Role,
}

impl S3Endpoint {
    pub(super) fn new(http: HttpClient, config: &CdnConfig, renew: Option<RenewConfig>) -> Self {
        let url = config.endpoint.clone();
        let name = url.host_str().unwrap_or_default();
        let host = url.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"));
        Self {
            http,
            host,
            region: Region::Custom { region: config.region.clone(), endpoint: url.to_string() },
            url,
            keys: RwLock::new([config.downloader.clone(), config.uploader.clone()]),
            renew,
            renewing: Mutex::default(),
            clock_error: AtomicI64::new(0),
        }
    }

    /// Takes over the server's clock, if the box's is the reason for the refusal. An answer to `HEAD` has no error code.
    fn corrects_its_clock(&self, code: &str, headers: &HeaderMap) -> bool {
        let Some(server) = server_time(headers).filter(|_| matches!(code, "RequestTimeTooSkewed" | "")) else {
            return false;
        };
        let seconds = |time: SystemTime| OffsetDateTime::from(time).unix_timestamp();
        let error = seconds(server) - seconds(SystemTime::now());
        if error.abs_diff(self.clock_error.load(Ordering::Relaxed)) <= CLOCK_TOLERANCE.unsigned_abs() {
            return false;
        }
        self.clock_error.store(error, Ordering::Relaxed);
        log::warn!(
            "the CDN's clock is {error} s ahead of this box's; requests to the CDN are signed with the CDN's time"
        );
        true
    }

    /// Replaces the keys, of which `refused` is one, by those in the current configuration. Returns whether they have changed.
    fn renews_its_keys(&self, role: Role, refused: &AccessKey) -> bool {
        let Some(renew) = &self.renew else { return false };
        let _alone = lock(&self.renewing);
        if self.key(role).is(refused)
            && let Some(config) = renew()
        {
            *write(&self.keys) = [config.downloader, config.uploader];
        }
        !self.key(role).is(refused)
    }

    fn key(&self, role: Role) -> AccessKey {
        read(&self.keys)[role as usize].clone()
    }
}

impl S3Account {
    /// Makes a request. A status that is no success is an error, but a clock that is wrong and keys that were replaced are put
    /// right once.
    pub(super) fn send(&self, request: &S3Request<'_>, payload: Payload<'_>) -> Result<Response<Body>, CdnError> {
        let (mut clock, mut keys) = (true, true);
        loop {
            let key = self.endpoint.key(self.role);
            let now = OffsetDateTime::now_utc();
            let now = now.saturating_add(time::Duration::seconds(self.endpoint.clock_error.load(Ordering::Relaxed)));
            let signed = self.sign(request, &key, now);
            let signed = signed.ok_or_else(|| request.error(CdnErrorKind::BadRequest))?;
            let response = self.endpoint.http.call(&signed, payload).map_err(|error| request.http_error(error))?;
            if response.status().is_success() {
                return Ok(response);
            }
            let (head, body) = response.into_parts();
            let mut text = Vec::new();
            let _ = body.into_reader().take(MAX_REFUSAL_BYTES).read_to_end(&mut text);
            let error = request.error(refusal(head.status, &text));
            let CdnErrorKind::Refused { code, .. } = &error.kind else { return Err(error) };
            let again = (mem::take(&mut clock) && self.endpoint.corrects_its_clock(code, &head.headers))
                || (mem::take(&mut keys) && self.endpoint.renews_its_keys(self.role, &key));
            if !again {
                return Err(error);
            }
        }
    }

    /// Signs a request with Signature Version 4, path-style addressing.
    fn sign(&self, request: &S3Request<'_>, key: &AccessKey, now: OffsetDateTime) -> Option<Request<()>> {
        let S3Endpoint { url, host, region, .. } = &*self.endpoint;
        let mut url = url.clone();
        url.set_path(&format!("{}/{}", request.bucket, signing::uri_encode(request.key, true)));
        if !request.query.is_empty() {
            url.query_pairs_mut().extend_pairs(request.query);
            // `application/x-www-form-urlencoded` writes a space as `+`, which S3 takes for a plus.
            let query = url.query().map(|query| query.replace('+', "%20"));
            url.set_query(query.as_deref());
        }

        let date = now.format(time::macros::format_description!("[year][month][day]T[hour][minute][second]Z")).ok()?;
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(host).ok()?);
        headers.insert("x-amz-date", HeaderValue::from_str(&date).ok()?);
        headers.insert("x-amz-content-sha256", HeaderValue::from_str(&request.payload_sha256.to_string()).ok()?);
        let mut unsigned = HeaderMap::new();
        for (name, value) in request.headers {
            let is_signed = !matches!(*name, header::RANGE | header::IF_MATCH);
            let headers = if is_signed { &mut headers } else { &mut unsigned };
            headers.insert(name, HeaderValue::from_str(value).ok()?);
        }

        let canonical = canonical_request(request, &url, &headers)?;
        let to_sign = signing::string_to_sign(&now, region, &canonical).ok()?;
        let signing_key = signing::signing_key(&now, key.secret.expose(), region, "s3").ok()?;
        let signature = crate::security::hex(
            &Hmac::<Sha256>::new_from_slice(&signing_key).ok()?.chain_update(&to_sign).finalize().into_bytes(),
        );
        let signed = signing::signed_header_string(&headers);
        let authorization = signing::authorization_header(&key.id, &now, region, &signed, &signature).ok()?;
        let mut authorization = HeaderValue::from_str(&authorization).ok()?;
        authorization.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, authorization);
        // The client sets it from the address, the same.
        headers.remove(header::HOST);
        headers.extend(unsigned);

        let mut signed = Request::builder().method(request.method.clone()).uri(url.as_str()).body(()).ok()?;
        *signed.headers_mut() = headers;
        Some(signed)
    }

    /// Makes a request that is safe to repeat up to `tries` times and reads its answer of at most `limit` bytes.
    pub(super) fn ask(
        &self,
        request: &S3Request<'_>,
        payload: Payload<'_>,
        limit: u64,
        tries: u32,
    ) -> Result<BufferedResponse, CdnError> {
        with_retries(tries, CdnError::retry, || {
            let response = self.send(request, payload)?;
            self.endpoint.http.buffer(&self.endpoint.host, response, limit).map_err(|error| request.http_error(error))
        })
    }
}

/// The text that is signed. `signing::canonical_request` sorts whole header lines, so that `a-b: x` comes before `a: x` and
/// the signature is wrong; names alone must be compared.
fn canonical_request(request: &S3Request<'_>, url: &Url, headers: &HeaderMap) -> Option<String> {
    let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    let mut lines = String::new();
    for name in names {
        lines.push_str(&format!("{name}:{}\n", headers.get(name)?.to_str().ok()?.trim()));
    }
    Some(format!(
        "{}\n{}\n{}\n{lines}\n{}\n{}",
        request.method,
        signing::canonical_uri_string(url),
        signing::canonical_query_string(url),
        signing::signed_header_string(headers),
        request.payload_sha256
    ))
}

/// What a status that is no success means.
fn refusal(status: StatusCode, body: &[u8]) -> CdnErrorKind {
    #[derive(Deserialize)]
    struct S3Error {
        #[serde(rename = "Code")]
        code: String,
    }
    let code = xml::<S3Error>(body).map(|error| error.code).unwrap_or_default();
    let code: String = code.chars().filter(char::is_ascii_alphanumeric).take(64).collect();
    match status {
        StatusCode::NOT_FOUND if code == "NoSuchBucket" => CdnErrorKind::NoBucket,
        StatusCode::NOT_FOUND => CdnErrorKind::Missing,
        StatusCode::PRECONDITION_FAILED | StatusCode::RANGE_NOT_SATISFIABLE => CdnErrorKind::Changed,
        status => CdnErrorKind::Refused { status, code },
    }
}

/// Reads an XML answer.
pub(super) fn xml<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    quick_xml::de::from_str(std::str::from_utf8(body).ok()?).ok()
}

/// The hash of no payload.
pub(super) fn empty_sha256() -> Sha256Hash {
    Sha256Hash::of(b"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_code_of_the_answer_only() {
        let body = b"<Error><Code>Access\nDenied</Code><Message>key AKIA</Message></Error>";
        let error = CdnError { object: object_name("b", "k"), kind: refusal(StatusCode::FORBIDDEN, body) };
        assert_eq!(error.to_string(), "the CDN refused access to object b/k: 403 Forbidden AccessDenied");
    }
}
