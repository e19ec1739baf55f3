//! Why a server could not be asked: what the log and a client are told, and whether the call is worth repeating.

use std::fmt;
use std::io;
use std::time::Duration;

use http::StatusCode;
use ureq::Timeout;

use super::agent::CONNECT_LIMIT;
use crate::constants::STALL_LIMIT;

/// Why a server could not be asked, or gave no usable answer.
#[derive(Debug)]
pub enum HttpClientError {
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
    /// The server sends its clients elsewhere. A request carries a token or a signature, which are for this server only.
    Redirected {
        /// Scheme, host and port.
        server: String,
        /// The status.
        status: StatusCode,
        /// Scheme, host and port, and the path of the place, without the query, which may hold a signature.
        target: String,
    },
    /// The request could not be made; the address is unusable.
    Unusable {
        /// What is wrong.
        reason: String,
    },
}

impl fmt::Display for HttpClientError {
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
            Self::Redirected { server, status, target } => write!(
                f,
                "{server} answered {status}, a redirect to {target}, which is not followed with this server's keys; \
                 if that is the right address, configure it instead"
            ),
            Self::Unusable { reason } => f.write_str(reason),
        }
    }
}

impl std::error::Error for HttpClientError {}

impl HttpClientError {
    /// Whether the same call may succeed a moment later.
    pub fn may_pass(&self) -> bool {
        !matches!(self, Self::Tls { .. } | Self::Redirected { .. } | Self::Unusable { .. })
    }

    /// Whether the same call may succeed a moment later and, if so, how long the server asked to wait.
    pub fn patience(&self) -> Option<Option<Duration>> {
        self.may_pass().then(|| self.retry_after())
    }

    /// Whether nothing answers at the server's address, or nothing that is able to: no connection, silence, or 5xx.
    pub fn is_away(&self) -> bool {
        match self {
            // Behind a hotel's login page every certificate is wrong.
            Self::Unreachable { .. } | Self::Tls { .. } | Self::Stalled { .. } | Self::Interrupted { .. } => true,
            Self::Unavailable { status, .. } => status.is_server_error(),
            Self::Redirected { .. } | Self::Unusable { .. } => false,
        }
    }

    /// How long the server asked to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    pub(super) fn new(server: String, error: ureq::Error) -> Self {
        use ureq::Error;
        let tls = |reason: String| Self::Tls { server: server.clone(), reason };
        match error {
            Error::Timeout(Timeout::Connect | Timeout::Resolve) => {
                Self::Unreachable { server, reason: format!("no connection within {} s", CONNECT_LIMIT.as_secs()) }
            }
            Error::Timeout(_) => Self::Stalled { server },
            Error::HostNotFound => Self::Unreachable { server, reason: "the host name is not known".into() },
            Error::ConnectionFailed => Self::Unreachable { server, reason: "no connection".into() },
            Error::ConnectProxyFailed(reason) => Self::Unreachable { server, reason },
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
            // The resolver's errors have no kind of their own.
            _ if reason.starts_with("failed to lookup address information") => Self::Unreachable { server, reason },
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
