//! A stream to the running service and the heads of its responses, for the commands and the mount.

use std::io::{self, BufRead, Read};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::configuration::BindAddress;
use crate::http::reachable;

/// A service on this machine that accepts no connection within this time is not going to.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The longest response head that is read. The service's own are shorter.
const MAX_HEAD: u64 = 64 << 10;

/// The most header fields in a response.
const MAX_FIELDS: usize = 64;

/// Connects to the service. The library's Unix stream reads and writes a TCP socket as well.
pub fn connect(address: &BindAddress) -> io::Result<UnixStream> {
    match address {
        BindAddress::Tcp(address) => {
            let stream = TcpStream::connect_timeout(&reachable(*address), CONNECT_TIMEOUT)?;
            stream.set_nodelay(true)?;
            Ok(OwnedFd::from(stream).into())
        }
        BindAddress::Unix(path) => UnixStream::connect(path),
    }
}

/// From now on each read and each write may take this long.
pub fn set_timeout(stream: &UnixStream, timeout: Duration) -> io::Result<()> {
    stream.set_read_timeout(Some(timeout)).and_then(|()| stream.set_write_timeout(Some(timeout)))
}

/// Status and headers of a response.
pub struct Head {
    pub status: u16,
    headers: Vec<(String, String)>,
}

impl Head {
    /// What is not HTTP/1.1 is an error of the kind [`io::ErrorKind::InvalidData`].
    pub fn read(reader: &mut impl BufRead) -> io::Result<Self> {
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

    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim())
    }

    pub fn length(&self) -> Option<u64> {
        self.header("Content-Length")?.parse().ok()
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
