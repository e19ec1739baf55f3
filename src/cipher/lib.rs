//! AES-256-CBC on runs of whole blocks. Padding, initialization vectors and streams are `loader::security`'s.
//!
//! Each call takes many blocks at once: on one at a time the processor's instructions are not kept busy.

use aes::Aes256;
use cbc::cipher::inout::InOutBuf;
use cbc::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};

/// Length of a cipher block and of an initialization vector, in bytes.
pub const BLOCK: usize = 16;

/// Encrypts blocks, each of which goes into the next. Its state is wiped from memory when dropped.
pub struct Encryptor(cbc::Encryptor<Aes256>);

impl Encryptor {
    /// Ready for the first block.
    #[must_use]
    pub fn new(key: &[u8; 32], iv: &[u8; BLOCK]) -> Self {
        Self(cbc::Encryptor::new(key.into(), iv.into()))
    }

    /// Encrypts the whole blocks of `bytes` in place; what is left behind the last one stays as it is.
    #[inline(never)]
    pub fn encrypt(&mut self, bytes: &mut [u8]) {
        let (blocks, _rest) = InOutBuf::from(bytes).into_chunks();
        self.0.encrypt_blocks_inout(blocks);
    }
}

/// Decrypts blocks. Its state is wiped from memory when dropped.
pub struct Decryptor(cbc::Decryptor<Aes256>);

impl Decryptor {
    /// Ready for the block behind `iv`, which is the block before it or the initialization vector.
    #[must_use]
    pub fn new(key: &[u8; 32], iv: &[u8; BLOCK]) -> Self {
        Self(cbc::Decryptor::new(key.into(), iv.into()))
    }

    /// Decrypts the whole blocks of `bytes` in place; what is left behind the last one stays as it is.
    #[inline(never)]
    pub fn decrypt(&mut self, bytes: &mut [u8]) {
        let (blocks, _rest) = InOutBuf::from(bytes).into_chunks();
        self.0.decrypt_blocks_inout(blocks);
    }
}
