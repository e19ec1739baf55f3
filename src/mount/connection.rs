//! A connection to the service, each of whose steps has to end by a deadline.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use crate::configuration::BindAddress;
use crate::service_stream::{self, Head};

/// The buffer of a connection; reads of a body past it go straight to where the bytes are wanted.
const BUFFER: usize = 32 << 10;

/// A connection to the service.
pub(super) struct Connection(BufReader<UnixStream>);

impl Connection {
    pub(super) fn open(address: &BindAddress) -> io::Result<Self> {
        service_stream::connect(address).map(|stream| Self(BufReader::with_capacity(BUFFER, stream)))
    }

    /// The next read and write fail when `deadline` has come.
    fn until(&self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        service_stream::set_timeout(self.0.get_ref(), left)
    }

    pub(super) fn write_all(&mut self, bytes: &[u8], deadline: Instant) -> io::Result<()> {
        self.until(deadline)?;
        self.0.get_mut().write_all(bytes)
    }

    pub(super) fn read(&mut self, out: &mut [u8], deadline: Instant) -> io::Result<usize> {
        self.until(deadline)?;
        self.0.read(out)
    }

    pub(super) fn read_head(&mut self, deadline: Instant) -> io::Result<Head> {
        self.until(deadline)?;
        Head::read(&mut self.0)
    }
}
