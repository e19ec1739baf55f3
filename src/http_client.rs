//! The way out of the box: one HTTP client for the Resource API and the CDN, with one set of timeouts, one TLS
//! configuration and one rule for trying again.
//!
//! Every error names the server and never the request: signatures and tokens travel in requests.

mod agent;
mod cancellable;
mod error;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, Request, Response, StatusCode, header};
use ureq::config::Config;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::{Agent, Body, SendBody};

use crate::cancellation::Cancellation;
use zeroize::Zeroizing;

use crate::metrics;
use crate::metrics::Transfer;

pub use self::error::HttpClientError;

/// How often a call that is safe to repeat is made in all while a client waits for its answer.
pub const TRIES: u32 = 3;

/// How often in all where giving up costs a whole transfer. With the pauses between them these tries span about half a
/// minute, the time an uplink needs to come back.
pub const PATIENT_TRIES: u32 = 8;

/// The pause before the second try; it doubles from try to try.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// A server may ask for a longer pause with `Retry-After`, but nobody's request waits much longer than this for it.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What a request carries.
#[derive(Clone, Copy)]
pub enum Payload<'a> {
    /// No body.
    None,
    /// Bytes in memory.
    Bytes(&'a [u8]),
    /// A range of a file, read as it is sent.
    File {
        /// The file; its position is neither used nor changed.
        file: &'a File,
        /// Where the range begins.
        offset: u64,
        /// Its length in bytes.
        length: u64,
        /// Is told what has been sent.
        transfer: &'a Transfer,
    },
}

/// The HTTP client. Cloning it shares its connections.
#[derive(Clone, Debug)]
pub struct HttpClient {
    config: Arc<Config>,
    agent: Arc<RwLock<Agent>>,
}

impl HttpClient {
    /// A client that trusts the web's certificate authorities and those in the PEM file at `ca_cert_path`.
    ///
    /// # Errors
    /// A sentence that names the environment variable with an unusable value.
    pub fn new(ca_cert_path: Option<&Path>) -> Result<Self, String> {
        let config = agent::config(ca_cert_path)?;
        let agent = Arc::new(RwLock::new(agent_of(&config)));
        Ok(Self { config: Arc::new(config), agent })
    }

    /// Makes one call. Any status but 429, 5xx and redirects is an answer.
    ///
    /// # Errors
    /// See [`HttpClientError`].
    pub fn call(&self, request: &Request<()>, payload: Payload<'_>) -> Result<Response<Body>, HttpClientError> {
        let agent = self.agent.read().unwrap_or_else(PoisonError::into_inner).clone();
        let server = self.server_of(request.uri());
        match run(&agent, request.clone(), payload) {
            Ok(response) => usable(server, request.uri(), response),
            Err(error) => {
                self.forget_connections();
                Err(HttpClientError::new(server, error))
            }
        }
    }

    /// Makes the next calls over new connections. When one connection hangs or breaks, those that are kept idle have most
    /// likely died with it, and a retry would wait for the stall limit on one after the other.
    pub fn forget_connections(&self) {
        *self.agent.write().unwrap_or_else(PoisonError::into_inner) = agent_of(&self.config);
    }

    /// Makes a call that is safe to repeat up to [`TRIES`] times and reads its whole answer of at most `limit` bytes.
    ///
    /// # Errors
    /// Of the last try, see [`HttpClientError`].
    pub fn ask(&self, request: &Request<()>, payload: Payload<'_>, limit: u64) -> Result<Answer, HttpClientError> {
        let ask =
            || self.call(request, payload).and_then(|response| self.read(&origin_of(request.uri()), response, limit));
        patiently(TRIES, HttpClientError::patience, ask)
    }

    /// The whole answer of `server`, of at most `limit` bytes.
    ///
    /// # Errors
    /// See [`HttpClientError`].
    pub fn read(&self, server: &str, response: Response<Body>, limit: u64) -> Result<Answer, HttpClientError> {
        let (head, body) = response.into_parts();
        // Room for all of it: a vector that grows leaves copies of its beginning behind.
        let length = body.content_length().unwrap_or(0).min(limit);
        let mut bytes = Zeroizing::new(Vec::with_capacity(length as usize + 64));
        // One more byte than allowed tells "too large" from "just as large as allowed".
        match body.into_reader().take(limit + 1).read_to_end(&mut bytes) {
            Err(error) => {
                self.forget_connections();
                Err(HttpClientError::new(server.to_owned(), error.into()))
            }
            Ok(_) if bytes.len() as u64 > limit => Err(HttpClientError::Unusable {
                reason: format!("{server} sent more than {limit} bytes where little was asked"),
            }),
            Ok(_) => Ok(Answer { status: head.status, headers: head.headers, body: bytes }),
        }
    }

    /// Scheme, host and port of an address, and the proxy on the way: all of it that may be shown.
    fn server_of(&self, uri: &http::Uri) -> String {
        let server = origin_of(uri);
        match self.config.proxy().filter(|proxy| !proxy.is_no_proxy(uri)) {
            Some(proxy) => format!("{server} (through the proxy {}:{})", proxy.host(), proxy.port()),
            None => server,
        }
    }
}

fn agent_of(config: &Config) -> Agent {
    Agent::with_parts(config.clone(), cancellable::connector(), DefaultResolver::default())
}

