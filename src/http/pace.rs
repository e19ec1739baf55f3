//! How slowly a client may send or read before it counts as one that stopped.

use std::io::{self, Write};
use std::time::{Duration, Instant};

/// A client must move so many bytes in the time that it may stall. The socket's own timeouts begin anew with every byte, so
/// that a client who moves one now and then would hold a handler thread for ever.
const MIN_BYTES: usize = 4096;

/// Counts what one client moves while it is waited for. Time in which this program is busy otherwise is not the client's.
#[derive(Debug)]
pub(super) struct Pace {
    limit: Duration,
    /// How long it took for fewer than [`MIN_BYTES`].
    waited: Duration,
    moved: usize,
}

impl Pace {
    /// For a client that may stall for `limit`.
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, waited: Duration::ZERO, moved: 0 }
    }

    /// Makes one transfer.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if the last ones were too slow, and the transfer's own.
    pub(super) fn transfer(&mut self, transfer: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
        if self.is_over() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let started = Instant::now();
        let result = transfer();
        self.waited += started.elapsed();
        if let Ok(count) = result {
            self.moved = self.moved.saturating_add(count);
            if self.moved >= MIN_BYTES {
                self.begin_anew();
            }
        }
        result
    }

    fn is_over(&self) -> bool {
        self.waited >= self.limit
    }

    /// The client keeps nobody waiting.
    fn begin_anew(&mut self) {
        (self.waited, self.moved) = (Duration::ZERO, 0);
    }
}

/// A writer to a client whose reading is paced. The socket's timeout for writes is only how often the pace is looked at:
/// one that has taken something begins anew.
pub(super) struct PacedWriter<'a> {
    pub(super) writer: &'a mut dyn Write,
    pub(super) pace: Pace,
}

impl PacedWriter<'_> {
    /// Writes, of `all` bytes, as many as the client takes.
    fn until_over(
        &mut self,
        all: usize,
        mut write: impl FnMut(&mut dyn Write) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            match self.pace.transfer(|| write(self.writer)) {
                // There was room for all of it: if that took long, this thread had to wait for a processor.
                Ok(count) if count == all => {
                    self.pace.begin_anew();
                    return Ok(count);
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if self.pace.is_over() {
                        return Err(io::Error::new(io::ErrorKind::TimedOut, "the client stopped reading"));
                    }
                }
                result => return result,
            }
        }
    }
}

impl Write for PacedWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.until_over(bytes.len(), |writer| writer.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.until_over(0, |writer| writer.flush().map(|()| 0)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use super::*;

    #[test]
    fn a_trickle_is_a_stall_and_waiting_for_bytes_that_come_is_none() {
        let mut pace = Pace::new(Duration::from_millis(100));
        let mut slow = |count| {
            pace.transfer(|| {
                sleep(Duration::from_millis(30));
                Ok(count)
            })
        };
        for _ in 0..5 {
            assert!(slow(MIN_BYTES).is_ok());
        }
        let trickled: Vec<_> = (0..6).map(|_| slow(1)).collect();
        assert!(trickled[0].is_ok());
        assert!(trickled[5].as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut));
    }

    #[test]
    fn time_between_transfers_is_not_the_clients() {
        let mut pace = Pace::new(Duration::from_millis(200));
        for _ in 0..3 {
            sleep(Duration::from_millis(120));
            assert!(pace.transfer(|| Ok(1)).is_ok());
        }
    }

    /// A socket that is full now and then is not one that nobody reads.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Ok(bytes.len());
            }
            self.0 -= 1;
            sleep(Duration::from_millis(20));
            Err(io::ErrorKind::WouldBlock.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_socket_is_tried_again_up_to_the_limit() {
        let write = |times| {
            let pace = Pace::new(Duration::from_millis(500));
            PacedWriter { writer: &mut Full(times), pace }.write_all(b"x").map_err(|error| error.kind())
        };
        assert_eq!((write(3), write(1000)), (Ok(()), Err(io::ErrorKind::TimedOut)));
    }

    /// Takes all that comes, in its time.
    struct Slow;

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            sleep(Duration::from_millis(20));
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            sleep(Duration::from_millis(20));
            Ok(())
        }
    }

    #[test]
    fn a_client_that_takes_everything_is_not_blamed_for_a_busy_machine() {
        let mut writer = PacedWriter { writer: &mut Slow, pace: Pace::new(Duration::from_millis(10)) };
        for _ in 0..3 {
            writer.write_all(b"head").unwrap();
            writer.flush().unwrap();
        }
    }
}
