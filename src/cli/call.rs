//! One HTTP call of a command to the running service, over TCP or its Unix socket.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::Value;
use zeroize::Zeroizing;

use crate::configuration::{BindAddress, Configuration};
use crate::http::reachable;

/// A service on this machine that takes no connection within this time takes none.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// The service answers these calls with little; more is somebody else's.
const MAX_ANSWER: u64 = 1 << 20;

/// An answer's status and body.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
    /// Whether the service asks for its client token.
    wants_token: bool,
}

/// The running service, as the environment names it.
pub(super) struct RunningService(pub(super) Configuration);

impl RunningService {
    /// Where it listens.
    pub(super) fn address(&self) -> &BindAddress {
        &self.0.bind_address
    }

    /// Makes a call and waits at most `patience` for each byte of the answer. A `body` is JSON, and makes it a `POST`.
    pub(super) fn call(&self, path: &str, body: Option<&[u8]>, patience: Duration) -> Result<Answer, String> {
        let address = self.address();
        let unreachable = |error: io::Error| {
            let hint = match error.kind() {
                io::ErrorKind::PermissionDenied => "run this as the service's user or group",
                _ => "is it running, with the same BIND_ADDR as here?",
            };
            format!("no service can be reached at {address} ({error}): {hint}")
        };
        let answer = match address {
            BindAddress::Tcp(tcp) => {
                let stream = TcpStream::connect_timeout(&reachable(*tcp), CONNECT_LIMIT).map_err(unreachable)?;
                stream.set_read_timeout(Some(patience)).and_then(|()| self.exchange(stream, path, body))
            }
            BindAddress::Unix(socket) => {
                let stream = UnixStream::connect(socket).map_err(unreachable)?;
                stream.set_read_timeout(Some(patience)).and_then(|()| self.exchange(stream, path, body))
            }
        };
        answer
            .map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                    format!("the service at {address} did not answer within {} s", patience.as_secs())
                }
                _ => format!("the connection to the service at {address} broke: {error}"),
            })
            .and_then(|answer| parse(&answer).ok_or_else(|| format!("what answers at {address} is not the loader")))
    }

    /// The same for an answer of 200 in JSON; anything else is a sentence for the person who asked.
    pub(super) fn ask(&self, path: &str, body: Option<&[u8]>, patience: Duration) -> Result<(Answer, Value), String> {
        let answer = self.call(path, body, patience)?;
        let address = self.address();
        let json: Option<Value> = serde_json::from_slice(&answer.body).ok().filter(Value::is_object);
        if answer.wants_token {
            return Err(match self.0.client_token {
                Some(_) => format!("the service at {address} does not accept this CLIENT_TOKEN; set the service's"),
                None => format!("the service at {address} wants its client token; set CLIENT_TOKEN to it"),
            });
        }
        if let Some(json) = json {
            match text(&json["detail"]) {
                _ if answer.status == 200 => return Ok((answer, json)),
                // No path of ours is unknown to the loader.
                "" | "Not Found" => {}
                detail => return Err(detail.to_owned()),
            }
        }
        Err(format!("what answers at {address} is not the loader (it said {} to {path})", answer.status))
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
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
        Ok(answer)
    }
}

/// The text of a JSON value; empty for all else.
pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The connection closes behind the answer, so all that came is the answer. None if it is no whole one.
fn parse(answer: &[u8]) -> Option<Answer> {
    let end = memchr::memmem::find(answer, b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let body = answer[end + 4..].to_vec();
    let mut lines = head.lines();
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let header = |name: &str| {
        let found =
            lines.clone().filter_map(|line| line.split_once(':')).find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim())
    };
    let is_whole = header("Content-Length").is_none_or(|length| length.parse() == Ok(body.len()));
    let wants_token = status == 401 && header("WWW-Authenticate").is_some();
    is_whole.then_some(Answer { status, body, wants_token })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn only_a_whole_answer_is_one() {
        let answer =
            parse(b"HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Bearer\r\nContent-Length: 2\r\n\r\n{}").unwrap();
        assert!(answer.status == 401 && answer.body == b"{}" && answer.wants_token);
        for bad in
            ["", "hello", "SSH-2.0-x\r\n\r\n", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}"]
        {
            assert!(parse(bad.as_bytes()).is_none(), "{bad:?}");
        }
    }
}
