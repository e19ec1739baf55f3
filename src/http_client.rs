//! The HTTP client for the Resource API and the CDN: one set of timeouts, one TLS configuration, one retry policy.

mod agent;
mod cancellable;
mod error;
mod retry;
mod tls;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, Request, Response, StatusCode, header};
use rustls::ClientConfig;
use ureq::config::Config;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::{Agent, Body, SendBody};
use zeroize::Zeroizing;

use crate::metrics::Transfer;
use crate::threads::{read, write};

pub use self::error::{HttpClientError, HttpClientErrorKind};
pub use self::retry::{Backoff, Retry, TRANSFER_TRIES, TRIES, with_retries};
use self::tls::TlsConnector;

/// The body of a request.
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
        /// Start of the range.
        offset: u64,
        /// Length of the range.
        length: u64,
        /// Counts the bytes that were sent.
        transfer: &'a Transfer,
    },
}

/// A response with its body in memory.
pub struct BufferedResponse {
    /// Any status but 429, 5xx and redirects.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body. It may hold a token or a key, so it is wiped when dropped.
    pub body: Zeroizing<Vec<u8>>,
}

/// The HTTP client. Clones share their connections.
#[derive(Clone, Debug)]
pub struct HttpClient {
    config: Arc<Config>,
    tls: Arc<ClientConfig>,
    agent: Arc<RwLock<Agent>>,
}

impl HttpClient {
    /// A client that trusts the web's certificate authorities and those in the PEM file at `ca_cert_path`. The error is a
    /// sentence that names the environment variable with an unusable value.
    pub fn new(ca_cert_path: Option<&Path>) -> Result<Self, String> {
        let (config, tls) = (agent::config()?, tls::config(ca_cert_path)?);
        let agent = Arc::new(RwLock::new(new_agent(&config, &tls)));
        Ok(Self { config: Arc::new(config), tls, agent })
    }

    /// Makes one call. A status of 429 or 5xx and a redirect are errors; any other is a response.
    pub fn call(&self, request: &Request<()>, payload: Payload<'_>) -> Result<Response<Body>, HttpClientError> {
        let agent = read(&self.agent).clone();
        let server = self.server_of(request.uri());
        match send(&agent, request.clone(), payload) {
            Ok(response) => match unusable(request.uri(), &response) {
                Some(kind) => Err(HttpClientError { server, kind }),
                None => Ok(response),
            },
            Err(error) => {
                self.forget_connections();
                Err(HttpClientError::new(server, error))
            }
        }
    }

    /// Makes the next calls over new connections. When one connection hangs or breaks, the idle ones have most likely died
    /// with it, and a retry on each of them would wait for the stall limit.
    pub fn forget_connections(&self) {
        *write(&self.agent) = new_agent(&self.config, &self.tls);
    }

    /// Makes a call that is safe to repeat up to [`TRIES`] times, and reads its response body of at most `limit` bytes.
    pub fn fetch(
        &self,
        request: &Request<()>,
        payload: Payload<'_>,
        limit: u64,
    ) -> Result<BufferedResponse, HttpClientError> {
        with_retries(TRIES, HttpClientError::retry, || {
            self.buffer(&self.server_of(request.uri()), self.call(request, payload)?, limit)
        })
    }

    /// Reads the body, of at most `limit` bytes, of a response of `server`.
    pub fn buffer(
        &self,
        server: &str,
        response: Response<Body>,
        limit: u64,
    ) -> Result<BufferedResponse, HttpClientError> {
        let (head, body) = response.into_parts();
        // All of the memory at once: a vector that grows leaves copies behind, which are not wiped.
        let length = body.content_length().unwrap_or(0).min(limit);
        let mut bytes = Zeroizing::new(Vec::with_capacity(length as usize + 64));
        // One byte past the limit tells "longer" from "exactly as long".
        match body.into_reader().take(limit + 1).read_to_end(&mut bytes) {
            Err(error) => {
                self.forget_connections();
                Err(HttpClientError::new(server.to_owned(), error.into()))
            }
            Ok(_) if bytes.len() as u64 > limit => {
                Err(HttpClientError { server: server.to_owned(), kind: HttpClientErrorKind::TooLong(limit) })
            }
            Ok(_) => Ok(BufferedResponse { status: head.status, headers: head.headers, body: bytes }),
        }
    }

