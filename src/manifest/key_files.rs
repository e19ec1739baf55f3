//! The PEM files of signing keys and trusted keys.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use jwt_simple::prelude::{Ed25519KeyPair, Ed25519PublicKey};
use zeroize::Zeroizing;

use crate::storage::{create_dir, open_private};

/// The largest key file that is read: a key has about 120 bytes.
const MAX_KEY_FILE: u64 = 64 * 1024;

fn read_pem(variable: &str, path: &Path) -> Result<Zeroizing<String>, String> {
    let mut pem = Zeroizing::new(String::new());
    File::open(path)
        .and_then(|file| file.take(MAX_KEY_FILE).read_to_string(&mut pem))
        .map_err(|error| format!("{variable} names {}, which cannot be read: {error}", path.display()))?;
    Ok(pem)
}

pub(super) fn signing_key(path: &Path) -> Result<Ed25519KeyPair, String> {
    let pem = read_pem("SIGNING_KEY_PATH", path)?;
    Ed25519KeyPair::from_pem(&pem).map_err(|_| {
        format!(
            "SIGNING_KEY_PATH names {}, which holds no Ed25519 private key in PEM form; loader keygen makes one",
            path.display()
        )
    })
}

/// Reads one or more public keys, so that an old key and its successor can be trusted at the same time.
pub(super) fn trusted_keys(path: &Path) -> Result<Vec<Ed25519PublicKey>, String> {
    const END: &str = "-----END PUBLIC KEY-----";
    let unusable = |what: &str| format!("TRUSTED_KEYS_PATH names {}, which {what}", path.display());
    let pem = read_pem("TRUSTED_KEYS_PATH", path)?;
    if pem.contains("PRIVATE KEY") {
        return Err(unusable("holds a private key; put public keys on boxes only"));
    }
    let mut keys = Vec::new();
    let mut rest = pem.as_str();
    while let Some(end) = rest.find(END) {
        let (key, after) = rest.split_at(end + END.len());
        let key = key.find("-----BEGIN").map_or(key, |begin| &key[begin..]);
        keys.push(Ed25519PublicKey::from_pem(key).map_err(|_| {
            unusable(&format!("holds something other than an Ed25519 public key in place {}", keys.len() + 1))
        })?);
        rest = after;
    }
    if keys.is_empty() {
        Err(unusable("holds no Ed25519 public key in PEM form; loader keygen makes one"))
    } else {
        Ok(keys)
    }
}

const END_PRIVATE: &str = "-----END PRIVATE KEY-----";

/// The files of a new key pair.
#[derive(Debug)]
pub struct Keygen {
    /// For `SIGNING_KEY_PATH`, on the machine that uploads.
    pub private: PathBuf,
    /// For `TRUSTED_KEYS_PATH`, on the boxes.
    pub public: PathBuf,
}

impl Keygen {
    /// Makes a key pair in `directory`. An error names the file that exists already, and is not replaced, or cannot be written.
    pub fn write(directory: &Path) -> Result<Self, String> {
        let files = Self { private: directory.join("signing-key.pem"), public: directory.join("trusted-keys.pem") };
        for path in [&files.private, &files.public] {
            if path.symlink_metadata().is_ok() {
                return Err(format!("{} exists already and is not replaced; name another directory", path.display()));
            }
        }
        let pair = Ed25519KeyPair::generate();
        let write = |path: &Path, pem: &str| {
            open_private(path, true)
                .and_then(|mut file| file.write_all(pem.as_bytes()).and_then(|()| file.sync_all()))
                .map_err(|error| format!("{} cannot be written: {error}", path.display()))
        };
        create_dir(directory).map_err(|error| format!("{} cannot be created: {error}", directory.display()))?;
        // The library writes both keys into one text, from which other programs take the wrong one.
        let both = Zeroizing::new(pair.to_pem());
        let private = both.find(END_PRIVATE).map_or("", |end| &both[..end + END_PRIVATE.len()]);
        write(&files.private, &Zeroizing::new(format!("{private}\n")))?;
        write(&files.public, &format!("{}\n", pair.public_key().to_pem().trim_end()))?;
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_without_a_key_is_named_with_its_variable() {
        let dir = tempfile::tempdir().unwrap();
        let pair = Keygen::write(dir.path()).unwrap();
        let nothing = dir.path().join("nothing.pem");
        fs::write(&nothing, "no key").unwrap();
        for (signing, trusted, expected) in [
            (Some(&nothing), None, "SIGNING_KEY_PATH"),
            (Some(&pair.public), None, "SIGNING_KEY_PATH"),
            (None, Some(&nothing), "TRUSTED_KEYS_PATH"),
            (None, Some(&pair.private), "public keys on boxes only"),
        ] {
            let error = match (signing, trusted) {
                (Some(path), _) => signing_key(path).map(drop),
                (None, path) => trusted_keys(path.unwrap()).map(drop),
            }
            .unwrap_err();
            assert!(error.contains(expected) && error.lines().count() == 1, "{error}");
        }
    }
}
