//! S3 requests: addresses, signatures and the meaning of answers. `rust-s3` signs and knows the XML; the bytes travel by
//! [`Uplink`], since rust-s3's own transport takes a truncated body for a success and limits the time of a whole transfer.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use s3::region::Region;
use s3::signing;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::Sha256;
use time::OffsetDateTime;
use url::Url;

use super::config::{AccessKey, CdnConfig};
use crate::security::sha256_hex;
use crate::uplink::{Answer, Payload, Uplink, UplinkError};

/// The largest XML answer that is read: a page of a listing has at most 1000 keys.
pub(super) const MAX_XML_BYTES: u64 = 4 * 1024 * 1024;

/// Why the CDN did not give or take an object.
#[derive(Debug)]
pub enum CdnError {
    /// The CDN could not be reached, or was not able to answer.
    Uplink(UplinkError),
    /// There is no such bucket or object.
    Missing {
        /// Bucket and key.
        object: String,
    },
    /// The CDN refused the request, for example the access key.
    Refused {
        /// Bucket and key.
        object: String,
        /// The status.
        status: StatusCode,
        /// S3's error code, such as `SignatureDoesNotMatch`.
        code: String,
    },
    /// The object was replaced while it was read.
    Changed {
        /// Bucket and key.
        object: String,
    },
    /// The CDN's answer contradicts the request.
    BadAnswer {
        /// Bucket and key.
        object: String,
        /// The contradiction.
        reason: String,
    },
}

impl fmt::Display for CdnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uplink(error) => write!(f, "the CDN cannot be used: {error}"),
            Self::Missing { object } => write!(f, "the CDN has no {object}"),
            Self::Refused { object, status, code } => write!(f, "the CDN refused access to {object}: {status} {code}"),
            Self::Changed { object } => {
                write!(f, "{object} was replaced in the CDN while it was downloaded; load it again")
            }
            Self::BadAnswer { object, reason } => write!(f, "the CDN's answer for {object} is unusable: {reason}"),
        }
    }
}

impl std::error::Error for CdnError {}

impl From<UplinkError> for CdnError {
    fn from(error: UplinkError) -> Self {
        Self::Uplink(error)
    }
}

impl CdnError {
    /// Whether the same request may succeed a moment later.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Uplink(error) if error.may_pass())
    }

    /// How long the CDN asked to wait.
    #[must_use]
    pub fn retry_after(&self) -> Option<std::time::Duration> {
        match self {
            Self::Uplink(error) => error.retry_after(),
            _ => None,
        }
    }
}

/// One request, before it is signed.
pub(super) struct S3Request<'a> {
    pub(super) method: Method,
    pub(super) bucket: &'a str,
    /// Empty for a request about the bucket.
    pub(super) key: &'a str,
    pub(super) query: &'a [(&'a str, &'a str)],
    pub(super) headers: &'a [(HeaderName, String)],
    /// SHA-256 of the payload in hex: it is signed, so the CDN refuses a payload that was damaged on its way.
    pub(super) payload_sha256: &'a str,
}

impl S3Request<'_> {
    /// Bucket and key, as errors name the object.
    pub(super) fn object(&self) -> String {
        object_name(self.bucket, self.key)
    }
}

/// How errors name an object.
pub(super) fn object_name(bucket: &str, key: &str) -> String {
    if key.is_empty() { format!("bucket {bucket}") } else { format!("object {bucket}/{key}") }
}

/// An access key at an endpoint.
#[derive(Debug)]
pub(super) struct S3Account {
    endpoint: Url,
    host: String,
    region: Region,
    key: AccessKey,
}

impl S3Account {
    pub(super) fn new(config: &CdnConfig, key: &AccessKey) -> Self {
        let endpoint = config.endpoint.clone();
        let name = endpoint.host_str().unwrap_or_default();
        let host = endpoint.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"));
        let region = Region::Custom { region: config.region.clone(), endpoint: endpoint.to_string() };
        Self { endpoint, host, region, key: key.clone() }
    }

