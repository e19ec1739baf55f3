//! A connection to the service, each of whose steps has to end by a deadline.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::configuration::BindAddress;
use crate::http::reachable;

/// A service on this machine that accepts no connection within this time is not going to.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The longest response head. The service's own are shorter.
const MAX_HEAD: usize = 16 << 10;

/// The buffer of a connection; reads of a body past it go straight to where the bytes are wanted.
const BUFFER: usize = 32 << 10;

/// A connection to the service.
pub(super) struct Connection(BufReader<Stream>);

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Connection {
    pub(super) fn open(address: &BindAddress) -> io::Result<Self> {
        let stream = match address {
            BindAddress::Tcp(address) => {
                let stream = TcpStream::connect_timeout(&reachable(*address), CONNECT_TIMEOUT)?;
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
            BindAddress::Unix(path) => Stream::Unix(UnixStream::connect(path)?),
        };
        Ok(Self(BufReader::with_capacity(BUFFER, stream)))
    }

    /// The next read and write fail when `deadline` has come.
    fn until(&self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match self.0.get_ref() {
            Stream::Tcp(stream) => {
                stream.set_read_timeout(Some(left)).and_then(|()| stream.set_write_timeout(Some(left)))
            }
            Stream::Unix(stream) => {
                stream.set_read_timeout(Some(left)).and_then(|()| stream.set_write_timeout(Some(left)))
            }
        }
    }

    pub(super) fn write_all(&mut self, bytes: &[u8], deadline: Instant) -> io::Result<()> {
        self.until(deadline)?;
        self.0.get_mut().write_all(bytes)
    }

    pub(super) fn read(&mut self, out: &mut [u8], deadline: Instant) -> io::Result<usize> {
        self.until(deadline)?;
        self.0.read(out)
    }

    /// Reads up to and with the empty line.
    pub(super) fn read_head(&mut self, deadline: Instant) -> io::Result<Vec<u8>> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            self.until(deadline)?;
            let line = (&mut self.0).take((MAX_HEAD - head.len().min(MAX_HEAD)) as u64).read_until(b'\n', &mut head)?;
            if line == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(head)
    }
}

impl Read for Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(out),
            Self::Unix(stream) => stream.read(out),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
