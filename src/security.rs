//! Keys and ciphers: how every key is derived (SPEC section 6), and the streaming AES-256-CBC built on them.
//!
//! The ciphers are [`DecryptReader`] and [`EncryptWriter`]: callers see `Read` and `Write`, never blocks.

mod background;
mod decrypt;
mod encrypt;
mod hash;
mod parts;

use jwt_simple::reexports::ct_codecs::{Base64, Encoder};
use sha2::{Digest, Sha256, Sha384};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::credentials::Credentials;
use crate::secret::Secret;

pub use background::{Absorb, BackgroundHasher};
pub use decrypt::{DecryptError, DecryptReader, HELD_BACK, decrypt_beginning, decrypt_whole, plain_length};
pub use encrypt::EncryptWriter;
pub use hash::{HashMismatch, HashWriter, Hasher, Sha256Hash, SmallHash, hex, sha256_hex};
pub use loader_cipher::BLOCK;
pub use parts::{OpenBig, Parts, PartsWriter, split_point};

/// The installation's salts (`HARDWARE_SALT`, `API_KEY_SALT`, `RESOURCE_KEY_SALT`).
#[derive(Clone, Debug)]
pub struct Salts {
    /// Goes into the hardware hash.
    pub hardware: Secret,
    /// Goes into the API key.
    pub api_key: Secret,
    /// The only input of the resource key.
    pub resource_key: Secret,
}

/// An AES-256 key, wiped from memory when dropped.
#[derive(Clone, PartialEq, Zeroize, ZeroizeOnDrop)]
pub struct AesKey([u8; 32]);

impl AesKey {
    /// The AES key of a secret: the SHA-256 of its UTF-8 bytes, or of the raw bytes of a key fragment.
    pub fn from_secret(secret: &[u8]) -> Self {
        Self(Sha256::digest(secret).into())
    }

    /// The key of every model.
    pub fn of_resources(salts: &Salts) -> Self {
        Self::from_secret(resource_key(salts).as_bytes())
    }

    /// The key of files from the Resource API for this user on this hardware.
    pub fn of_api(credentials: &Credentials, hardware: &str, salts: &Salts) -> Self {
        Self::from_secret(api_key(credentials, hardware, salts).as_bytes())
    }

    fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for AesKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AesKey(***)")
    }
}

/// `base64(SHA-384(text))`, standard alphabet, padded.
pub fn secret_hash(text: &str) -> Zeroizing<String> {
    // 48 bytes always encode to 64 characters, so this cannot fail.
    let digest = Zeroizing::new(<[u8; 48]>::from(Sha384::digest(text.as_bytes())));
    Zeroizing::new(Base64::encode_to_string(*digest).unwrap_or_default())
}

/// The hash that stands for this hardware in the API key.
pub fn hardware_hash(hardware: &str, salts: &Salts) -> Zeroizing<String> {
    secret_hash(&Zeroizing::new(format!("Azaion_{hardware}_{}", salts.hardware.expose())))
}

/// The secret shared with the Resource API, bound to user, password and hardware.
pub fn api_key(credentials: &Credentials, hardware: &str, salts: &Salts) -> Zeroizing<String> {
    secret_hash(&Zeroizing::new(format!(
        "{}-{}-{}-{}",
        credentials.email,
        credentials.password.expose(),
        *hardware_hash(hardware, salts),
        salts.api_key.expose()
    )))
}

/// The secret for models, the same on every box of an installation.
pub fn resource_key(salts: &Salts) -> Zeroizing<String> {
    secret_hash(salts.resource_key.expose())
}
