//! Calls of a command to the running service, over TCP or its Unix socket.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::Value;
use zeroize::Zeroizing;

use super::Failure;
use crate::configuration::{BindAddress, Configuration};
use crate::http::reachable;

/// A login takes this long at most: the service tries the Resource API three times, over a flaky uplink.
pub(super) const LOGIN_TIMEOUT: Duration = Duration::from_secs(300);

/// The service answers questions about its state from memory.
pub(super) const STATUS_TIMEOUT: Duration = Duration::from_secs(10);

/// A service on this machine that accepts no connection within this time is not going to.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The longest response that is read. The service's own are shorter.
const MAX_RESPONSE: u64 = 4 << 20;

pub(super) struct Response {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
    /// Whether the service demands its bearer token.
    wants_token: bool,
}

/// Why the service did not do what it was asked.
pub(super) struct AskError {
    /// The status of its response, if there was one.
    pub(super) status: Option<u16>,
    reason: String,
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
        &self.0.bind_address
    }

    /// Makes a call and waits at most `timeout` for each byte of the response. With a `body`, which is JSON, it is a `POST`.
    pub(super) fn call(&self, path: &str, body: Option<&[u8]>, timeout: Duration) -> Result<Response, String> {
        let address = self.address();
        let unreachable = |error: io::Error| {
            let hint = match error.kind() {
                io::ErrorKind::PermissionDenied => "run this as the service's user or group",
                _ => "is it running, with the same BIND_ADDR as here?",
            };
            format!("no service can be reached at {address} ({error}): {hint}")
        };
        let response = match address {
            BindAddress::Tcp(tcp) => {
                let stream = TcpStream::connect_timeout(&reachable(*tcp), CONNECT_TIMEOUT).map_err(unreachable)?;
                stream.set_read_timeout(Some(timeout)).and_then(|()| self.exchange(stream, path, body))
            }
            BindAddress::Unix(socket) => {
                let stream = UnixStream::connect(socket).map_err(unreachable)?;
                stream.set_read_timeout(Some(timeout)).and_then(|()| self.exchange(stream, path, body))
            }
        };
        let response = response.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                format!("the service at {address} did not answer within {} s", timeout.as_secs())
            }
            _ => format!("the connection to the service at {address} broke: {error}"),
        })?;
        parse(&response).ok_or_else(|| format!("what answers at {address} is not the loader"))
    }

    /// Makes a call whose response is JSON with status 200: the body as it came, and its value.
    pub(super) fn ask(&self, path: &str, body: Option<&[u8]>, timeout: Duration) -> Result<(Vec<u8>, Value), AskError> {
        let response = self.call(path, body, timeout).map_err(|reason| AskError { status: None, reason })?;
        let (status, address) = (response.status, self.address());
        let refuse = |reason| AskError { status: Some(status), reason };
        if response.wants_token {
            return Err(refuse(match self.0.client_token {
                Some(_) => format!("the service at {address} does not accept this CLIENT_TOKEN; set the service's"),
                None => format!("the service at {address} demands its bearer token; set CLIENT_TOKEN to it"),
            }));
        }
        match serde_json::from_slice::<Value>(&response.body).ok().filter(Value::is_object) {
            Some(json) if status == 200 => Ok((response.body, json)),
            // The loader has every path that a command asks for.
            Some(json) if !matches!(text(&json["detail"]), "" | "Not Found") => {
                Err(refuse(text(&json["detail"]).into()))
            }
            _ => Err(refuse(format!("what answers at {address} is not the loader (it answered {status} to {path})"))),
        }
    }

    fn exchange(&self, mut stream: impl Read + Write, path: &str, body: Option<&[u8]>) -> io::Result<Vec<u8>> {
        let method = if body.is_some() { "POST" } else { "GET" };
        let mut request =
            Zeroizing::new(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"));
        if let Some(token) = &self.0.client_token {
            request.push_str(&Zeroizing::new(format!("Authorization: Bearer {}\r\n", token.expose())));
        }
        if let Some(body) = body {
            request.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes())?;
        stream.write_all(body.unwrap_or_default())?;
        let mut response = Vec::new();
        stream.take(MAX_RESPONSE).read_to_end(&mut response)?;
        Ok(response)
    }
}

/// The text of a JSON value; empty if it is something else.
pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Parses all bytes of a connection as one response, since the connection closes after it. None if it is not whole.
fn parse(response: &[u8]) -> Option<Response> {
    let end = memchr::memmem::find(response, b"\r\n\r\n")?;
    let head = std::str::from_utf8(&response[..end]).ok()?;
    let body = response[end + 4..].to_vec();
    let mut lines = head.lines();
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let header = |name: &str| {
        let found =
            lines.clone().filter_map(|line| line.split_once(':')).find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim())
    };
    let is_whole = header("Content-Length").is_none_or(|length| length.parse() == Ok(body.len()));
    let wants_token = status == 401 && header("WWW-Authenticate").is_some();
    is_whole.then_some(Response { status, body, wants_token })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn only_a_whole_response_is_accepted() {
        let response =
            parse(b"HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Bearer\r\nContent-Length: 2\r\n\r\n{}").unwrap();
        assert!(response.status == 401 && response.body == b"{}" && response.wants_token);
        for bad in
            ["", "hello", "SSH-2.0-x\r\n\r\n", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}"]
        {
            assert!(parse(bad.as_bytes()).is_none(), "{bad:?}");
        }
    }
}