/// How often a pause looks whether it was cancelled.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Does what is safe to repeat up to `tries` times. `patience` says whether an error may pass, and how long the server asks
/// to wait.
///
/// # Errors
/// Of the last try.
pub fn patiently<T, E: std::fmt::Display>(
    tries: u32,
    patience: impl Fn(&E) -> Option<Option<Duration>>,
    mut act: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let mut pauses = Pauses::default();
    loop {
        let error = match act() {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        match patience(&error) {
            Some(asked) if pauses.taken() + 1 < tries && Cancellation::check().is_ok() => {
                log::info!("trying again: {error}");
                pauses.pause(asked);
            }
            _ => return Err(error),
        }
    }
}

/// A whole answer in memory.
pub struct Answer {
    /// The status: any but 429, 5xx and redirects.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body. It may hold a token or a key, so it is wiped when dropped.
    pub body: Zeroizing<Vec<u8>>,
}

fn run(agent: &Agent, mut request: Request<()>, payload: Payload<'_>) -> Result<Response<Body>, ureq::Error> {
    match payload {
        Payload::None => agent.run(request.map(|()| SendBody::none())),
        Payload::Bytes(bytes) => agent.run(request.map(|()| bytes)),
        Payload::File { file, offset, length, transfer } => {
            request.headers_mut().insert(header::CONTENT_LENGTH, length.into());
            let mut range = FileRange { file, offset, remaining: length, transfer };
            let response = agent.run(request.map(|()| SendBody::from_reader(&mut range)));
            if response.as_ref().is_ok_and(|response| response.status().is_success()) {
                return response;
            }
            transfer.moves_again(length - range.remaining);
            response
        }
    }
}

/// The response, unless its status says "not now" or "not here".
fn usable(server: String, uri: &http::Uri, response: Response<Body>) -> Result<Response<Body>, HttpClientError> {
    let (status, headers) = (response.status(), response.headers());
    match status.as_u16() {
        429 | 500..600 => Err(HttpClientError::Unavailable { server, status, retry_after: retry_after(headers) }),
        301 | 302 | 303 | 307 | 308 => {
            Err(HttpClientError::Redirected { server, status, target: target(uri, headers) })
        }
        _ => Ok(response),
    }
}

/// How long a server asks to wait: seconds, or a date by its own clock.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let date = || httpdate::parse_http_date(value).ok();
    let now = || server_time(headers).unwrap_or_else(SystemTime::now);
    let seconds = value.parse().map(Duration::from_secs).ok();
    seconds.or_else(|| Some(date()?.duration_since(now()).unwrap_or_default()))
}

/// What the server's clock says.
pub fn server_time(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(header::DATE)?.to_str().ok()?).ok()
}

/// Where a redirect leads to.
fn target(from: &http::Uri, headers: &HeaderMap) -> String {
    let location = headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
    match location.map(str::parse::<http::Uri>) {
        Some(Ok(to)) if to.host().is_some() => format!("{}{}", origin_of(&to), to.path()),
        Some(Ok(to)) => format!("{}{}", origin_of(from), to.path()),
        _ => "a place that it does not name".into(),
    }
}

/// The pauses between tries: they double from one to the next, up to a limit, and have jitter, so that a fleet that
/// lost its server together does not come back to it together.
#[derive(Debug, Default)]
pub struct Pauses(u32);

impl Pauses {
    /// How many pauses there were.
    pub fn taken(&self) -> u32 {
        self.0
    }

    /// Sleeps for the next pause, or for as long as the server asked and a little more: it asked a whole fleet.
    pub fn pause(&mut self, asked: Option<Duration>) {
        metrics::UPLINK_RETRIES.add();
        let usual = FIRST_PAUSE * 2_u32.pow(self.0.min(10));
        let (least, most) = match asked.map(|asked| asked.min(LONGEST_PAUSE)) {
            Some(asked) => (asked, asked + asked.max(FIRST_PAUSE) / 4),
            None => (usual.min(LONGEST_PAUSE) / 2, usual.min(LONGEST_PAUSE)),
        };
        let random = f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX);
        let until = Instant::now() + least + (most - least).mul_f64(random);
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            if Cancellation::check().is_err() {
                break;
            }
            thread::sleep(left.min(LOOK_EVERY));
        }
        self.0 += 1;
    }
}

/// Scheme, host and port of an address.
fn origin_of(uri: &http::Uri) -> String {
    // A name and a password before the host are nobody's business.
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{}://{host}", uri.scheme_str().unwrap_or("http"))
}

/// A range of a file as a reader with a position of its own.
struct FileRange<'a> {
    file: &'a File,
    offset: u64,
    remaining: u64,
    transfer: &'a Transfer,
}

impl Read for FileRange<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let limit = out.len().min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut out[..limit], self.offset)?;
        self.offset += count as u64;
        self.remaining -= count as u64;
        self.transfer.moved(count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date_of_the_servers_clock() {
        let date = "Tue, 24 Nov 1970 10:00:00 GMT";
        for (value, expected) in [
            ("7", Some(7)),
            ("Tue, 24 Nov 1970 10:00:09 GMT", Some(9)),
            ("Tue, 24 Nov 1970 09:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            let headers = headers(&[(header::DATE, date), (header::RETRY_AFTER, value)]);
            assert_eq!(retry_after(&headers), expected.map(Duration::from_secs), "{value}");
        }
    }

    #[test]
    fn a_redirect_is_named_without_what_could_be_a_secret() {
        let from = "https://cdn.example.com:8443/models/m.big?X-Amz-Signature=hush".parse().unwrap();
        for (location, expected) in [
            ("https://user:hush@other.example.com/x?token=hush", "https://other.example.com/x"),
            ("/login?next=hush", "https://cdn.example.com:8443/login"),
            ("::", "a place that it does not name"),
        ] {
            assert_eq!(target(&from, &headers(&[(header::LOCATION, location)])), expected);
        }
    }
}
