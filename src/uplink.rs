//! The way out of the box: one HTTP client for the Resource API and the CDN, with one set of timeouts, one TLS
//! configuration and one rule for trying again.
//!
//! Every error names the server and never the request: signatures and tokens travel in requests.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use http::{HeaderMap, Request, Response, StatusCode};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, SendBody, Timeout};
use zeroize::Zeroizing;

use crate::constants::{AGENT, CHUNK, STALL_LIMIT};
use crate::metrics;
use crate::transfer::Transfer;

/// A server that does not accept a connection within this time is unreachable.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How often a call that is safe to repeat is made in all.
const TRIES: u32 = 3;

/// The pause before the second try; it doubles from try to try.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// A server may ask for a longer pause with `Retry-After`, but nobody's request waits longer than this for it.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How many connections to one server are kept for the next request. A download in ranges asks for a piece on each again
/// and again, and opening one takes a round trip or three.
const IDLE_CONNECTIONS: usize = 8;

/// A response head beyond this is not one of our servers'.
const MAX_RESPONSE_HEAD: usize = 32 * 1024;

/// Why a server could not be asked, or gave no usable answer.
#[derive(Debug)]
pub enum UplinkError {
    /// No connection: refused, no route, no such name, or nobody answered within 5 s.
    Unreachable {
        /// Scheme, host and port.
        server: String,
        /// The operating system's or resolver's words.
        reason: String,
    },
    /// The TLS handshake failed; most often the certificate is not trusted.
    Tls {
        /// Scheme, host and port.
        server: String,
        /// What is wrong with the certificate or the handshake.
        reason: String,
    },
    /// Connected, but no byte came or went for 30 s.
    Stalled {
        /// Scheme, host and port.
        server: String,
    },
    /// The connection broke, or what came over it is not HTTP.
    Interrupted {
        /// Scheme, host and port.
        server: String,
        /// What happened.
        reason: String,
    },
    /// The server answered with a status that means "not now": 429 or 5xx.
    Unavailable {
        /// Scheme, host and port.
        server: String,
        /// The status.
        status: StatusCode,
        /// How long the server asks to wait.
        retry_after: Option<Duration>,
    },
    /// The request could not be made; the address is unusable.
    Unusable {
        /// What is wrong.
        reason: String,
    },
}

impl fmt::Display for UplinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { server, reason } => write!(f, "{server} is unreachable ({reason})"),
            Self::Tls { server, reason } => write!(
                f,
                "the TLS connection to {server} failed ({reason}); for a private certificate authority set CA_CERT_PATH"
            ),
            Self::Stalled { server } => {
                write!(f, "{server} is connected but sent or took nothing for {} seconds", STALL_LIMIT.as_secs())
            }
            Self::Interrupted { server, reason } => write!(f, "the connection to {server} broke ({reason})"),
            Self::Unavailable { server, status, .. } => write!(f, "{server} answered {status}"),
            Self::Unusable { reason } => f.write_str(reason),
        }
    }
}

impl std::error::Error for UplinkError {}

