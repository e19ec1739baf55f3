//! A connection to the running service, over TCP or its Unix socket, and the responses that arrive on it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::configuration::BindAddress;
use crate::service_stream::ServiceStream;

/// The longest response head that is read. The service's own are shorter.
const MAX_HEAD: u64 = 64 << 10;

/// The most header fields in a response.
const MAX_FIELDS: usize = 64;

pub(super) struct Connection(BufReader<ServiceStream>);

impl Connection {
    /// Connects; later each read and each write may take as long as `timeout`.
    pub(super) fn open(address: &BindAddress, timeout: Duration) -> io::Result<Self> {
        let stream = ServiceStream::connect(address)?;
        stream.set_timeout(timeout)?;
        Ok(Self(BufReader::with_capacity(64 << 10, stream)))
    }

    pub(super) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.get_mut().write_all(bytes)
    }

    /// Whether bytes, or the end of the connection, have arrived by then.
    pub(super) fn has_response_within(&self, limit: Duration) -> bool {
        let limit = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() };
        let mut socket = [PollFd::new(self.0.get_ref(), PollFlags::IN)];
        !self.0.buffer().is_empty() || poll(&mut socket, Some(&limit)).is_ok_and(|count| count > 0)
    }

    pub(super) fn read_head(&mut self) -> io::Result<Head> {
        Head::read(&mut self.0)
    }

    /// The head of the final response: 1xx responses are skipped.
    pub(super) fn read_final_head(&mut self) -> io::Result<Head> {
        loop {
            let head = self.read_head()?;
            if !(100..200).contains(&head.status) {
                return Ok(head);
            }
        }
    }

    pub(super) fn into_body(self, length: u64) -> Body {
        Body { reader: self.0, left: length }
    }
}

/// Status and headers of a response.
pub(super) struct Head {
    pub(super) status: u16,
    headers: Vec<(String, String)>,
}

impl Head {
    /// What is not HTTP/1.1 is an error of the kind [`io::ErrorKind::InvalidData`].
    fn read(reader: &mut impl BufRead) -> io::Result<Self> {
        let mut bytes = Vec::new();
        let mut reader = reader.take(MAX_HEAD);
        while !bytes.ends_with(b"\r\n\r\n") {
            if reader.read_until(b'\n', &mut bytes)? == 0 {
                let kind = if bytes.is_empty() { io::ErrorKind::UnexpectedEof } else { io::ErrorKind::InvalidData };
                return Err(io::Error::new(kind, "it was closed before a response"));
            }
        }
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        let malformed = |_| io::Error::from(io::ErrorKind::InvalidData);
        response.parse(&bytes).map_err(malformed)?;
        let status = response.code.ok_or(io::ErrorKind::InvalidData)?;
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let headers = response.headers.iter().map(|field| (field.name.to_owned(), text(field.value))).collect();
        Ok(Self { status, headers })
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim())
    }

    pub(super) fn length(&self) -> Option<u64> {
        self.header("Content-Length")?.parse().ok()
    }
}

/// The body of a response. One that ends early is an error.
pub(super) struct Body {
    reader: BufReader<ServiceStream>,
    left: u64,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.reader.read(&mut buffer[..wanted])?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it was closed before the end of the response"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_http_is_a_response() {
        let mut response = &b"HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Bearer\r\nContent-Length: 2\r\n\r\n{}"[..];
        let head = Head::read(&mut response).unwrap();
        assert_eq!((head.status, head.length(), head.header("WWW-Authenticate")), (401, Some(2), Some("Bearer")));
        assert_eq!(response, b"{}");
        for bad in ["hello", "SSH-2.0-x\r\n\r\n", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nno colon\r\n\r\n"] {
            assert_eq!(Head::read(&mut bad.as_bytes()).err().unwrap().kind(), io::ErrorKind::InvalidData, "{bad:?}");
        }
        assert_eq!(Head::read(&mut &b""[..]).err().unwrap().kind(), io::ErrorKind::UnexpectedEof);
    }
}
