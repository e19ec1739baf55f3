//! Calls of a command to the running service.

use std::fmt;
use std::io::{self, Read};
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use zeroize::Zeroizing;

use super::command::Failure;
use super::connection::Connection;
use crate::configuration::{BindAddress, Configuration};
use crate::service_stream::Head;

/// A login takes this long at most: the service tries the Resource API three times, over a flaky uplink.
pub(super) const LOGIN_TIMEOUT: Duration = Duration::from_secs(300);

/// The service answers questions about its state from memory.
pub(super) const STATUS_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest response that is read. The service's own are shorter.
const MAX_RESPONSE: u64 = 4 << 20;

/// All handlers of the service may be busy. Then a request is repeated this many times, once a second.
const BUSY_TRIES: usize = 300;

pub(super) struct Response {
    pub(super) head: Head,
    pub(super) body: Vec<u8>,
}

/// Why the service did not do what it was asked.
pub(super) struct AskError {
    /// The status of its response, if there was one.
    pub(super) status: Option<u16>,
    pub(super) reason: String,
}

impl AskError {
    pub(super) fn unanswered(reason: impl Into<String>) -> Self {
        Self { status: None, reason: reason.into() }
    }
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        Self::Runtime(error.reason)
    }
}

pub(super) struct RunningService(Configuration);

impl RunningService {
    pub(super) fn from_environment() -> Result<Self, Failure> {
        Configuration::for_clients().map(Self).map_err(Failure::setup)
    }

    pub(super) fn address(&self) -> &BindAddress {
        self.0.service_address()
    }

    /// Makes a call and waits at most `timeout` for each byte of the response. With a `body`, which is JSON, it is a `POST`.
    pub(super) fn call(&self, path: &str, body: Option<&[u8]>, timeout: Duration) -> Result<Response, AskError> {
        let method = if body.is_some() { "POST" } else { "GET" };
        self.call_by(method, path, body, timeout)
    }

    fn call_by(&self, method: &str, path: &str, body: Option<&[u8]>, timeout: Duration) -> Result<Response, AskError> {
        let content = body.map(|body| format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
        let mut connection = self.begin(method, path, &content.unwrap_or_default(), timeout)?;
        let broken = |error| self.broken(&error, timeout);
        connection.write_all(body.unwrap_or_default()).map_err(broken)?;
        let head = connection.read_final_head().map_err(broken)?;
        self.read_response(connection, head, timeout)
    }

    /// Connects and sends a request up to the empty line. `headers` are lines with their CRLF.
    pub(super) fn begin(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        timeout: Duration,
    ) -> Result<Connection, AskError> {
        let mut connection = self.connect(timeout)?;
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}");
        let mut head = Zeroizing::new(head.into_bytes());
        let token = self.0.client_token.as_ref().map_or("", |token| token.expose());
        // A buffer that grew would leave copies of the token in memory.
        head.reserve_exact(token.len() + 32);
        if !token.is_empty() {
            for piece in ["Authorization: Bearer ", token, "\r\n"] {
                head.extend_from_slice(piece.as_bytes());
            }
        }
        head.extend_from_slice(b"\r\n");
        connection.write_all(&head).map_err(|error| self.broken(&error, timeout))?;
        Ok(connection)
    }

    /// Makes a call whose response is JSON with status 200: the body as it came, and its value.
    pub(super) fn ask(&self, path: &str, body: Option<&[u8]>, timeout: Duration) -> Result<(Vec<u8>, Value), AskError> {
        let response = self.call(path, body, timeout)?;
        self.judge(path, response)
    }

    /// As [`ask`](Self::ask), with `DELETE`.
    pub(super) fn delete(&self, path: &str, timeout: Duration) -> Result<(), AskError> {
        let response = self.call_by("DELETE", path, None, timeout)?;
        self.judge(path, response).map(drop)
    }

    fn connect(&self, timeout: Duration) -> Result<Connection, AskError> {
        let address = self.address();
        Connection::open(address, timeout).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::PermissionDenied => "run this as the service's user or group",
                _ if self.0.loader_url.is_some() => "is it running, at the address that LOADER_URL names?",
                _ => "is it running, with the same BIND_ADDR as here?",
            };
            AskError::unanswered(format!("no service can be reached at {address} ({error}): {hint}"))
        })
    }

    /// Reads the rest of a response that is small.
    pub(super) fn read_response(
        &self,
        connection: Connection,
        head: Head,
        timeout: Duration,
    ) -> Result<Response, AskError> {
        let mut body = Vec::new();
        let length = head.length().unwrap_or(0);
        if length > MAX_RESPONSE {
            return Err(AskError::unanswered(self.is_not_the_loader()));
        }
        connection.into_body(length).read_to_end(&mut body).map_err(|error| self.broken(&error, timeout))?;
        Ok(Response { head, body })
    }

    /// The body of a response with status 200 and JSON, and its value.
    pub(super) fn judge(&self, path: &str, response: Response) -> Result<(Vec<u8>, Value), AskError> {
        let Response { head, body } = response;
        let (status, address) = (head.status, self.address());
        let refuse = |reason| AskError { status: Some(status), reason };
        if status == 401 && head.header("WWW-Authenticate").is_some() {
            return Err(refuse(match self.0.client_token {
                Some(_) => format!("the service at {address} does not accept this CLIENT_TOKEN; set the service's"),
                None => format!("the service at {address} demands its bearer token; set CLIENT_TOKEN to it"),
            }));
        }
        match serde_json::from_slice::<Value>(&body).ok().filter(Value::is_object) {
            Some(json) if status == 200 => Ok((body, json)),
            // The loader has every path that a command asks for.
            Some(json) if !matches!(text(&json["detail"]), "" | "Not Found") => {
                Err(refuse(text(&json["detail"]).into()))
            }
            _ => {
                let path = path.split('?').next().unwrap_or_default();
                Err(refuse(format!("{} (it answered {status} to {path})", self.is_not_the_loader())))
            }
        }
    }

    fn is_not_the_loader(&self) -> String {
        format!("what answers at {} is not the loader", self.address())
    }

    pub(super) fn broken(&self, error: &io::Error, timeout: Duration) -> AskError {
        let address = self.address();
        AskError::unanswered(match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                format!("the service at {address} did not answer within {} s", timeout.as_secs())
            }
            io::ErrorKind::InvalidData => self.is_not_the_loader(),
            _ => format!("the connection to the service at {address} broke: {error}"),
        })
    }
}

/// Repeats a call as long as all handlers of the service are busy.
pub(super) fn until_free<T>(mut call: impl FnMut() -> Result<T, AskError>) -> Result<T, AskError> {
    let mut tries = 0;
    loop {
        match call() {
            Err(AskError { status: Some(503), .. }) if tries < BUSY_TRIES => tries += 1,
            result => return result,
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// A name as a segment of a path.
pub(super) fn segment(name: &str) -> String {
    utf8_percent_encode(name, NON_ALPHANUMERIC).to_string()
}

/// The text of a JSON value; empty if it is something else.
pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