impl UplinkError {
    /// Whether the same call may succeed a moment later.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        !matches!(self, Self::Tls { .. } | Self::Unusable { .. })
    }

    /// Whether nothing answers at the server's address, or nothing that is able to: no connection, silence, or 5xx.
    #[must_use]
    pub fn is_away(&self) -> bool {
        match self {
            // Behind a hotel's login page every certificate is wrong.
            Self::Unreachable { .. } | Self::Tls { .. } | Self::Stalled { .. } | Self::Interrupted { .. } => true,
            Self::Unavailable { status, .. } => status.is_server_error(),
            Self::Unusable { .. } => false,
        }
    }

    /// How long the server asked to wait.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    fn new(server: String, error: ureq::Error) -> Self {
        use ureq::Error;
        let tls = |reason: String| Self::Tls { server: server.clone(), reason };
        match error {
            Error::Timeout(Timeout::Connect | Timeout::Resolve) => {
                Self::Unreachable { server, reason: format!("no connection within {} s", CONNECT_LIMIT.as_secs()) }
            }
            Error::Timeout(_) => Self::Stalled { server },
            Error::HostNotFound => Self::Unreachable { server, reason: "the host name is not known".into() },
            Error::ConnectionFailed => Self::Unreachable { server, reason: "no connection".into() },
            Error::Rustls(error) => tls(error.to_string()),
            Error::Tls(reason) => tls(reason.into()),
            Error::Pem(error) => tls(format!("{error:?}")),
            Error::Io(error) => Self::from_io(server, &error),
            Error::BadUri(_) | Error::Http(_) => Self::Unusable { reason: format!("{server} is not a usable address") },
            other => Self::Interrupted { server, reason: other.to_string() },
        }
    }

    fn from_io(server: String, error: &io::Error) -> Self {
        let reason = error.to_string();
        match error.kind() {
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::AddrNotAvailable
            | io::ErrorKind::NetworkDown => Self::Unreachable { server, reason },
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::Stalled { server },
            // rustls wraps its errors so.
            io::ErrorKind::InvalidData => Self::Tls { server, reason },
            _ => Self::Interrupted { server, reason },
        }
    }
}

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
pub struct Uplink {
    /// One agent for each set of certificate authorities: the HTTP client cannot join a private one to the web's.
    agents: Vec<Agent>,
    /// Which agent a server's certificate needs, once that is known.
    trusted_by: Arc<Mutex<HashMap<String, usize>>>,
}

impl Uplink {
    /// A client that trusts the web's certificate authorities and those in the PEM file at `ca_cert_path`.
    ///
    /// # Errors
    /// A sentence if the file holds no certificate.
    pub fn new(ca_cert_path: Option<&Path>) -> Result<Self, String> {
        let mut agents = vec![agent(RootCerts::WebPki)];
        if let Some(path) = ca_cert_path {
            agents.insert(0, agent(RootCerts::Specific(Arc::new(private_roots(path)?))));
        }
        Ok(Self { agents, trusted_by: Arc::default() })
    }

    /// Makes one call. Any status but 429 and 5xx is an answer.
    ///
    /// # Errors
    /// See [`UplinkError`].
    pub fn call(&self, request: &Request<()>, payload: Payload<'_>) -> Result<Response<Body>, UplinkError> {
        let server = server_of(request.uri());
        let known = self.trusted_by().get(&server).copied();
        let first = known.unwrap_or(0);
        for (index, agent) in self.agents.iter().enumerate().skip(first) {
            match run(agent, request.clone(), payload).map_err(|error| UplinkError::new(server.clone(), error)) {
                // The handshake comes before any byte of the request, so another authority may be tried.
                Err(UplinkError::Tls { .. }) if known.is_none() && index + 1 < self.agents.len() => {}
                Err(error) => return Err(error),
                Ok(response) => {
                    if known.is_none() {
                        self.trusted_by().insert(server.clone(), index);
                    }
                    return available(server, response);
                }
            }
        }
        Err(UplinkError::Unusable { reason: format!("{server} is not a usable address") })
    }

