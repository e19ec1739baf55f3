//! The two parts of an encrypted file: a small one for the Resource API and a big one for the CDN.
//!
//! `small.chain(big)` joins them; [`PartsWriter`] splits a stream of unknown length.

use std::io::{self, Write};

/// The most bytes that go into the small part.
const SMALL_MAX: u64 = 3072;

/// From this encrypted length on, the small part has [`SMALL_MAX`] bytes.
const SPLIT_KNOWN_AT: u64 = SMALL_MAX * 10 / 3;

/// How many bytes of an encrypted file of `encrypted_length` bytes are its small part.
pub fn split_point(encrypted_length: u64) -> u64 {
    // The comparison first, so that no length overflows.
    if encrypted_length >= SPLIT_KNOWN_AT { SMALL_MAX } else { encrypted_length * 3 / 10 }
}

/// The result of a [`PartsWriter`].
pub struct Parts<W> {
    /// The small part, at most 3072 bytes.
    pub small: Vec<u8>,
    /// The sink with the big part.
    pub big: W,
}

/// Opens the sink for the big part, given the small part.
pub type OpenBig<W> = Box<dyn FnOnce(&[u8]) -> io::Result<W> + Send>;

/// Splits the encrypted bytes written to it: the small part stays in memory, the big part goes to a sink.
///
/// The split point depends on the whole length, so up to 10,240 bytes are kept until it is certain.
pub struct PartsWriter<W> {
    small: Vec<u8>,
    open: Option<OpenBig<W>>,
    big: Option<W>,
}

impl<W: Write> PartsWriter<W> {
    /// Writes the big part to the sink that `open` opens.
    pub fn new(open: OpenBig<W>) -> Self {
        Self { small: Vec::with_capacity(SPLIT_KNOWN_AT as usize), open: Some(open), big: None }
    }

    /// Ends the stream and returns both parts.
    pub fn finish(mut self) -> io::Result<Parts<W>> {
        let big = match self.big.take() {
            Some(big) => big,
            None => self.split_at(split_point(self.small.len() as u64) as usize)?,
        };
        Ok(Parts { small: self.small, big })
    }

    fn split_at(&mut self, point: usize) -> io::Result<W> {
        let head_of_big = self.small.split_off(point);
        let open = self.open.take().ok_or_else(|| io::Error::other("the big part could not be opened earlier"))?;
        let mut big = open(&self.small)?;
        big.write_all(&head_of_big)?;
        Ok(big)
    }
}

impl<W: Write> Write for PartsWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(big) = &mut self.big {
            return big.write(bytes);
        }
        let missing = SPLIT_KNOWN_AT as usize - self.small.len();
        let count = bytes.len().min(missing);
        self.small.extend_from_slice(&bytes[..count]);
        if count == missing {
            self.big = Some(self.split_at(SMALL_MAX as usize)?);
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.big.as_mut().map_or(Ok(()), W::flush)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_point_is_three_tenths_up_to_its_limit() {
        for (length, point) in
            [(0, 0), (32, 9), (48, 14), (10_224, 3067), (10_239, 3071), (10_240, 3072), (10_256, 3072)]
        {
            assert_eq!(split_point(length), point, "{length}");
            assert_eq!(point, (length * 3 / 10).min(3072), "{length}");
        }
        assert_eq!(split_point(u64::MAX), 3072);
    }

    #[test]
    fn parts_join_to_what_was_written() {
        for length in [0usize, 1, 32, 10_239, 10_240, 10_241, 50_000] {
            let whole: Vec<u8> = (0..length).map(|i| (i % 253) as u8).collect();
            for portion in [1, 100, 10_240, usize::MAX] {
                let mut writer = PartsWriter::new(Box::new(|_| Ok(Vec::new())));
                for bytes in whole.chunks(portion.min(length.max(1))) {
                    writer.write_all(bytes).unwrap();
                }
                let parts = writer.finish().unwrap();
                assert_eq!(parts.small.len() as u64, split_point(length as u64));
                assert!([parts.small, parts.big].concat() == whole, "length {length}, portions of {portion}");
            }
        }
    }
}
