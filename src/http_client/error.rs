//! Why a server gave no usable response, and whether the call is worth repeating.

use std::fmt;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use time::{Date, OffsetDateTime};
use ureq::Timeout;

use super::Retry;
use super::agent::CONNECT_LIMIT;
use crate::constants::{EARLIEST_TIME, STALL_LIMIT};

/// A failed call. It names the server and nothing of the request, which carries a token or a signature.
#[derive(Clone, Debug)]
pub struct HttpClientError {
    /// Scheme, host and port, and the proxy if there is one.
    pub server: String,
    /// What went wrong.
    pub kind: HttpClientErrorKind,
}

/// What went wrong with a server.
#[derive(Clone, Debug)]
pub enum HttpClientErrorKind {
    /// No connection, for this reason: refused, no route, unknown host name, or the connect timeout.
    Unreachable(String),
    /// The TLS handshake failed for this reason, most often an untrusted certificate.
    Tls(String),
    /// The TLS handshake failed because the clock of this box shows this date, on which no certificate is valid yet.
    WrongClock(Date),
    /// No byte was sent or received for `STALL_LIMIT`.
    Stalled,
    /// The connection broke, or carried something other than HTTP.
    Interrupted(String),
    /// 429 or 5xx.
    Unavailable {
        /// The status.
        status: StatusCode,
        /// The time to wait according to `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// A redirect, which is not followed: the request's token or signature is for this server only.
    Redirected {
        /// The status.
        status: StatusCode,
        /// The new address without its query, which may hold a signature.
        target: String,
    },
    /// The response body exceeds this many bytes.
    TooLong(u64),
    /// There is no request to an address like this.
    BadAddress,
}

impl fmt::Display for HttpClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use HttpClientErrorKind as Kind;
        let server = &self.server;
        match &self.kind {
            Kind::Unreachable(reason) => write!(f, "{server} is unreachable ({reason})"),
            Kind::Tls(reason) => write!(
                f,
                "the TLS connection to {server} failed ({reason}); for a private certificate authority set CA_CERT_PATH"
            ),
            Kind::WrongClock(today) => {
                write!(f, "the clock is wrong ({today}), TLS certificates cannot be checked until it is set")
            }
            Kind::Stalled => {
                write!(f, "{server} is connected but sent or took nothing for {} seconds", STALL_LIMIT.as_secs())
            }
            Kind::Interrupted(reason) => write!(f, "the connection to {server} broke ({reason})"),
            Kind::Unavailable { status, .. } => write!(f, "{server} answered {status}"),
            Kind::Redirected { status, target } => write!(
                f,
                "{server} answered {status}, a redirect to {target}, which is not followed because the request carries \
                 this server's credentials; if that is the right address, configure it instead"
            ),
            Kind::TooLong(limit) => write!(f, "{server} sent a response of more than {limit} bytes"),
            Kind::BadAddress => write!(f, "{server} is not a usable address"),
        }
    }
}

impl HttpClientError {
    /// Whether and when the same call may succeed.
    pub fn retry(&self) -> Retry {
        use HttpClientErrorKind as Kind;
        match self.kind {
            Kind::Unavailable { retry_after: Some(delay), .. } => Retry::After(delay),
            Kind::Unreachable(_) | Kind::Stalled | Kind::Interrupted(_) | Kind::Unavailable { .. } => Retry::Soon,
            Kind::Tls(_) | Kind::WrongClock(_) | Kind::Redirected { .. } | Kind::TooLong(_) | Kind::BadAddress => {
                Retry::Never
            }
        }
    }

    /// Whether the server is down or out of reach, as opposed to refusing this call.
    pub fn is_outage(&self) -> bool {
        use HttpClientErrorKind as Kind;
        match self.kind {
            // Where a captive portal intercepts TLS, no certificate is the expected one.
            Kind::Unreachable(_) | Kind::Tls(_) | Kind::WrongClock(_) | Kind::Stalled | Kind::Interrupted(_) => true,
            Kind::Unavailable { status, .. } => status.is_server_error(),
            Kind::Redirected { .. } | Kind::TooLong(_) | Kind::BadAddress => false,
        }
    }

    /// Whether the server has not answered at all.
    pub fn is_silence(&self) -> bool {
        self.is_outage() && !matches!(self.kind, HttpClientErrorKind::Unavailable { .. })
    }

    pub(super) fn new(server: String, error: ureq::Error) -> Self {
        use HttpClientErrorKind as Kind;
        use ureq::Error;
        let kind = match error {
            Error::Timeout(limit @ (Timeout::Connect | Timeout::Resolve)) => {
                let missing = if limit == Timeout::Connect { "connection" } else { "address from the name server" };
                Kind::Unreachable(format!("no {missing} within {} s", CONNECT_LIMIT.as_secs()))
            }
            Error::Timeout(_) => Kind::Stalled,
            Error::HostNotFound => Kind::Unreachable("unknown host name".into()),
            Error::ConnectionFailed => Kind::Unreachable("no connection".into()),
            Error::ConnectProxyFailed(reason) => Kind::Unreachable(reason),
            Error::Rustls(error) => Kind::tls(error.to_string()),
            Error::Tls(reason) => Kind::Tls(reason.into()),
            Error::Pem(error) => Kind::Tls(format!("{error:?}")),
            Error::Io(error) => HttpClientErrorKind::of_io(&error),
            Error::BadUri(_) | Error::Http(_) => Kind::BadAddress,
            other => Kind::Interrupted(other.to_string()),
        };
        Self { server, kind }
    }
}

impl HttpClientErrorKind {
    /// A certificate can be checked only by a clock that is right.
    fn tls(reason: String) -> Self {
        let now = SystemTime::now();
        let is_set = now.duration_since(UNIX_EPOCH).is_ok_and(|now| now.as_secs() >= EARLIEST_TIME);
        if is_set && !reason.contains("not valid yet") {
            return Self::Tls(reason);
        }
        Self::WrongClock(OffsetDateTime::from(now).date())
    }

    fn of_io(error: &io::Error) -> Self {
        let reason = error.to_string();
        match error.kind() {
            // The resolver's errors have no kind of their own.
            _ if reason.starts_with("failed to lookup address information") => Self::Unreachable(reason),
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::AddrNotAvailable
            | io::ErrorKind::NetworkDown => Self::Unreachable(reason),
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::Stalled,
            // rustls reports its own errors with this kind.
            io::ErrorKind::InvalidData => Self::tls(reason),
            _ => Self::Interrupted(reason),
        }
    }
}
