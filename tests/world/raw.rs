//! HTTP/1.1 on the wire, for both ends: the reference servers read requests with it, and tests send requests that no
//! well-behaved client sends, over TCP or a Unix socket.
//!
//! It is strict where strictness finds bugs: a body that ends early, a chunk without its end or a head that is not HTTP
//! is an error, never a shorter answer.

use std::fmt;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

/// No head in a test comes near this; a server that sends more is broken.
const MAX_HEAD: usize = 64 * 1024;
/// How long a peer may be silent before a test fails instead of hanging. The loader takes up to a minute to notice that a
/// connection to the CDN has stalled, and then tries again.
const SILENCE: Duration = Duration::from_secs(180);

/// A start line and its headers.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// Request line or status line.
    pub start: String,
    /// Names as sent, in order.
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// Reads a head, or `None` if the peer closed before its first byte.
    pub fn read(reader: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut left = MAX_HEAD;
        let Some(start) = read_line(reader, &mut left)? else { return Ok(None) };
        let mut head = Self { start, headers: Vec::new() };
        loop {
            let line = read_line(reader, &mut left)?.ok_or(ErrorKind::UnexpectedEof)?;
            if line.is_empty() {
                return Ok(Some(head));
            }
            let (name, value) = line.split_once(':').ok_or_else(|| invalid(format!("header line {line:?}")))?;
            if name.is_empty() || name.contains(char::is_whitespace) {
                return Err(invalid(format!("header name {name:?}")));
            }
            head.headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// The first value of a header.
    pub fn get(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// Removes a header wherever it occurs.
    pub fn remove(&mut self, name: &str) {
        self.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
    }

    /// Replaces a header.
    pub fn set(&mut self, name: &str, value: impl fmt::Display) {
        self.remove(name);
        self.headers.push((name.to_owned(), value.to_string()));
    }

    /// The head's bytes on the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = format!("{}\r\n", self.start);
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        text.into_bytes()
    }

    /// Method and target of a request line.
    pub fn request_line(&self) -> io::Result<(&str, &str)> {
        match self.start.split(' ').collect::<Vec<_>>()[..] {
            [method, target, "HTTP/1.1"] if target.starts_with('/') => Ok((method, target)),
            _ => Err(invalid(format!("request line {:?}", self.start))),
        }
    }

    /// Status code of a status line.
    pub fn status(&self) -> io::Result<u16> {
        let code = self.start.strip_prefix("HTTP/1.1 ").or_else(|| self.start.strip_prefix("HTTP/1.0 "));
        let code = code.and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok());
        code.ok_or_else(|| invalid(format!("status line {:?}", self.start)))
    }

    /// Whether the connection ends after this message.
    pub fn closes(&self) -> bool {
        self.get("Connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    /// How the body ends, according to the headers.
    pub fn framing(&self) -> io::Result<Framing> {
        match (self.get("Transfer-Encoding"), self.get("Content-Length")) {
            (Some(coding), None) if coding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunked),
            (None, Some(length)) => {
                length.parse().map(Framing::Length).map_err(|_| invalid(format!("Content-Length {length:?}")))
            }
            (None, None) => Ok(Framing::None),
            (coding, length) => Err(invalid(format!("framing {coding:?} with length {length:?}"))),
        }
    }
}

/// How a message's body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After so many bytes.
    Length(u64),
    /// With a last chunk.
    Chunked,
    /// No header says how: a request has no body, a response ends with the connection.
    None,
}

/// Reads a whole body; `None` framing is an empty one.
pub fn read_body(reader: &mut impl BufRead, framing: Framing) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    match framing {
        Framing::None => {}
        Framing::Length(length) => {
            let got = reader.take(length).read_to_end(&mut body)?;
            if got as u64 != length {
                return Err(io::Error::new(ErrorKind::UnexpectedEof, format!("{got} of {length} bytes of the body")));
            }
        }
        Framing::Chunked => loop {
            let mut left = MAX_HEAD;
            let line = read_line(reader, &mut left)?.ok_or(ErrorKind::UnexpectedEof)?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16).map_err(|_| invalid(format!("chunk size {line:?}")))?;
            if size == 0 {
                while !read_line(reader, &mut left)?.ok_or(ErrorKind::UnexpectedEof)?.is_empty() {}
                return Ok(body);
            }
            body.extend(read_body(reader, Framing::Length(size))?);
            if read_line(reader, &mut left)?.as_deref() != Some("") {
                return Err(invalid("a chunk without its line end".to_owned()));
            }
        },
    }
    Ok(body)
}

/// An answer that arrived whole.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Headers in order.
    pub headers: Vec<(String, String)>,
    /// Body, without its chunking.
    pub body: Vec<u8>,
}

