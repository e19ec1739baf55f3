//! A connection to the running service, over TCP or its Unix socket, and the responses that arrive on it.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::configuration::BindAddress;
use crate::service_stream::{self, Head};

pub(super) struct Connection(BufReader<UnixStream>);

impl Connection {
    /// Connects; later each read and each write may take as long as `timeout`.
    pub(super) fn open(address: &BindAddress, timeout: Duration) -> io::Result<Self> {
        let stream = service_stream::connect(address)?;
        service_stream::set_timeout(&stream, timeout)?;
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

/// The body of a response. One that ends early is an error.
pub(super) struct Body {
    reader: BufReader<UnixStream>,
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