    fn trusted_by(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.trusted_by.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a call that is safe to repeat, up to three times, and reads its whole answer of at most `limit` bytes.
    /// `build` makes the request anew for each try, since signatures carry the time.
    ///
    /// # Errors
    /// Of the last try, see [`UplinkError`].
    pub fn ask(
        &self,
        payload: Payload<'_>,
        limit: u64,
        mut build: impl FnMut() -> Result<Request<()>, UplinkError>,
    ) -> Result<Answer, UplinkError> {
        let mut pauses = Pauses::default();
        loop {
            let request = build()?;
            match self
                .call(&request, payload)
                .and_then(|response| Answer::read(server_of(request.uri()), response, limit))
            {
                Err(error) if error.may_pass() && pauses.taken() + 1 < TRIES => {
                    log::info!("trying again: {error}");
                    pauses.pause(error.retry_after());
                }
                result => return result,
            }
        }
    }
}

/// A whole answer in memory.
pub struct Answer {
    /// The status: any but 429 and 5xx.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body. It may hold a token or a key, so it is wiped when dropped.
    pub body: Zeroizing<Vec<u8>>,
}

impl Answer {
    fn read(server: String, response: Response<Body>, limit: u64) -> Result<Self, UplinkError> {
        let (head, body) = response.into_parts();
        // Room for all of it: a vector that grows leaves copies of its beginning behind.
        let length = body.content_length().unwrap_or(0).min(limit);
        let mut bytes = Zeroizing::new(Vec::with_capacity(length as usize + 64));
        // One more byte than allowed tells "too large" from "just as large as allowed".
        match body.into_reader().take(limit + 1).read_to_end(&mut bytes) {
            Err(error) => Err(UplinkError::new(server, error.into())),
            Ok(_) if bytes.len() as u64 > limit => Err(UplinkError::Unusable {
                reason: format!("{server} sent more than {limit} bytes where little was asked"),
            }),
            Ok(_) => Ok(Self { status: head.status, headers: head.headers, body: bytes }),
        }
    }
}

fn agent(roots: RootCerts) -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        // A redirect would carry credentials to a server that nobody configured.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_connect(Some(CONNECT_LIMIT))
        .timeout_per_read(Some(STALL_LIMIT))
        .timeout_per_write(Some(STALL_LIMIT))
        .max_response_header_size(MAX_RESPONSE_HEAD)
        .input_buffer_size(CHUNK)
        .output_buffer_size(CHUNK)
        .max_idle_connections_per_host(IDLE_CONNECTIONS)
        .max_idle_age(Duration::from_secs(10))
        .user_agent(AGENT)
        .accept("*/*")
        .tls_config(TlsConfig::builder().root_certs(roots).build())
        .build()
        .new_agent()
}

fn run(agent: &Agent, mut request: Request<()>, payload: Payload<'_>) -> Result<Response<Body>, ureq::Error> {
    match payload {
        Payload::None => agent.run(request.map(|()| SendBody::none())),
        Payload::Bytes(bytes) => agent.run(request.map(|()| bytes)),
        Payload::File { file, offset, length, transfer } => {
            transfer.continue_at(offset);
            request.headers_mut().insert(http::header::CONTENT_LENGTH, length.into());
            let mut range = FileRange { file, offset, remaining: length, transfer };
            agent.run(request.map(|()| SendBody::from_reader(&mut range)))
        }
    }
}

/// The response, unless its status says "not now".
fn available(server: String, response: Response<Body>) -> Result<Response<Body>, UplinkError> {
    let status = response.status();
    if status != StatusCode::TOO_MANY_REQUESTS && !status.is_server_error() {
        return Ok(response);
    }
    let retry_after = response
        .headers()
        .get(http::header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .map(Duration::from_secs);
    Err(UplinkError::Unavailable { server, status, retry_after })
}

/// The pauses between tries: they double from one to the next, up to a limit, and have jitter, so that a fleet that
/// lost its server together does not come back to it together.
#[derive(Debug, Default)]
pub struct Pauses(u32);

impl Pauses {
    /// How many pauses there were.
    #[must_use]
    pub fn taken(&self) -> u32 {
        self.0
    }

    /// Sleeps for the next pause, or for as long as the server asked.
    pub fn pause(&mut self, asked: Option<Duration>) {
        metrics::UPLINK_RETRIES.add();
        thread::sleep(asked.unwrap_or_else(|| jittered(FIRST_PAUSE * 2_u32.pow(self.0.min(10)))).min(LONGEST_PAUSE));
        self.0 += 1;
    }
}

/// Between half and all of `pause`.
fn jittered(pause: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(0);
    pause / 2 + (pause / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// The certificates in a PEM file.
fn private_roots(path: &Path) -> Result<Vec<Certificate<'static>>, String> {
    let unusable = |reason: String| format!("CA_CERT_PATH names {}: {reason}", path.display());
    let pem = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        match item {
            Ok(PemItem::Certificate(certificate)) => certificates.push(certificate),
            Ok(_) => {}
            Err(error) => return Err(unusable(error.to_string())),
        }
    }
    if certificates.is_empty() {
        return Err(unusable("it holds no certificate in PEM form".into()));
    }
    Ok(certificates)
}

/// Scheme, host and port of an address: all of it that may be shown.
fn server_of(uri: &http::Uri) -> String {
    format!("{}://{}", uri.scheme_str().unwrap_or("http"), uri.authority().map_or("", |authority| authority.as_str()))
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
