//! A connection to the service, each of whose steps has to end by a deadline.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::time::Instant;

use crate::configuration::BindAddress;
use crate::service_stream::ServiceStream;

/// The longest response head. The service's own are shorter.
const MAX_HEAD: usize = 16 << 10;

/// The buffer of a connection; reads of a body past it go straight to where the bytes are wanted.
const BUFFER: usize = 32 << 10;

/// A connection to the service.
pub(super) struct Connection(BufReader<ServiceStream>);

impl Connection {
    pub(super) fn open(address: &BindAddress) -> io::Result<Self> {
        ServiceStream::connect(address).map(|stream| Self(BufReader::with_capacity(BUFFER, stream)))
    }

    /// The next read and write fail when `deadline` has come.
    fn until(&self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.0.get_ref().set_timeout(left)
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
