//! Why the CDN did not serve or store an object.

use std::fmt;
use std::io;

use http::StatusCode;

use crate::http_client::{HttpClientError, Retry};

/// A failed request to the CDN.
#[derive(Debug)]
pub struct CdnError {
    /// The object or bucket, as a message names it.
    pub object: String,
    /// What went wrong.
    pub kind: CdnErrorKind,
}

/// What went wrong with an object.
#[derive(Debug)]
pub enum CdnErrorKind {
    /// The HTTP call failed.
    HttpClient(HttpClientError),
    /// There is no such object.
    Missing,
    /// There is no bucket for it.
    NoBucket,
    /// The CDN refused the request, for example because of the access key.
    Refused {
        /// The status.
        status: StatusCode,
        /// S3's error code, such as `SignatureDoesNotMatch`.
        code: String,
    },
    /// The object was replaced during the download.
    Changed,
    /// The response contradicts the request.
    BadResponse(String),
    /// The local file to be stored cannot be read.
    LocalFile(io::Error),
    /// No request can be made of this name and configuration.
    BadRequest,
}

impl fmt::Display for CdnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use CdnErrorKind as Kind;
        let object = &self.object;
        match &self.kind {
            Kind::HttpClient(error) => write!(f, "the CDN cannot be used for {object}: {error}"),
            Kind::Missing => write!(f, "the CDN has no {object}"),
            Kind::NoBucket => write!(f, "the CDN has no bucket for {object}"),
            Kind::Refused { status, code } => write!(f, "the CDN refused access to {object}: {status} {code}"),
            Kind::Changed => write!(f, "{object} was replaced in the CDN while it was downloaded; load it again"),
            Kind::BadResponse(reason) => write!(f, "the CDN's response for {object} is unusable: {reason}"),
            Kind::LocalFile(error) => write!(f, "the local copy of {object} cannot be read: {error}"),
            Kind::BadRequest => write!(f, "the request to the CDN for {object} cannot be made"),
        }
    }
}

impl std::error::Error for CdnError {}

impl CdnError {
    /// Whether and when the same request may succeed.
    pub(super) fn retry(&self) -> Retry {
        match &self.kind {
            CdnErrorKind::HttpClient(error) => error.retry(),
            _ => Retry::Never,
        }
    }

    /// Whether there is no such object or bucket.
    pub fn is_missing(&self) -> bool {
        matches!(self.kind, CdnErrorKind::Missing | CdnErrorKind::NoBucket)
    }

    /// Whether the CDN refused the request. To a key without the right to list a bucket, S3 reports a missing object so.
    pub fn is_refused(&self) -> bool {
        matches!(self.kind, CdnErrorKind::Refused { .. })
    }
}