    /// What errors may show of an address: its origin, and the proxy on the way there.
    fn server_of(&self, uri: &http::Uri) -> String {
        let server = origin_of(uri);
        match self.config.proxy().filter(|proxy| !proxy.is_no_proxy(uri)) {
            Some(proxy) => format!("{server} (through the proxy {}:{})", proxy.host(), proxy.port()),
            None => server,
        }
    }
}

fn new_agent(config: &Config, tls: &Arc<ClientConfig>) -> Agent {
    let connector = cancellable::connector(TlsConnector(Arc::clone(tls)));
    Agent::with_parts(config.clone(), connector, DefaultResolver::default())
}

fn send(agent: &Agent, mut request: Request<()>, payload: Payload<'_>) -> Result<Response<Body>, ureq::Error> {
    match payload {
        Payload::None => agent.run(request.map(|()| SendBody::none())),
        Payload::Bytes(bytes) => agent.run(request.map(|()| bytes)),
        Payload::File { file, offset, length, transfer } => {
            request.headers_mut().insert(header::CONTENT_LENGTH, length.into());
            let mut range = FileRange { file, offset, remaining: length, transfer };
            let response = agent.run(request.map(|()| SendBody::from_reader(&mut range)));
            if !response.as_ref().is_ok_and(|response| response.status().is_success()) {
                transfer.moves_again(length - range.remaining);
            }
            response
        }
    }
}

/// Why a response is of no use to any caller; none if its status is for the caller to judge.
fn unusable(uri: &http::Uri, response: &Response<Body>) -> Option<HttpClientErrorKind> {
    let (status, headers) = (response.status(), response.headers());
    match status.as_u16() {
        429 | 500..600 => Some(HttpClientErrorKind::Unavailable { status, retry_after: retry_after(headers) }),
        301 | 302 | 303 | 307 | 308 => {
            Some(HttpClientErrorKind::Redirected { status, target: redirect_target(uri, headers) })
        }
        _ => None,
    }
}

/// The delay in `Retry-After`: seconds, or a date by the server's clock.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let date = || httpdate::parse_http_date(value).ok();
    let now = || server_time(headers).unwrap_or_else(SystemTime::now);
    let seconds = value.parse().map(Duration::from_secs).ok();
    seconds.or_else(|| Some(date()?.duration_since(now()).unwrap_or_default()))
}

/// The server's time, from `Date`.
pub fn server_time(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(header::DATE)?.to_str().ok()?).ok()
}

/// The address in `Location` without anything that could be a secret.
fn redirect_target(from: &http::Uri, headers: &HeaderMap) -> String {
    let location = headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
    match location.map(str::parse::<http::Uri>) {
        Some(Ok(to)) if to.host().is_some() => format!("{}{}", origin_of(&to), to.path()),
        Some(Ok(to)) => format!("{}{}", origin_of(from), to.path()),
        _ => "an unnamed address".into(),
    }
}

/// Scheme, host and port, without a user name and password.
fn origin_of(uri: &http::Uri) -> String {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{}://{host}", uri.scheme_str().unwrap_or("http"))
}

/// Reads a range of a file at a position of its own.
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
    fn retry_after_is_seconds_or_a_date_of_the_servers_clock() {
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
    fn a_redirect_is_named_without_credentials_and_query() {
        let from = "https://cdn.example.com:8443/models/m.big?X-Amz-Signature=hush".parse().unwrap();
        for (location, expected) in [
            ("https://user:hush@other.example.com/x?token=hush", "https://other.example.com/x"),
            ("/login?next=hush", "https://cdn.example.com:8443/login"),
            ("::", "an unnamed address"),
        ] {
            assert_eq!(redirect_target(&from, &headers(&[(header::LOCATION, location)])), expected);
        }
    }
}
