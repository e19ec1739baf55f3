//! AES-256-CBC on runs of whole blocks. Padding, initialization vectors and streams are `loader::security`'s.
//!
//! Each call takes many blocks at once: on one at a time the processor's instructions are not kept busy.

use aes::Aes256;
use cbc::cipher::array::Array;
use cbc::cipher::inout::InOutBuf;
use cbc::cipher::{BlockCipherDecrypt, BlockModeEncrypt, KeyInit, KeyIvInit};

/// Length of a cipher block and of an initialization vector, in bytes.
pub const BLOCK: usize = 16;

/// Encrypts blocks, each of which goes into the next. Its state is wiped from memory when dropped.
pub struct Encryptor(cbc::Encryptor<Aes256>);

impl Encryptor {
    /// Ready for the first block.
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

/// Blocks that are decrypted in one call. Their ciphertext is kept beside them meanwhile.
const RUN: usize = 256;

/// Decrypts blocks. Its key is wiped from memory when dropped.
///
/// The chaining is written out here: that of `cbc` goes byte by byte unless the whole program is compiled for speed, and
/// then takes longer than the cipher.
pub struct Decryptor {
    cipher: Aes256,
    /// The ciphertext before the next block.
    before: [u8; BLOCK],
}

impl Decryptor {
    /// Ready for the block behind `iv`, which is the block before it or the initialization vector.
    pub fn new(key: &[u8; 32], iv: &[u8; BLOCK]) -> Self {
        Self { cipher: Aes256::new(key.into()), before: *iv }
    }

    /// Decrypts the whole blocks of `bytes` in place; what is left behind the last one stays as it is.
    #[inline(never)]
    pub fn decrypt(&mut self, bytes: &mut [u8]) {
        let (blocks, _rest) = bytes.as_chunks_mut::<BLOCK>();
        let mut encrypted = [[0; BLOCK]; RUN];
        for run in blocks.chunks_mut(RUN) {
            let encrypted = &mut encrypted[..run.len()];
            encrypted.copy_from_slice(run);
            self.cipher.decrypt_blocks(Array::cast_slice_from_core_mut(run));
            for (block, encrypted) in run.iter_mut().zip(encrypted) {
                let before = std::mem::replace(&mut self.before, *encrypted);
                *block = (u128::from_ne_bytes(*block) ^ u128::from_ne_bytes(before)).to_ne_bytes();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use cbc::cipher::BlockModeDecrypt;

    use super::*;

    /// Against `cbc`'s own chaining, across calls of all kinds of lengths.
    #[test]
    fn what_is_decrypted_is_what_cbc_decrypts() {
        let (key, iv) = ([7; 32], [9; BLOCK]);
        let encrypted: Vec<u8> = (0..(3 * RUN + 5) * BLOCK).map(|i| (i * i % 253) as u8).collect();
        let mut expected = encrypted.clone();
        let (blocks, _) = InOutBuf::from(&mut expected[..]).into_chunks();
        cbc::Decryptor::<Aes256>::new(&key.into(), &iv.into()).decrypt_blocks_inout(blocks);
        for blocks in [1, 2, RUN - 1, RUN, RUN + 1, 3 * RUN + 5] {
            let (mut decryptor, mut bytes) = (Decryptor::new(&key, &iv), encrypted.clone());
            bytes.chunks_mut(blocks * BLOCK).for_each(|bytes| decryptor.decrypt(bytes));
            assert_eq!(bytes, expected, "{blocks} blocks a call");
        }
        let mut rest = encrypted[..BLOCK + 3].to_vec();
        Decryptor::new(&key, &iv).decrypt(&mut rest);
        assert_eq!((&rest[..BLOCK], &rest[BLOCK..]), (&expected[..BLOCK], &encrypted[BLOCK..BLOCK + 3]));
    }
}
