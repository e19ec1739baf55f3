//! AES-256-CBC on runs of whole blocks. Padding, initialization vectors and streams are `loader::security`'s.
//!
//! Each call takes many blocks: one at a time would not keep the processor's AES units busy.

use aes::Aes256;
use cbc::cipher::array::Array;
use cbc::cipher::inout::InOutBuf;
use cbc::cipher::{BlockCipherDecrypt, BlockModeEncrypt, KeyInit, KeyIvInit};

/// Length of a cipher block and of an initialization vector, in bytes.
pub const BLOCK: usize = 16;

/// Encrypts successive blocks. Its state is wiped from memory when dropped.
pub struct Encryptor(cbc::Encryptor<Aes256>);

impl Encryptor {
    /// Ready for the first block.
    pub fn new(key: &[u8; 32], iv: &[u8; BLOCK]) -> Self {
        Self(cbc::Encryptor::new(key.into(), iv.into()))
    }

    /// Encrypts the whole blocks of `bytes` in place; the bytes after the last one stay as they are.
    #[inline(never)]
    pub fn encrypt(&mut self, bytes: &mut [u8]) {
        let (blocks, _rest) = InOutBuf::from(bytes).into_chunks();
        self.0.encrypt_blocks_inout(blocks);
    }
}

/// How many blocks are decrypted at once, with a copy of their ciphertext.
const RUN: usize = 256;

/// Decrypts successive blocks. Its key is wiped from memory when dropped.
///
/// The chaining is written out here: unless the whole program is compiled for speed, the one in `cbc` goes byte by byte and
/// takes longer than the cipher.
pub struct Decryptor {
    cipher: Aes256,
    /// The ciphertext before the next block.
    before: [u8; BLOCK],
}

impl Decryptor {
    /// Ready for the block after `iv`, which is the initialization vector or the preceding ciphertext block.
    pub fn new(key: &[u8; 32], iv: &[u8; BLOCK]) -> Self {
        Self { cipher: Aes256::new(key.into()), before: *iv }
    }

    /// Decrypts the whole blocks of `bytes` in place; the bytes after the last one stay as they are.
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

    /// Compared with `cbc`'s own chaining, over calls of different lengths.
    #[test]
    fn decrypts_as_cbc_does() {
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
