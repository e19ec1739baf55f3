//! The reader that cuts a range out of a plaintext.

use std::io::{self, BufRead, Read};

/// A range of what `source` yields. Its last byte is held back until the source has come to its end without an error, so a
/// source that fails a check at its end never gives out a complete range.
pub(super) struct RangeReader<R> {
    source: R,
    skip: u64,
    left: u64,
    last: Option<[u8; 1]>,
}

impl<R: BufRead> RangeReader<R> {
    /// Skips `skip` bytes and gives out the next `length`.
    pub(super) fn new(source: R, skip: u64, length: u64) -> Self {
        Self { source, skip, left: length, last: None }
    }

    fn last_byte(&mut self) -> io::Result<[u8; 1]> {
        if let Some(last) = self.last {
            return Ok(last);
        }
        let byte = *self.source.fill_buf()?.first().ok_or(io::ErrorKind::UnexpectedEof)?;
        self.source.consume(1);
        loop {
            match self.source.fill_buf()?.len() {
                0 => break,
                count => self.source.consume(count),
            }
        }
        self.last = Some([byte]);
        Ok([byte])
    }
}

impl<R: BufRead> BufRead for RangeReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.skip > 0 {
            let available = self.source.fill_buf()?.len() as u64;
            if available == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let count = available.min(self.skip);
            self.source.consume(count as usize);
            self.skip -= count;
        }
        if self.left > 1 {
            let available = self.source.fill_buf()?;
            if available.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let limit = usize::try_from(self.left - 1).unwrap_or(usize::MAX);
            return Ok(&available[..available.len().min(limit)]);
        }
        if self.left == 1 {
            self.last_byte()?;
        }
        Ok(self.last.as_ref().filter(|_| self.left == 1).map_or(&[], <[u8; 1]>::as_slice))
    }

    fn consume(&mut self, amount: usize) {
        if self.left > 1 {
            self.source.consume(amount);
        }
        self.left = self.left.saturating_sub(amount as u64);
    }
}

impl<R: BufRead> Read for RangeReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(out)?;
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    /// Fails instead of ending.
    struct Failing<'a>(&'a [u8]);

    impl Read for Failing<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            match self.0.read(out)? {
                0 => Err(io::Error::other("wrong")),
                count => Ok(count),
            }
        }
    }

    #[test]
    fn the_last_byte_of_a_range_waits_for_the_source_to_end_without_an_error() {
        let bytes: Vec<u8> = (0..100).collect();
        for (skip, length) in [(0, 100), (0, 1), (99, 1), (10, 20), (7, 93)] {
            let range = skip as usize..(skip + length) as usize;
            for capacity in [1, 16, 1000] {
                let mut out = Vec::new();
                RangeReader::new(BufReader::with_capacity(capacity, &bytes[..]), skip, length)
                    .read_to_end(&mut out)
                    .unwrap();
                assert_eq!(out, bytes[range.clone()]);
                let mut out = Vec::new();
                let source = BufReader::with_capacity(capacity, Failing(&bytes));
                RangeReader::new(source, skip, length).read_to_end(&mut out).unwrap_err();
                assert_eq!(out, bytes[range.start..range.end - 1]);
            }
        }
        assert!(RangeReader::new(&bytes[..], 90, 20).read_to_end(&mut Vec::new()).is_err());
        assert!(RangeReader::new(&bytes[..], 100, 1).read_to_end(&mut Vec::new()).is_err());
    }
}
