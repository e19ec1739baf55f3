//! The bytes of a download on their way into the file, from one connection or several.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::ranges::{Broken, Ranges};

/// What has come is passed on after so long, however little it is.
const AT_ONCE: Duration = Duration::from_millis(10);

/// Bytes on their way into the file.
pub(super) enum Incoming {
    /// From one connection.
    Stream {
        source: Box<dyn Read + Send>,
        /// Came behind bytes that are still to be used.
        broken: Option<io::Error>,
    },
    /// From several, which write into the file themselves.
    Ranges(Ranges),
}

impl Incoming {
    /// From one connection.
    pub(super) fn stream(source: Box<dyn Read + Send>) -> Self {
        Self::Stream { source, broken: None }
    }

    /// Waits for more bytes behind `position`, sees to it that they are in the file, and puts them into `buffer`.
    pub(super) fn next(&mut self, file: &File, position: u64, buffer: &mut [u8]) -> Result<usize, Broken> {
        match self {
            Self::Stream { source, broken } => {
                let count = gather(source, buffer, broken).map_err(Broken::Source)?;
                file.write_all_at(&buffer[..count], position).map_err(Broken::File)?;
                Ok(count)
            }
            Self::Ranges(ranges) => {
                let available = ranges.wait(position)?;
                let count = buffer.len().min(usize::try_from(available - position).unwrap_or(usize::MAX));
                file.read_exact_at(&mut buffer[..count], position).map_err(Broken::File)?;
                Ok(count)
            }
        }
    }
}

/// Fills `out`, or less of it if the rest does not come at once. An error behind bytes is kept in `broken` for the next call.
fn gather(source: &mut dyn Read, out: &mut [u8], broken: &mut Option<io::Error>) -> io::Result<usize> {
    let (mut count, started) = (0, Instant::now());
    while broken.is_none() && count < out.len() && (count == 0 || started.elapsed() < AT_ONCE) {
        match source.read(&mut out[count..]) {
            Ok(0) => *broken = Some(io::ErrorKind::UnexpectedEof.into()),
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => *broken = Some(error),
        }
    }
    match broken.take_if(|_| count == 0) {
        Some(error) => Err(error),
        None => Ok(count),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Gives one byte a read, with a pause before each, and fails behind the last.
    struct Drops(u8, Duration);

    impl Read for Drops {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            thread::sleep(self.1);
            if self.0 == 0 {
                return Err(io::Error::other("broken"));
            }
            self.0 -= 1;
            out[0] = self.0;
            Ok(1)
        }
    }

    #[test]
    fn what_comes_at_once_is_gathered_and_what_comes_slowly_is_passed_on() {
        let (mut out, mut broken) = ([0; 8], None);
        // Unless the machine takes a break meanwhile.
        assert!((0..10).any(|_| gather(&mut Drops(9, Duration::ZERO), &mut out, &mut broken).unwrap() == 8));
        assert_eq!(out, [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(gather(&mut Drops(9, 2 * AT_ONCE), &mut out, &mut broken).unwrap(), 1);
        assert!(broken.is_none());
    }

    #[test]
    fn bytes_before_a_failure_are_used_and_the_failure_is_not_lost() {
        let (mut out, mut broken, mut source) = ([0; 8], None, Drops(3, Duration::ZERO));
        assert_eq!(gather(&mut source, &mut out, &mut broken).unwrap(), 3);
        // A source may go on after an error, with what nobody expects.
        source.0 = 5;
        assert_eq!(gather(&mut source, &mut out, &mut broken).unwrap_err().to_string(), "broken");
        let error = gather(&mut &b""[..], &mut out, &mut broken).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
