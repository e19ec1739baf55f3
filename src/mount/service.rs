//! The mount's calls to the running service: HTTP over connections that stay open.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use zeroize::Zeroizing;

use super::connection::Connection;
use super::listing;
use crate::configuration::{BindAddress, Configuration};
use crate::names::ModelName;
use crate::service_stream::Head;
use crate::threads::lock;

/// The service closes connections that have been idle for `CLIENT_STALL_SECONDS`, by default 30.
const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// How long the service may be away before a call fails, so that programs do not notice when it restarts.
const AWAY_LIMIT: Duration = Duration::from_secs(5);

/// The pause before a retry.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Idle connections that are kept.
const MAX_IDLE: usize = 8;

/// The longest list of models, and the longest error.
const MAX_DOCUMENT: u64 = 4 << 20;

/// Why a call failed.
#[derive(Debug)]
pub(super) enum CallError {
    /// The service cannot be reached, or the connection broke.
    Down(io::Error),
    /// The service did not answer in time.
    TimedOut,
    /// The service has too much to do; worth a retry.
    Busy,
    /// There is no such model.
    Missing,
    /// The service, or the Resource API, does not allow it; with the service's reason.
    Refused(String),
    /// The service could not do it; with its reason.
    Failed(String),
    /// The service has another version of the model now.
    Replaced,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down(error) => write!(f, "the service cannot be reached: {error}; is it running?"),
            Self::TimedOut => f.write_str("the service did not answer in time"),
            Self::Busy => f.write_str("the service is busy; raise its HANDLER_THREADS if this happens often"),
            Self::Missing => f.write_str("there is no such model"),
            Self::Refused(reason) | Self::Failed(reason) => f.write_str(reason),
            Self::Replaced => f.write_str("it was replaced by a new upload, and its old bytes cannot be read any more"),
        }
    }
}

impl From<io::Error> for CallError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::TimedOut,
            _ => Self::Down(error),
        }
    }
}

/// Makes a call that must end within `limit`, again and again while the service restarts or is busy.
pub(super) fn patiently<T>(
    limit: Duration,
    mut call: impl FnMut(Instant) -> Result<T, CallError>,
) -> Result<T, CallError> {
    let started = Instant::now();
    loop {
        let error = match call(started + limit) {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let patience = match &error {
            CallError::Down(_) => AWAY_LIMIT.min(limit),
            CallError::Busy => limit,
            _ => return Err(error),
        };
        if started.elapsed() + RETRY_PAUSE >= patience {
            return Err(error);
        }
        thread::sleep(RETRY_PAUSE);
    }
}

/// What the service says about the current version of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VersionInfo {
    /// The entity tag.
    pub(super) tag: String,
    /// Length of the plaintext in bytes.
    pub(super) size: u64,
    /// When this box got the version.
    pub(super) modified: Option<SystemTime>,
}

/// The running service.
pub(super) struct Service {
    address: BindAddress,
    /// The header with the bearer token, if there is one.
    authorization: Zeroizing<String>,
    idle: Mutex<Vec<(Instant, Connection)>>,
}

impl Service {
    pub(super) fn new(configuration: &Configuration) -> Self {
        let token = configuration.client_token.as_ref();
        let header = token.map(|token| format!("Authorization: Bearer {}\r\n", token.expose()));
        Self {
            address: configuration.service_address().clone(),
            authorization: Zeroizing::new(header.unwrap_or_default()),
            idle: Mutex::default(),
        }
    }

    pub(super) fn address(&self) -> &BindAddress {
        &self.address
    }

    /// The models that are at hand. One may be listed twice.
    pub(super) fn list(self: &Arc<Self>, deadline: Instant) -> Result<Vec<ModelName>, CallError> {
        let response = self.call("GET /models", "", deadline)?;
        let (status, body) = (response.head.status, response.into_document(deadline)?);
        if status != 200 {
            return Err(failure(status, None, &body));
        }
        listing::parse(&body).ok_or_else(unusable)
    }

    /// Asks for the current version of a model, by reading its first byte.
    pub(super) fn look_up(self: &Arc<Self>, model: &ModelName, deadline: Instant) -> Result<VersionInfo, CallError> {
        let mut response = self.call(&load(model), "Range: bytes=0-0\r\n", deadline)?;
        match response.head.status {
            206 => {
                let version = response.version().ok_or_else(unusable)?;
                response.body.read_exact(&mut [0; 1], deadline)?;
                Ok(version)
            }
            // There is no first byte.
            416 if response.head.header("Content-Range") == Some("bytes */0") => {
                response.into_document(deadline)?;
                Ok(VersionInfo { tag: String::new(), size: 0, modified: None })
            }
            _ => Err(response.into_error(deadline)),
        }
    }

    /// Opens a range of this version of a model, be it the current one or not.
    pub(super) fn open(
        self: &Arc<Self>,
        model: &ModelName,
        version: &VersionInfo,
        range: std::ops::Range<u64>,
        deadline: Instant,
    ) -> Result<Body, CallError> {
        let headers = format!("Range: bytes={}-{}\r\nIf-Match: {}\r\n", range.start, range.end - 1, version.tag);
        let response = self.call(&load(model), &headers, deadline)?;
        let expected = format!("bytes {}-{}/{}", range.start, range.end - 1, version.size);
        let (tag, sent) = (response.head.header("ETag"), response.head.header("Content-Range"));
        match response.head.status {
            206 if tag == Some(&version.tag)
                && sent == Some(&expected)
                && response.body.remaining == range.end - range.start =>
            {
                Ok(response.body)
            }
            206 => Err(unusable()),
            412 => {
                response.into_document(deadline)?;
                Err(CallError::Replaced)
            }
            _ => Err(response.into_error(deadline)),
        }
    }

