//! Decryption: `IV || AES-256-CBC with PKCS#7` as a `Read` around a `Read`.

use std::fmt;
use std::io::{self, BufRead, Read};

use loader_cipher::Decryptor;
use zeroize::Zeroizing;

use super::{AesKey, BLOCK};
use crate::constants::CHUNK;
use crate::page_buffer::PageBuffer;

/// How many bytes of ciphertext are not decrypted before the source reports its end.
///
/// One block is needed to find the padding. The second guarantees that at least one byte of plaintext is among what is
/// held back (the last block can be all padding), so a source that fails a check at its end, as an
/// old upload may, keeps the client from ever having a complete body.
pub const HELD_BACK: usize = 2 * BLOCK;

/// Why a ciphertext cannot be decrypted. As an [`io::Error`] it has the kind `InvalidData`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecryptError {
    /// Shorter than an initialization vector and one block.
    TooShort,
    /// Not a whole number of blocks.
    NotWholeBlocks,
    /// The last block does not end in PKCS#7 padding.
    BadPadding,
}

impl fmt::Display for DecryptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooShort => "the encrypted data is shorter than its first block",
            Self::NotWholeBlocks => "the encrypted data is cut short: it does not end at a whole block",
            Self::BadPadding => "the key does not fit the encrypted data, or the data is damaged",
        })
    }
}

impl std::error::Error for DecryptError {}