    /// Signs a request with Signature Version 4, path-style addressing.
    pub(super) fn sign(&self, request: &S3Request<'_>) -> Result<Request<()>, UplinkError> {
        self.try_sign(request, OffsetDateTime::now_utc())
            .ok_or_else(|| UplinkError::Unusable { reason: format!("{} cannot be asked for", request.object()) })
    }

    fn try_sign(&self, request: &S3Request<'_>, now: OffsetDateTime) -> Option<Request<()>> {
        let mut url = self.endpoint.clone();
        url.set_path(&format!("{}/{}", request.bucket, signing::uri_encode(request.key, true)));
        if !request.query.is_empty() {
            url.query_pairs_mut().extend_pairs(request.query);
            // `application/x-www-form-urlencoded` writes a space as `+`, which S3 takes for a plus.
            let query = url.query().map(|query| query.replace('+', "%20"));
            url.set_query(query.as_deref());
        }

        let date = now.format(time::macros::format_description!("[year][month][day]T[hour][minute][second]Z")).ok()?;
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(&self.host).ok()?);
        headers.insert("x-amz-date", HeaderValue::from_str(&date).ok()?);
        headers.insert("x-amz-content-sha256", HeaderValue::from_str(request.payload_sha256).ok()?);
        for (name, value) in request.headers {
            headers.insert(name, HeaderValue::from_str(value).ok()?);
        }

        let canonical = canonical_request(request, &url, &headers)?;
        let to_sign = signing::string_to_sign(&now, &self.region, &canonical).ok()?;
        let key = signing::signing_key(&now, self.key.secret.expose(), &self.region, "s3").ok()?;
        let signature = crate::security::hex(
            &Hmac::<Sha256>::new_from_slice(&key).ok()?.chain_update(&to_sign).finalize().into_bytes(),
        );
        let signed = signing::signed_header_string(&headers);
        let authorization =
            signing::authorization_header(&self.key.id, &now, &self.region, &signed, &signature).ok()?;
        let mut authorization = HeaderValue::from_str(&authorization).ok()?;
        authorization.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, authorization);
        // The client sets it from the address, the same.
        headers.remove(header::HOST);

        let mut signed = Request::builder().method(request.method.clone()).uri(url.as_str()).body(()).ok()?;
        *signed.headers_mut() = headers;
        Some(signed)
    }

    /// Makes a request that is safe to repeat and reads its answer of at most `limit` bytes.
    pub(super) fn ask(
        &self,
        uplink: &Uplink,
        request: &S3Request<'_>,
        payload: Payload<'_>,
        limit: u64,
    ) -> Result<Answer, CdnError> {
        let answer = uplink.ask(payload, limit, || self.sign(request))?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        Err(refusal(&request.object(), answer.status, &answer.body))
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
pub(super) fn refusal(object: &str, status: StatusCode, body: &[u8]) -> CdnError {
    #[derive(Deserialize)]
    struct S3Error {
        #[serde(rename = "Code")]
        code: String,
    }
    let object = object.to_owned();
    match status {
        StatusCode::NOT_FOUND => CdnError::Missing { object },
        StatusCode::PRECONDITION_FAILED | StatusCode::RANGE_NOT_SATISFIABLE => CdnError::Changed { object },
        status => {
            let code = xml::<S3Error>(body).map(|error| error.code).unwrap_or_default();
            let code = code.chars().filter(char::is_ascii_alphanumeric).take(64).collect();
            CdnError::Refused { object, status, code }
        }
    }
}

/// Reads an XML answer.
pub(super) fn xml<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    quick_xml::de::from_str(std::str::from_utf8(body).ok()?).ok()
}

/// SHA-256 of no payload, in hex.
pub(super) fn empty_sha256() -> String {
    sha256_hex(b"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_code_of_the_answer_only() {
        let body = b"<Error><Code>Access\nDenied</Code><Message>key AKIA</Message></Error>";
        let error = refusal("object b/k", StatusCode::FORBIDDEN, body).to_string();
        assert_eq!(error, "the CDN refused access to object b/k: 403 Forbidden AccessDenied");
    }
}
