//! The byte formats against vectors that OpenSSL made (`tests/vectors/make_vectors.py`).

use std::io::{Read, Write};

use loader::credentials::Credentials;
use loader::secret::Secret;
use loader::security::{
    AesKey, DecryptReader, EncryptWriter, PartsWriter, Salts, api_key, hardware_hash, hex, resource_key, secret_hash,
    sha256_hex, split_point,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Keys {
    name: String,
    email: String,
    password: String,
    hardware: String,
    hardware_salt: String,
    api_key_salt: String,
    resource_key_salt: String,
    secret_of_password: String,
    hardware_hash: String,
    api_key: String,
    resource_key: String,
    aes_key_of_api_key: String,
    aes_key_of_resource_key: String,
}

#[derive(Deserialize)]
struct File {
    size: usize,
    key: Option<String>,
    key_hex: Option<String>,
    iv: String,
    encrypted_size: u64,
    split: u64,
    plaintext_sha256: String,
    encrypted_sha256: String,
    small_sha256: String,
    big_sha256: String,
    encrypted: Option<String>,
}

fn read<T: serde::de::DeserializeOwned>(name: &str) -> Vec<T> {
    let path = format!("{}/tests/vectors/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// SHA-256("loader-vector" || counter), as long as asked.
fn plaintext(size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + 32);
    for counter in 0_u64.. {
        if bytes.len() >= size {
            break;
        }
        bytes.extend(unhex(&sha256_hex(&[b"loader-vector", &counter.to_le_bytes()[..]].concat())));
    }
    bytes.truncate(size);
    bytes
}

#[test]
fn keys_match_openssl() {
    let vectors: Vec<Keys> = read("keys.json");
    assert!(vectors.len() >= 10);
    for v in vectors {
        let credentials = Credentials { email: v.email, password: Secret::new(v.password.as_str()) };
        let salts = Salts {
            hardware: Secret::new(v.hardware_salt),
            api_key: Secret::new(v.api_key_salt),
            resource_key: Secret::new(v.resource_key_salt),
        };
        assert_eq!(*secret_hash(&v.password), v.secret_of_password, "{}", v.name);
        assert_eq!(*hardware_hash(&v.hardware, &salts), v.hardware_hash, "{}", v.name);
        assert_eq!(*api_key(&credentials, &v.hardware, &salts), v.api_key, "{}", v.name);
        assert_eq!(*resource_key(&salts), v.resource_key, "{}", v.name);
        assert_eq!(sha256_hex(v.api_key.as_bytes()), v.aes_key_of_api_key, "{}", v.name);
        assert_eq!(sha256_hex(v.resource_key.as_bytes()), v.aes_key_of_resource_key, "{}", v.name);
    }
}

/// The ciphertexts of OpenSSL decrypt here, and the parts are cut where its side cuts them.
///
/// The vectors name the hashes of the ciphertexts; the ciphertext itself is made by `tests/world/protocol.rs`, a third
/// implementation, and its hash shows that it is OpenSSL's.
#[test]
fn files_of_openssl_decrypt_and_split_alike() {
    let vectors: Vec<File> = read("files.json");
    assert!(vectors.iter().any(|v| v.size == 5 * 1024 * 1024) && vectors.len() >= 50);
    for v in vectors {
        let plain = plaintext(v.size);
        assert_eq!(sha256_hex(&plain), v.plaintext_sha256, "size {}", v.size);
        let secret = v.key.map_or_else(|| unhex(&v.key_hex.unwrap()), String::into_bytes);
        let iv: [u8; 16] = unhex(&v.iv).try_into().unwrap();
        let encrypted = crate::world::protocol::encrypt_with_iv(&plain, &secret, iv);
        assert_eq!(sha256_hex(&encrypted), v.encrypted_sha256, "size {}", v.size);
        if let Some(expected) = v.encrypted {
            assert_eq!(hex(&encrypted), expected, "size {}", v.size);
        }
        assert_eq!(
            (encrypted.len() as u64, split_point(v.encrypted_size)),
            (v.encrypted_size, v.split),
            "size {}",
            v.size
        );

        let mut parts = PartsWriter::new(Box::new(|_| Ok(Vec::new())));
        parts.write_all(&encrypted).unwrap();
        let parts = parts.finish().unwrap();
        assert_eq!(sha256_hex(&parts.small), v.small_sha256, "size {}", v.size);
        assert_eq!(sha256_hex(&parts.big), v.big_sha256, "size {}", v.size);

        let key = AesKey::from_secret(&secret);
        let mut decrypted = Vec::new();
        let joined = parts.small.chain(&parts.big[..]);
        DecryptReader::new(joined, key.clone()).read_to_end(&mut decrypted).unwrap();
        assert!(decrypted == plain, "size {}", v.size);

        // What is encrypted here, the other implementation decrypts.
        let mut writer = EncryptWriter::new(Vec::new(), &key).unwrap();
        writer.write_all(&plain).unwrap();
        let ours = writer.finish().unwrap();
        assert!(crate::world::protocol::decrypt(&ours, &secret).unwrap() == plain, "size {}", v.size);
        assert_ne!(ours[..16], iv, "a vector must not be used twice");
    }
}
