//! A client for the loader: ureq over TCP, the `raw` one over a Unix socket.

use std::io::{self, BufReader, Read, Write};
use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};

use super::raw::{self, Framing, Head, Reply, Stream};

/// The outcome of a download into a writer.
#[derive(Clone, Debug)]
pub struct Download {
    /// Status code.
    pub status: u16,
    /// `Content-Length`, if there was one.
    pub content_length: Option<u64>,
    /// Bytes of the body that arrived.
    pub received: u64,
    /// SHA-256 of these bytes.
    pub sha256: String,
    /// From the request to the first byte of the body.
    pub first_byte: Duration,
    /// From the request to the end.
    pub total: Duration,
    /// Why the body ended early, if it did.
    pub error: Option<String>,
}

/// Keeps the first 4 KiB of an answer, enough for an error's text, and discards the rest: a model need not fit into
/// memory.
#[derive(Default)]
pub struct Start(pub Vec<u8>);

impl Write for Start {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = 4096_usize.saturating_sub(self.0.len()).min(bytes.len());
        self.0.extend_from_slice(&bytes[..room]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An HTTP client that returns every status as an answer, and uses neither redirects nor proxies.
pub fn agent(timeout: Duration) -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        .timeout_global(Some(timeout))
        .build()
        .new_agent()
}

/// Sends one request to `host:port` or `unix:/path`. An error is a failure below HTTP, or a body that ends early.
pub fn call(
    address: &str,
    timeout: Duration,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Reply, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{method} {path}: {error}");
    if address.starts_with("unix:") {
        let stream = connect(address, timeout)?;
        return raw::request(stream, method, path, headers, body).map_err(|error| failed(&error));
    }
    let response = send(address, timeout, method, path, headers, body).map_err(|error| failed(&error))?;
    let (parts, body) = response.into_parts();
    let headers = parts.headers.iter();
    let headers = headers
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    let body = body.into_with_config().limit(u64::MAX).read_to_vec().map_err(|error| failed(&error))?;
    Ok(Reply { status: parts.status.as_u16(), headers, body })
}

/// Sends a `POST` with a JSON body, and writes the answer's body to a writer.
pub fn download(
    address: &str,
    timeout: Duration,
    path: &str,
    json: &[u8],
    to: &mut dyn Write,
) -> Result<Download, String> {
    let failed = |error: &dyn std::fmt::Display| format!("POST {path}: {error}");
    let start = Instant::now();
    let headers = [("Content-Type", "application/json")];
    if address.starts_with("unix:") {
        let mut stream = connect(address, timeout)?;
        let mut head = Head { start: format!("POST {path} HTTP/1.1"), headers: Vec::new() };
        head.set("Host", "localhost");
        head.set("Content-Type", "application/json");
        head.set("Content-Length", json.len());
        stream.write_all(&[head.to_bytes(), json.to_vec()].concat()).map_err(|error| failed(&error))?;
        let mut reader = BufReader::new(stream);
        let head = Head::read(&mut reader).map_err(|error| failed(&error))?.ok_or("closed without an answer")?;
        let status = head.status().map_err(|error| failed(&error))?;
        return match head.framing().map_err(|error| failed(&error))? {
            Framing::Length(length) => Ok(drain(start, status, Some(length), reader.take(length), to)),
            framing => {
                let body = raw::read_body(&mut reader, framing).map_err(|error| failed(&error))?;
                Ok(drain(start, status, None, &body[..], to))
            }
        };
    }
    let response = send(address, timeout, "POST", path, &headers, json).map_err(|error| failed(&error))?;
    let length = response.headers().get("Content-Length").and_then(|value| value.to_str().ok()?.parse().ok());
    let status = response.status().as_u16();
    let reader = response.into_body().into_with_config().limit(u64::MAX).reader();
    Ok(drain(start, status, length, reader, to))
}

/// A percent-encoded path segment.
pub fn segment(name: &str) -> String {
    const KEPT: &percent_encoding::AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    utf8_percent_encode(name, KEPT).to_string()
}

fn connect(address: &str, timeout: Duration) -> Result<Stream, String> {
    let stream = Stream::connect(address).map_err(|error| format!("{address}: {error}"))?;
    stream.set_timeout(timeout).map_err(|error| error.to_string())?;
    Ok(stream)
}

fn send(
    address: &str,
    timeout: Duration,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<http::Response<ureq::Body>, ureq::Error> {
    let mut request = http::Request::builder().method(method).uri(format!("http://{address}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    // One connection per call: a pooled one would hide a server that closes too early.
    let agent = agent(timeout);
    if body.is_empty() && !matches!(method, "POST" | "PUT") {
        agent.run(request.body(())?)
    } else {
        agent.run(request.body(body)?)
    }
}

/// Reads a body to its end, hashing and timing it.
fn drain(
    start: Instant,
    status: u16,
    content_length: Option<u64>,
    mut from: impl Read,
    to: &mut dyn Write,
) -> Download {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let (mut received, mut first_byte, mut error) = (0, None, None);
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                first_byte.get_or_insert_with(|| start.elapsed());
                hash.update(&buffer[..count]);
                received += count as u64;
                if let Err(cause) = to.write_all(&buffer[..count]) {
                    error = Some(format!("the test's writer failed: {cause}"));
                    break;
                }
            }
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => {
                error = Some(cause.to_string());
                break;
            }
        }
    }
    if error.is_none() && content_length.is_some_and(|length| length != received) {
        error = Some(format!("{received} of {} bytes", content_length.unwrap_or_default()));
    }
    let total = start.elapsed();
    let sha256 = super::hex(&hash.finalize());
    Download { status, content_length, received, sha256, first_byte: first_byte.unwrap_or(total), total, error }
}
