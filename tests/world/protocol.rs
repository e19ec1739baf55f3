//! Section 6 of the specification, implemented a second time, on whole buffers.
//!
//! Nothing here is shared with the program under test: a mistake in the product's key schedule or padding must not
//! cancel out by being made on both sides. It was checked against the peer's `protocol.py` (OpenSSL).

use aes::Aes256;
use cbc::cipher::{Array, Block, BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use jwt_simple::reexports::ct_codecs::{Base64, Encoder};
use sha2::{Digest, Sha256, Sha384};

/// Size of an AES block and of the initialization vector.
pub const BLOCK: usize = 16;
/// The small part never exceeds this.
pub const SMALL_MAX: usize = 3072;

/// The three salts of a deployment.
#[derive(Clone, Debug)]
pub struct Salts {
    /// `HARDWARE_SALT`.
    pub hardware: String,
    /// `API_KEY_SALT`.
    pub api_key: String,
    /// `RESOURCE_KEY_SALT`.
    pub resource_key: String,
}

impl Default for Salts {
    fn default() -> Self {
        Self {
            hardware: "dev-hardware-salt".to_owned(),
            api_key: "dev-api-key-salt".to_owned(),
            resource_key: "dev-resource-key-salt".to_owned(),
        }
    }
}

/// `base64(SHA-384(text))`.
pub fn secret(text: &str) -> String {
    Base64::encode_to_string(Sha384::digest(text.as_bytes())).expect("48 bytes always encode")
}

/// The hash that identifies a box.
pub fn hardware_hash(hardware: &str, salt: &str) -> String {
    secret(&format!("Azaion_{hardware}_{salt}"))
}

/// The secret that the Resource API encrypts a user's files with.
pub fn api_key(email: &str, password: &str, hardware: &str, salts: &Salts) -> String {
    let hardware = hardware_hash(hardware, &salts.hardware);
    secret(&format!("{email}-{password}-{hardware}-{}", salts.api_key))
}

/// The secret that both parts of a model are encrypted with.
pub fn resource_key(salts: &Salts) -> String {
    secret(&salts.resource_key)
}

/// The AES key of a secret; for an archive the secret is the raw key fragment.
pub fn aes_key(secret: &[u8]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// `IV || AES-256-CBC` with PKCS#7, under a random initialization vector.
pub fn encrypt(data: &[u8], secret: &[u8]) -> Vec<u8> {
    let mut iv = [0; BLOCK];
    getrandom::fill(&mut iv).expect("the kernel has randomness");
    encrypt_with_iv(data, secret, iv)
}

/// As [`encrypt`], under a given initialization vector, for results that can be compared.
pub fn encrypt_with_iv(data: &[u8], secret: &[u8], iv: [u8; BLOCK]) -> Vec<u8> {
    let padding = BLOCK - data.len() % BLOCK;
    let mut out = Vec::with_capacity(BLOCK + data.len() + padding);
    out.extend_from_slice(&iv);
    out.extend_from_slice(data);
    out.resize(out.len() + padding, u8::try_from(padding).expect("at most 16"));
    let mut cipher = cbc::Encryptor::<Aes256>::new(&aes_key(secret).into(), &iv.into());
    cipher.encrypt_blocks(blocks(&mut out[BLOCK..]));
    out
}

/// Undoes [`encrypt`]; the error says what is wrong with the bytes.
pub fn decrypt(encrypted: &[u8], secret: &[u8]) -> Result<Vec<u8>, String> {
    let Some((iv, body)) = encrypted.split_first_chunk::<BLOCK>() else {
        return Err(format!("{} bytes hold no initialization vector", encrypted.len()));
    };
    if body.is_empty() || body.len() % BLOCK != 0 {
        return Err(format!("{} bytes of ciphertext are no whole number of blocks", body.len()));
    }
    let mut out = body.to_vec();
    let mut cipher = cbc::Decryptor::<Aes256>::new(&aes_key(secret).into(), &(*iv).into());
    cipher.decrypt_blocks(blocks(&mut out));
    let padding = usize::from(out[out.len() - 1]);
    if padding == 0 || padding > BLOCK || !out.ends_with(&vec![out[out.len() - 1]; padding]) {
        return Err("bad padding".to_owned());
    }
    out.truncate(out.len() - padding);
    Ok(out)
}

/// How many bytes of `IV || ciphertext` go to the small part.
pub fn split_point(encrypted_len: usize) -> usize {
    (encrypted_len * 3 / 10).min(SMALL_MAX)
}

/// A file after an upload: the small part and the big part.
pub fn split(data: &[u8], salts: &Salts) -> (Vec<u8>, Vec<u8>) {
    let mut small = encrypt(data, resource_key(salts).as_bytes());
    let big = small.split_off(split_point(small.len()));
    (small, big)
}

/// As [`split`], under an initialization vector with which none of these salts opens the file: under a wrong key one encryption
/// in 256 has a valid padding by chance.
pub fn split_only_for(plain: &[u8], salts: &Salts, wrong: &[&str]) -> (Vec<u8>, Vec<u8>) {
    let opens = |salt: &str, small: &[u8], big: &[u8]| {
        join(small, big, &Salts { resource_key: salt.into(), ..Salts::default() }).is_ok()
    };
    loop {
        let (small, big) = split(plain, salts);
        if !wrong.iter().any(|salt| opens(salt, &small, &big)) {
            return (small, big);
        }
    }
}

/// Joins the two parts of a file.
pub fn join(small: &[u8], big: &[u8], salts: &Salts) -> Result<Vec<u8>, String> {
    decrypt(&[small, big].concat(), resource_key(salts).as_bytes())
}

fn blocks(bytes: &mut [u8]) -> &mut [Block<Aes256>] {
    let (blocks, rest) = Array::slice_as_chunks_mut(bytes);
    assert!(rest.is_empty(), "padded by the caller");
    blocks
}