impl From<DecryptError> for io::Error {
    fn from(error: DecryptError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// Reads the plaintext of the ciphertext that `source` yields.
///
/// The plaintext is decrypted in place and lent out through [`BufRead`], so a byte is copied once on its way from the
/// source to the consumer.
pub struct DecryptReader<R> {
    source: R,
    key: AesKey,
    state: State,
    /// `plain_start..plain_end` is plaintext to be read, `plain_end..filled` ciphertext.
    buffer: Zeroizing<PageBuffer>,
    plain_start: usize,
    plain_end: usize,
    filled: usize,
    /// Whether the source ends with the padded last block.
    padded: bool,
}

/// Where a [`DecryptReader`] is.
#[expect(clippy::large_enum_variant, reason = "there is one a transfer, and it is moved for every buffer of blocks")]
enum State {
    /// The initialization vector has not been read.
    Start,
    /// In the middle of the blocks.
    Blocks(Decryptor),
    /// All plaintext has been decrypted.
    Finished,
    /// A read failed. Further reads must not look like the end.
    Failed,
}

impl<R: Read> DecryptReader<R> {
    /// Decrypts `source`, which begins with the initialization vector, with `key`.
    pub fn new(source: R, key: AesKey) -> Self {
        Self::with(source, key, CHUNK, true)
    }

    /// Decrypts a stretch of whole blocks, of `length` bytes: `source` begins with the block before them, which is their
    /// initialization vector. Padding in the stretch is returned as data.
    pub fn of_stretch(source: R, key: AesKey, length: u64) -> Self {
        Self::with(source, key, usize::try_from(length).map_or(CHUNK, |length| length.clamp(BLOCK, CHUNK)), false)
    }

    fn with(source: R, key: AesKey, size: usize, padded: bool) -> Self {
        Self {
            source,
            key,
            state: State::Start,
            buffer: Zeroizing::new(PageBuffer::new(size + HELD_BACK)),
            plain_start: 0,
            plain_end: 0,
            filled: 0,
            padded,
        }
    }

    /// Reads more ciphertext. Returns whether there was any.
    fn read_more(&mut self) -> io::Result<bool> {
        loop {
            match self.source.read(&mut self.buffer[self.filled..]) {
                Ok(count) => {
                    self.filled += count;
                    return Ok(count > 0);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads the initialization vector.
    fn start(&mut self) -> io::Result<Decryptor> {
        while self.filled < BLOCK {
            if !self.read_more()? {
                return Err(DecryptError::TooShort.into());
            }
        }
        let mut iv = [0; BLOCK];
        iv.copy_from_slice(&self.buffer[..BLOCK]);
        self.buffer.copy_within(BLOCK..self.filled, 0);
        self.filled -= BLOCK;
        Ok(Decryptor::new(self.key.bytes(), &iv))
    }

    /// Makes plaintext available, or finds the end.
    fn refill(&mut self) -> io::Result<()> {
        let mut cipher = match std::mem::replace(&mut self.state, State::Failed) {
            State::Start => self.start()?,
            State::Blocks(cipher) => cipher,
            State::Finished => {
                self.state = State::Finished;
                return Ok(());
            }
            State::Failed => return Err(io::Error::other("the data could not be decrypted to its end")),
        };
        self.buffer.copy_within(self.plain_end..self.filled, 0);
        self.filled -= self.plain_end;
        (self.plain_start, self.plain_end) = (0, 0);

        let mut at_end = false;
        while self.filled < HELD_BACK + BLOCK && !at_end {
            at_end = !self.read_more()?;
        }
        if at_end {
            if self.filled == 0 {
                return Err(DecryptError::TooShort.into());
            }
            if !self.filled.is_multiple_of(BLOCK) {
                return Err(DecryptError::NotWholeBlocks.into());
            }
            cipher.decrypt(&mut self.buffer[..self.filled]);
            self.plain_end = if self.padded { unpadded_length(&self.buffer[..self.filled])? } else { self.filled };
            self.state = State::Finished;
        } else {
            self.plain_end = (self.filled - HELD_BACK) / BLOCK * BLOCK;
            cipher.decrypt(&mut self.buffer[..self.plain_end]);
            self.state = State::Blocks(cipher);
        }
        Ok(())
    }
}

impl<R: Read> BufRead for DecryptReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.plain_start == self.plain_end {
            self.refill()?;
        }
        Ok(&self.buffer[self.plain_start..self.plain_end])
    }

    fn consume(&mut self, amount: usize) {
        self.plain_start = (self.plain_start + amount).min(self.plain_end);
    }
}

impl<R: Read> Read for DecryptReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(out)?;
        self.consume(count);
        Ok(count)
    }
}

/// The plaintext of a whole ciphertext in memory.
pub fn decrypt_whole(encrypted: &[u8], key: &AesKey) -> Result<Vec<u8>, DecryptError> {
    let mut plain = decrypt_beginning(encrypted, key)?;
    let length = unpadded_length(&plain)?;
    plain.truncate(length);
    Ok(plain)
}

/// The plaintext of the first blocks of a longer ciphertext.
pub fn decrypt_beginning(encrypted: &[u8], key: &AesKey) -> Result<Vec<u8>, DecryptError> {
    let (iv, blocks) = encrypted.split_at_checked(BLOCK).ok_or(DecryptError::TooShort)?;
    if blocks.is_empty() {
        return Err(DecryptError::TooShort);
    }
    if !blocks.len().is_multiple_of(BLOCK) {
        return Err(DecryptError::NotWholeBlocks);
    }
    let mut iv_block = [0; BLOCK];
    iv_block.copy_from_slice(iv);
    let mut plain = blocks.to_vec();
    Decryptor::new(key.bytes(), &iv_block).decrypt(&mut plain);
    Ok(plain)
}

/// The length of the plaintext of `encrypted_length` bytes that end in `tail`, the last two cipher blocks (the first of
/// them is the initialization vector where the plaintext is shorter than a block).
///
/// A wrong key gives [`DecryptError::BadPadding`] in 255 of 256 cases.
pub fn plain_length(encrypted_length: u64, tail: &[u8; HELD_BACK], key: &AesKey) -> Result<u64, DecryptError> {
    let block = BLOCK as u64;
    if encrypted_length < 2 * block {
        return Err(DecryptError::TooShort);
    }
    if !encrypted_length.is_multiple_of(block) {
        return Err(DecryptError::NotWholeBlocks);
    }
    let last = decrypt_whole(tail, key)?;
    Ok(encrypted_length - 2 * block + last.len() as u64)
}

/// How many bytes of `plain`, whole blocks, come before its PKCS#7 padding.
fn unpadded_length(plain: &[u8]) -> Result<usize, DecryptError> {
    let padding = usize::from(*plain.last().ok_or(DecryptError::TooShort)?);
    let length = plain.len().checked_sub(padding).ok_or(DecryptError::BadPadding)?;
    let valid = (1..=BLOCK).contains(&padding) && plain[length..].iter().all(|byte| usize::from(*byte) == padding);
    if valid { Ok(length) } else { Err(DecryptError::BadPadding) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::EncryptWriter;
    use super::*;

    fn key() -> AesKey {
        AesKey::from_secret(b"test")
    }

    fn encrypted(plain: &[u8]) -> Vec<u8> {
        let mut writer = EncryptWriter::new(Vec::new(), &key()).unwrap();
        writer.write_all(plain).unwrap();
        writer.finish().unwrap()
    }

    /// Yields its bytes in portions of one size, and at the end, if so wished, an error.
    struct Dribble<'a>(&'a [u8], usize, bool);

    impl Read for Dribble<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() && self.2 {
                return Err(io::Error::other("checked and wrong"));
            }
            let count = self.1.min(out.len()).min(self.0.len());
            out[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    #[test]
    fn decrypts_portions_of_any_size() {
        for size in [0, 1, 15, 16, 17, 31, 32, 33, 100, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7] {
            let plain: Vec<u8> = (0..size).map(|i| (i * 7 % 251) as u8).collect();
            let encrypted = encrypted(&plain);
            for portion in [1, 15, 16, 17, 1000, usize::MAX] {
                if portion == 1 && size > 1000 {
                    continue;
                }
                let mut out = Vec::new();
                DecryptReader::new(Dribble(&encrypted, portion, false), key()).read_to_end(&mut out).unwrap();
                assert!(out == plain, "size {size}, portions of {portion}");
            }
            let tail = encrypted[encrypted.len() - HELD_BACK..].try_into().unwrap();
            assert_eq!(plain_length(encrypted.len() as u64, &tail, &key()), Ok(size as u64));
            assert_eq!(decrypt_whole(&encrypted, &key()), Ok(plain));
        }
    }

    #[test]
    fn a_stretch_of_blocks_decrypts_without_the_rest() {
        let plain: Vec<u8> = (0..1000).map(|i| (i * 7 % 251) as u8).collect();
        let encrypted = encrypted(&plain);
        for (first, last) in [(0, 1), (0, 62), (1, 2), (30, 62), (61, 62)] {
            let mut out = Vec::new();
            let stretch = &encrypted[first * BLOCK..(last + 1) * BLOCK];
            let length = stretch.len() as u64;
            DecryptReader::of_stretch(Dribble(stretch, 100, false), key(), length).read_to_end(&mut out).unwrap();
            assert!(out == plain[first * BLOCK..last * BLOCK], "blocks {first} to {last}");
        }
    }

    #[test]
    fn the_end_of_the_plaintext_waits_for_the_end_of_the_source() {
        for size in [1, 15, 16, 17, 32, 1000, 1008, CHUNK, 2 * CHUNK + 16] {
            let encrypted = encrypted(&vec![9; size]);
            let mut out = Vec::new();
            let error =
                DecryptReader::new(Dribble(&encrypted, usize::MAX, true), key()).read_to_end(&mut out).unwrap_err();
            assert_eq!(error.to_string(), "checked and wrong");
            assert!(out.len() < size, "size {size}: all of the plaintext came before the check");
        }
    }

    #[test]
    fn refuses_a_truncated_ciphertext_at_every_length() {
        // No byte of this plaintext, and hardly any of a random block, looks like padding.
        let encrypted = encrypted(&[0xaa; 40]);
        for length in 0..encrypted.len() {
            let error = DecryptReader::new(&encrypted[..length], key()).read_to_end(&mut Vec::new()).unwrap_err();
            let error = *error.get_ref().unwrap().downcast_ref::<DecryptError>().unwrap();
            let expected = match length {
                0..=16 => DecryptError::TooShort,
                l if l % 16 != 0 => DecryptError::NotWholeBlocks,
                _ => DecryptError::BadPadding,
            };
            assert_eq!(error, expected, "length {length}");
            assert_eq!(decrypt_whole(&encrypted[..length], &key()).unwrap_err(), expected, "length {length}");
        }
    }

    #[test]
    fn refuses_every_malformed_padding() {
        for last in [0u8, 17, 255] {
            assert_eq!(unpadded_length(&[last; 16]), Err(DecryptError::BadPadding));
        }
        let mut block = [3u8; 16];
        assert_eq!(unpadded_length(&block), Ok(13));
        block[14] = 2;
        assert_eq!(unpadded_length(&block), Err(DecryptError::BadPadding));
        assert_eq!(unpadded_length(&[16; 16]), Ok(0));
    }
}
