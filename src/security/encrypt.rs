//! Encryption: `IV || AES-256-CBC with PKCS#7` as a `Write` around a `Write`.

use std::io::{self, Write};

use loader_cipher::Encryptor;
use zeroize::Zeroizing;

use super::{AesKey, BLOCK};
use crate::constants::CHUNK;

/// Encrypts what is written to it under a fresh random initialization vector, and writes the ciphertext to a sink.
///
/// [`finish`](Self::finish) must be called at the end: it writes the padded last block. Without it, decryption fails.
pub struct EncryptWriter<W> {
    sink: W,
    cipher: Encryptor,
    /// Plaintext until it is full, then ciphertext, then empty again.
    buffer: Zeroizing<Box<[u8]>>,
    filled: usize,
}

impl<W: Write> EncryptWriter<W> {
    /// Writes the initialization vector to `sink`. Fails also if the kernel has no random bytes.
    pub fn new(mut sink: W, key: &AesKey) -> io::Result<Self> {
        let mut iv = [0; BLOCK];
        getrandom::fill(&mut iv).map_err(io::Error::from)?;
        sink.write_all(&iv)?;
        Ok(Self {
            sink,
            cipher: Encryptor::new(key.bytes(), &iv),
            buffer: Zeroizing::new(vec![0; CHUNK].into_boxed_slice()),
            filled: 0,
        })
    }

    /// Writes the padded last block and returns the sink.
    pub fn finish(mut self) -> io::Result<W> {
        let padding = BLOCK - self.filled % BLOCK;
        // A full buffer was flushed at once, so there is room for a block.
        self.buffer[self.filled..self.filled + padding].fill(padding as u8);
        self.filled += padding;
        self.flush_blocks()?;
        Ok(self.sink)
    }

    fn flush_blocks(&mut self) -> io::Result<()> {
        let bytes = &mut self.buffer[..self.filled];
        self.cipher.encrypt(bytes);
        self.filled = 0;
        self.sink.write_all(bytes)
    }
}

impl<W: Write> Write for EncryptWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.buffer.len() - self.filled);
        self.buffer[self.filled..self.filled + count].copy_from_slice(&bytes[..count]);
        self.filled += count;
        if self.filled == self.buffer.len() {
            self.flush_blocks()?;
        }
        Ok(count)
    }

    /// Flushes the sink only: an incomplete buffer stays until [`finish`](Self::finish).
    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}
