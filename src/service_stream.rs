//! A stream to the running service, for the commands and the mount.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::configuration::BindAddress;
use crate::http::reachable;

/// A service on this machine that accepts no connection within this time is not going to.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

pub enum ServiceStream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl ServiceStream {
    pub fn connect(address: &BindAddress) -> io::Result<Self> {
        match address {
            BindAddress::Tcp(address) => {
                let stream = TcpStream::connect_timeout(&reachable(*address), CONNECT_TIMEOUT)?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
            BindAddress::Unix(path) => UnixStream::connect(path).map(Self::Unix),
        }
    }

    /// From now on each read and each write may take this long.
    pub fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                stream.set_read_timeout(Some(timeout)).and_then(|()| stream.set_write_timeout(Some(timeout)))
            }
            Self::Unix(stream) => {
                stream.set_read_timeout(Some(timeout)).and_then(|()| stream.set_write_timeout(Some(timeout)))
            }
        }
    }
}

impl Read for ServiceStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for ServiceStream {
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

impl AsFd for ServiceStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}