    /// Asks the service to hold this version, which a program has open: after a new upload it can still be read.
    pub(super) fn hold(
        self: &Arc<Self>,
        model: &ModelName,
        version: &VersionInfo,
        deadline: Instant,
    ) -> Result<(), CallError> {
        if version.size == 0 {
            return Ok(());
        }
        self.open(model, version, 0..1, deadline)?.read_exact(&mut [0; 1], deadline)
    }

    /// Makes a call without a body and reads the head of its response.
    fn call(self: &Arc<Self>, request: &str, headers: &str, deadline: Instant) -> Result<Response, CallError> {
        let length = if request.starts_with("POST") { "Content-Length: 0\r\n" } else { "" };
        let head = Zeroizing::new(format!(
            "{request} HTTP/1.1\r\nHost: localhost\r\n{}{length}{headers}\r\n",
            &*self.authorization
        ));
        // The service may have closed an idle connection meanwhile.
        while let Some(connection) = self.take_idle() {
            match self.exchange(connection, &head, deadline) {
                Err(CallError::Down(_)) => {}
                result => return result,
            }
        }
        self.exchange(Connection::open(&self.address)?, &head, deadline)
    }

    fn exchange(
        self: &Arc<Self>,
        mut connection: Connection,
        head: &str,
        deadline: Instant,
    ) -> Result<Response, CallError> {
        connection.write_all(head.as_bytes(), deadline)?;
        let head = connection.read_head(deadline)?;
        let remaining = head.length().ok_or_else(unusable)?;
        let is_last = head.header("Connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let body = Body { connection: Some(connection), remaining, service: Arc::clone(self), is_last };
        Ok(Response { head, body })
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut idle = lock(&self.idle);
        idle.retain(|(since, _)| since.elapsed() < IDLE_LIMIT);
        idle.pop().map(|(_, connection)| connection)
    }

    fn keep(&self, connection: Connection) {
        let mut idle = lock(&self.idle);
        if idle.len() < MAX_IDLE {
            idle.push((Instant::now(), connection));
        }
    }
}

fn load(model: &ModelName) -> String {
    // A folder has no characters that need it.
    format!("POST /load/{}?folder={}", utf8_percent_encode(&model.file, NON_ALPHANUMERIC), &*model.folder)
}

fn unusable() -> CallError {
    CallError::Failed("the service's response is not usable; are mount and service of one version?".into())
}

/// What a response that is no success means.
fn failure(status: u16, reason: Option<&str>, body: &[u8]) -> CallError {
    let json: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let detail = json.as_ref().and_then(|json| json["detail"].as_str()).unwrap_or("no reason was given");
    match (status, reason) {
        (503, _) => CallError::Busy,
        (_, Some("missing")) => CallError::Missing,
        (401 | 403, _) | (_, Some("refused")) => CallError::Refused(detail.to_owned()),
        _ => CallError::Failed(detail.to_owned()),
    }
}

/// The part of a response that is before its body, and the way to the body.
struct Response {
    head: Head,
    body: Body,
}

impl Response {
    fn version(&self) -> Option<VersionInfo> {
        let size = self.head.header("Content-Range")?.rsplit_once('/')?.1.parse().ok()?;
        let modified = self.head.header("Last-Modified").and_then(|date| httpdate::parse_http_date(date).ok());
        Some(VersionInfo { tag: self.head.header("ETag")?.to_owned(), size, modified })
    }

    fn into_document(mut self, deadline: Instant) -> Result<Vec<u8>, CallError> {
        let mut bytes = vec![0; self.body.remaining.min(MAX_DOCUMENT) as usize];
        self.body.read_exact(&mut bytes, deadline)?;
        Ok(bytes)
    }

    fn into_error(self, deadline: Instant) -> CallError {
        let (status, reason) = (self.head.status, self.head.header("Loader-Failure").map(str::to_owned));
        match self.into_document(deadline) {
            Ok(body) => failure(status, reason.as_deref(), &body),
            Err(error) => error,
        }
    }
}

/// The body of a response. Its connection is used again if the body was read to its end.
pub(super) struct Body {
    connection: Option<Connection>,
    remaining: u64,
    service: Arc<Service>,
    is_last: bool,
}

impl Body {
    /// The bytes that are still to come.
    pub(super) fn remaining(&self) -> u64 {
        self.remaining
    }

    pub(super) fn read_exact(&mut self, out: &mut [u8], deadline: Instant) -> Result<(), CallError> {
        let mut done = 0;
        while done < out.len() {
            let ended = || CallError::Down(io::ErrorKind::UnexpectedEof.into());
            let connection = self.connection.as_mut().ok_or_else(ended)?;
            match connection.read(&mut out[done..], deadline) {
                Ok(0) => return Err(ended()),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.remaining = self.remaining.saturating_sub(out.len() as u64);
        if self.remaining == 0
            && let Some(connection) = self.connection.take()
            && !self.is_last
        {
            self.service.keep(connection);
        }
        Ok(())
    }
}