impl Reply {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; panics with the body if it is not JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!("status {} with a body that is not JSON ({error}): {}", self.status, self.text())
        })
    }

    /// `detail` of an error body, or an empty string.
    pub fn detail(&self) -> String {
        let json: Option<serde_json::Value> = serde_json::from_slice(&self.body).ok();
        json.and_then(|json| Some(json.get("detail")?.as_str()?.to_owned())).unwrap_or_default()
    }
}

/// A connection to a program under test.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// Unix socket.
    Unix(UnixStream),
}

impl Stream {
    /// Connects to `host:port` or `unix:/path`, as `BIND_ADDR` writes them.
    pub fn connect(address: &str) -> io::Result<Self> {
        let stream = match address.strip_prefix("unix:") {
            Some(path) => Self::Unix(UnixStream::connect(path)?),
            None => Self::Tcp(TcpStream::connect(address)?),
        };
        stream.set_timeout(SILENCE)?;
        Ok(stream)
    }

    /// Limits how long one read or write may take.
    pub fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))
            }
            Self::Unix(stream) => {
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))
            }
        }
    }

    /// Shuts down one or both directions.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(how),
            Self::Unix(stream) => stream.shutdown(how),
        }
    }

    /// A second handle on the same connection.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
        })
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buf),
            Self::Unix(stream) => stream.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buf),
            Self::Unix(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends any bytes, and returns what came back until the end, an error or a timeout.
pub fn exchange(mut stream: impl Read + Write, request: &[u8]) -> Vec<u8> {
    // A server may answer and close before it has read everything: its answer still counts.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

/// Sends one request with a body in memory; `Host`, `Connection: close` and, if there is a body, `Content-Length` are
/// added.
pub fn request(stream: Stream, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Reply> {
    request_from(stream, method, target, headers, body.len() as u64, body)
}

/// As [`request`], with a body of `length` bytes from a reader.
///
/// The body is sent from a thread of its own, so that an answer before its end (413, 503) is seen.
pub fn request_from(
    stream: Stream,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    length: u64,
    body: impl Read + Send,
) -> io::Result<Reply> {
    let mut head = Head { start: format!("{method} {target} HTTP/1.1"), headers: Vec::new() };
    head.set("Host", "localhost");
    head.set("Connection", "close");
    if length > 0 || method == "POST" || method == "PUT" {
        head.set("Content-Length", length);
    }
    for (name, value) in headers {
        head.set(name, value);
    }
    let mut sender = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    thread::scope(|scope| {
        let sent = scope.spawn(move || {
            sender.write_all(&head.to_bytes())?;
            copy(body, &mut sender)
        });
        let reply = read_reply(&mut reader, method);
        // If the server did not want the rest, the sender must not wait for it any longer.
        let _ = reader.get_ref().shutdown(Shutdown::Both);
        let sent = sent.join().expect("the sender does not panic");
        match (reply, sent) {
            (Err(error), Err(cause)) if error.kind() != ErrorKind::InvalidData => Err(cause),
            (reply, _) => reply,
        }
    })
}

/// Reads one answer to a request of the given method; interim answers (100) are skipped.
pub fn read_reply(reader: &mut impl BufRead, method: &str) -> io::Result<Reply> {
    loop {
        let head =
            Head::read(reader)?.ok_or_else(|| io::Error::new(ErrorKind::UnexpectedEof, "closed without an answer"))?;
        let status = head.status()?;
        if status / 100 == 1 {
            continue;
        }
        let bodiless = method == "HEAD" || status == 204 || status == 304;
        let body = match head.framing()? {
            _ if bodiless => Vec::new(),
            Framing::None => {
                let mut rest = Vec::new();
                reader.read_to_end(&mut rest)?;
                rest
            }
            framing => read_body(reader, framing)?,
        };
        return Ok(Reply { status, headers: head.headers, body });
    }
}

/// `io::copy` with a buffer that keeps a debug build from spending its time in system calls.
fn copy(mut from: impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            count => to.write_all(&buffer[..count])?,
        }
    }
}

/// A line without its CRLF, or `None` at the end of the stream.
fn read_line(reader: &mut impl BufRead, left: &mut usize) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    let count = reader.take(*left as u64).read_until(b'\n', &mut line)?;
    *left -= count;
    if count == 0 {
        return if *left == 0 { Err(invalid("a head without end".to_owned())) } else { Ok(None) };
    }
    if !line.ends_with(b"\r\n") {
        let kind = if line.ends_with(b"\n") { ErrorKind::InvalidData } else { ErrorKind::UnexpectedEof };
        return Err(io::Error::new(kind, "a line without CRLF"));
    }
    line.truncate(line.len() - 2);
    String::from_utf8(line).map(Some).map_err(|_| invalid("a line that is not UTF-8".to_owned()))
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

fn invalid(what: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}
