//! The keys that manifests are signed and checked with.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jwt_simple::prelude::{
    Duration, Ed25519KeyPair, Ed25519PublicKey, EdDSAKeyPairLike, EdDSAPublicKeyLike, HS256Key, JWTClaims, MACLike,
    UnixTimeStamp, VerificationOptions,
};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{MAX_MANIFEST_BYTES, Manifest, ManifestError, Payload, Subject};
use crate::security::{Salts, resource_key};
use crate::storage::open_private;

/// The largest file of keys that is read: a key has about 120 bytes.
const MAX_KEY_FILE: u64 = 64 * 1024;

/// What signs a manifest and what a manifest has to be signed by.
pub struct ManifestKeys {
    /// Every box of the installation has it, the CDN has not.
    installation: HS256Key,
    /// For the manifests that this box makes of old uploads. They prove nothing to other boxes, so the key is another:
    /// nobody can pass one off as an uploader's.
    own: HS256Key,
    /// `SIGNING_KEY_PATH`.
    signing: Option<Ed25519KeyPair>,
    /// `TRUSTED_KEYS_PATH`.
    trusted: Option<Vec<Ed25519PublicKey>>,
    /// `REQUIRE_MANIFEST`.
    required: bool,
}

impl std::fmt::Debug for ManifestKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ManifestKeys(***)")
    }
}

impl ManifestKeys {
    /// The keys of this installation, and those in the files that the configuration names.
    ///
    /// # Errors
    /// One line that names the variable whose file cannot be used.
    pub fn new(
        salts: &Salts,
        signing_key_path: Option<&Path>,
        trusted_keys_path: Option<&Path>,
        required: bool,
    ) -> Result<Self, String> {
        let derived = |suffix: &str| {
            let text = Zeroizing::new(format!("{}{suffix}", *resource_key(salts)));
            HS256Key::from_bytes(&Zeroizing::new(<[u8; 32]>::from(Sha256::digest(text.as_bytes())))[..])
        };
        Ok(Self {
            installation: derived(".manifest"),
            own: derived(".own-manifest"),
            signing: signing_key_path.map(signing_key).transpose()?,
            trusted: trusted_keys_path.map(trusted_keys).transpose()?,
            required,
        })
    }

    /// Whether uploads that prove nothing are refused: by `REQUIRE_MANIFEST`, or since they cannot have a trusted signature.
    pub fn are_required(&self) -> bool {
        self.required || self.trusted.is_some()
    }

    /// The manifest of an upload, as text.
    ///
    /// # Errors
    /// Those of the signature library, which there are none of here.
    pub fn sign(&self, subject: Subject<'_>, manifest: &Manifest) -> io::Result<String> {
        let claims = claims(Payload::new(subject, manifest));
        let mut text = self.installation.authenticate(claims.clone()).map_err(io::Error::other)?;
        text.push('\n');
        if let Some(key) = &self.signing {
            text.push_str(&key.sign(claims).map_err(io::Error::other)?);
            text.push('\n');
        }
        Ok(text)
    }

    /// Reads the manifest of an upload.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn verify(&self, text: &str, subject: Subject<'_>) -> Result<Manifest, ManifestError> {
        if text.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLong);
        }
        let mut lines = text.lines();
        let (first, second) = (lines.next().unwrap_or_default(), lines.next());
        if lines.next().is_some() {
            return Err(ManifestError::Malformed("number of lines"));
        }
        // Checked in any case: without the right salt nothing decrypts, and that is better known now.
        let of_installation = payload(self.installation.verify_token(first, Some(options())))?;
        let Some(trusted) = &self.trusted else { return of_installation.check(subject) };
        let second = second.filter(|line| !line.is_empty()).ok_or(ManifestError::Unsigned)?;
        let mut verdict = Err(ManifestError::Untrusted);
        for key in trusted {
            match payload(key.verify_token(second, Some(options()))) {
                Ok(payload) => return payload.check(subject),
                Err(error @ ManifestError::Malformed(_)) => verdict = Err(error),
                Err(_) => {}
            }
        }
        verdict
    }

    /// The manifest that this box makes of an old upload, for its own cache.
    ///
    /// # Errors
    /// As [`sign`](Self::sign).
    pub fn sign_own(&self, subject: Subject<'_>, manifest: &Manifest) -> io::Result<String> {
        let mut text = self.own.authenticate(claims(Payload::new(subject, manifest))).map_err(io::Error::other)?;
        text.push('\n');
        Ok(text)
    }

    /// Reads a manifest that this box has made.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn verify_own(&self, text: &str, subject: Subject<'_>) -> Result<Manifest, ManifestError> {
        payload(self.own.verify_token(text.trim_end(), Some(options())))?.check(subject)
    }
}

/// No expiry and no time of issue: a box may start in 1970.
fn claims(payload: Payload) -> JWTClaims<Payload> {
    JWTClaims {
        issued_at: None,
        expires_at: None,
        invalid_before: None,
        issuer: None,
        subject: None,
        audiences: None,
        jwt_id: None,
        nonce: None,
        custom: payload,
    }
}

/// No claim about time counts, so the time is one at which nothing has expired.
fn options() -> VerificationOptions {
    VerificationOptions {
        accept_future: true,
        artificial_time: Some(UnixTimeStamp::from_secs(0)),
        time_tolerance: Some(Duration::from_secs(0)),
        max_token_length: Some(MAX_MANIFEST_BYTES as usize),
        ..VerificationOptions::default()
    }
}

/// Tells a signature that is wrong from a payload that is.
fn payload(verified: Result<JWTClaims<Payload>, jwt_simple::Error>) -> Result<Payload, ManifestError> {
    verified.map(|claims| claims.custom).map_err(|error| match error.downcast_ref::<serde_json::Error>() {
        Some(_) => ManifestError::Malformed("payload"),
        None => ManifestError::Forged,
    })
}

fn read(variable: &str, path: &Path) -> Result<Zeroizing<String>, String> {
    use io::Read;
    let mut pem = Zeroizing::new(String::new());
    fs::File::open(path)
        .and_then(|file| file.take(MAX_KEY_FILE).read_to_string(&mut pem))
        .map_err(|error| format!("{variable} names {}, which cannot be read: {error}", path.display()))?;
    Ok(pem)
}

fn signing_key(path: &Path) -> Result<Ed25519KeyPair, String> {
    let pem = read("SIGNING_KEY_PATH", path)?;
    Ed25519KeyPair::from_pem(&pem).map_err(|_| {
        format!(
            "SIGNING_KEY_PATH names {}, which holds no Ed25519 private key in PEM form; loader keygen makes one",
            path.display()
        )
    })
}

/// One or more public keys, so that an old key and its successor are trusted together for a time.
fn trusted_keys(path: &Path) -> Result<Vec<Ed25519PublicKey>, String> {
    const END: &str = "-----END PUBLIC KEY-----";
    let unusable = |what: &str| format!("TRUSTED_KEYS_PATH names {}, which {what}", path.display());
    let pem = read("TRUSTED_KEYS_PATH", path)?;
    if pem.contains("PRIVATE KEY") {
        return Err(unusable("holds a private key; put public keys on boxes only"));
    }
    let mut keys = Vec::new();
    let mut rest = pem.as_str();
    while let Some(end) = rest.find(END) {
        let (key, after) = rest.split_at(end + END.len());
        let key = key.find("-----BEGIN").map_or(key, |begin| &key[begin..]);
        keys.push(Ed25519PublicKey::from_pem(key).map_err(|_| {
            unusable(&format!("holds something else than an Ed25519 public key in place {}", keys.len() + 1))
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

/// The files that [`Keygen::write`] has made.
#[derive(Debug)]
pub struct Keygen {
    /// For `SIGNING_KEY_PATH`, on the machine that uploads.
    pub private: PathBuf,
    /// For `TRUSTED_KEYS_PATH`, on the boxes.
    pub public: PathBuf,
}

impl Keygen {
    /// Makes a key pair in `directory`. It replaces no file.
    ///
    /// # Errors
    /// A sentence that names the file that is there already or cannot be written.
    pub fn write(directory: &Path) -> Result<Self, String> {
        let files = Self { private: directory.join("signing-key.pem"), public: directory.join("trusted-keys.pem") };
        for path in [&files.private, &files.public] {
            if path.symlink_metadata().is_ok() {
                return Err(format!("{} is there already and is not replaced; name another directory", path.display()));
            }
        }
        let pair = Ed25519KeyPair::generate();
        let write = |path: &Path, pem: &str| {
            open_private(path, true)
                .and_then(|mut file| file.write_all(pem.as_bytes()).and_then(|()| file.sync_all()))
                .map_err(|error| format!("{} cannot be written: {error}", path.display()))
        };
        crate::storage::create_dir(directory)
            .map_err(|error| format!("{} cannot be created: {error}", directory.display()))?;
        // The library writes both keys into one text, of which other programs take the wrong one.
        let both = Zeroizing::new(pair.to_pem());
        let private = both.find(END_PRIVATE).map_or("", |end| &both[..end + END_PRIVATE.len()]);
        write(&files.private, &Zeroizing::new(format!("{private}\n")))?;
        write(&files.public, &format!("{}\n", pair.public_key().to_pem().trim_end()))?;
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{ChunkHasher, ManifestError};
    use crate::names::ModelName;
    use crate::secret::Secret;
    use crate::security::{Absorb, SmallHash};

    fn keys(salt: &str, signing: Option<&Path>, trusted: Option<&Path>) -> Result<ManifestKeys, String> {
        let salts = Salts { hardware: Secret::new("h"), api_key: Secret::new("a"), resource_key: Secret::new(salt) };
        ManifestKeys::new(&salts, signing, trusted, false)
    }

    /// The manifest of 3 MiB and a bit of plaintext.
    fn manifest() -> Manifest {
        let bytes: Vec<u8> = (0..(3 << 20) + 32).map(|i| (i % 251) as u8).collect();
        let mut hasher = ChunkHasher::new(0, 1 << 30);
        hasher.absorb(&bytes);
        let chunks = hasher.finish().unwrap();
        Manifest { plain_length: chunks.length + 3072 - 32 + 5, chunks }
    }

    fn model(folder: &str, file: &str) -> ModelName {
        ModelName::new(folder, file).unwrap()
    }

    fn subject(model: &ModelName) -> Subject<'_> {
        Subject { model, small: SmallHash::of(b"small"), small_length: Some(3072) }
    }

    #[test]
    fn what_was_signed_is_read_and_what_was_changed_is_not() {
        let (keys_here, manifest, m_bin) = (keys("salt", None, None).unwrap(), manifest(), model("models", "m.bin"));
        let text = keys_here.sign(subject(&m_bin), &manifest).unwrap();
        assert_eq!(keys_here.verify(&text, subject(&m_bin)), Ok(manifest.clone()));
        assert_eq!(text.lines().count(), 1);
        assert_eq!(keys("pepper", None, None).unwrap().verify(&text, subject(&m_bin)), Err(ManifestError::Forged));
        // A byte of the text, wherever it is, or a piece of it.
        for position in (0..text.len() - 1).step_by(97) {
            let mut changed = text.clone().into_bytes();
            changed[position] = if changed[position] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(keys_here.verify(&changed, subject(&m_bin)).is_err(), "byte {position}");
            assert!(keys_here.verify(&text[..position], subject(&m_bin)).is_err(), "cut at {position}");
        }
        for text in [String::new(), "\n".into(), text.repeat(3), "x".repeat(2 << 20), "a.b.c".into()] {
            assert!(keys_here.verify(&text, subject(&m_bin)).is_err());
        }
        // Another model's, another folder's, another version's.
        for (other, field) in [
            (subject(&model("maps", "m.bin")), "folder"),
            (subject(&model("models", "n.bin")), "filename"),
            (Subject { small: SmallHash::of(b"other"), ..subject(&m_bin) }, "small_sha256"),
        ] {
            assert_eq!(keys_here.verify(&text, other), Err(ManifestError::OtherUpload(field)));
        }
        let shorter = Subject { small_length: Some(3071), ..subject(&m_bin) };
        assert_eq!(keys_here.verify(&text, shorter), Err(ManifestError::Malformed("big_length")));
    }

    #[test]
    fn a_payload_that_contradicts_itself_is_refused_although_it_is_signed() {
        let (keys, manifest, model) = (keys("salt", None, None).unwrap(), manifest(), model("models", "m.bin"));
        let sign = |change: &dyn Fn(&mut Payload)| {
            let mut payload = Payload::new(subject(&model), &manifest);
            change(&mut payload);
            keys.installation.authenticate(claims(payload)).unwrap()
        };
        type Change = dyn Fn(&mut Payload);
        let changes: [(&str, &Change); 9] = [
            ("v", &|payload| payload.v = 2),
            ("big_length", &|payload| payload.big_length += 16),
            ("big_length", &|payload| payload.big_length = u64::MAX),
            ("big_length", &|payload| {
                payload.plain_length = 1 << 60;
                payload.big_length = (1 << 60) + 32 - 3072;
            }),
            ("plain_length", &|payload| payload.plain_length = u64::MAX),
            ("chunk", &|payload| payload.chunk = 1),
            ("chunk", &|payload| payload.chunk *= 2),
            ("sha256", &|payload| payload.sha256.truncate(100)),
            ("sha256", &|payload| payload.sha256.replace_range(..1, "=")),
        ];
        for (field, change) in changes {
            let refused = keys.verify(&sign(change), subject(&model));
            assert_eq!(refused, Err(ManifestError::Malformed(field)));
        }
        // Lengths that fit each other ask for no memory that the text does not fill.
        let huge = sign(&|payload| {
            payload.plain_length = (1 << 38) - 1;
            payload.big_length = (1 << 38) + 16 - 3072;
            payload.chunk = super::super::chunk_size(payload.big_length);
        });
        assert_eq!(keys.verify(&huge, subject(&model)), Err(ManifestError::Malformed("sha256")));
        let text = keys.installation.authenticate(JWTClaims {
            expires_at: Some(UnixTimeStamp::from_secs(5)),
            issuer: Some("somebody".into()),
            ..claims(Payload::new(subject(&model), &manifest))
        });
        assert_eq!(keys.verify(&text.unwrap(), subject(&model)), Ok(manifest.clone()), "other claims are ignored");
    }

    #[test]
    fn trusted_keys_accept_what_one_of_them_signed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let pairs: Vec<Keygen> = ["a", "b", "c"].map(|name| Keygen::write(&dir.path().join(name)).unwrap()).into();
        assert!(Keygen::write(&dir.path().join("a")).unwrap_err().contains("not replaced"));
        let private = fs::read_to_string(&pairs[0].private).unwrap();
        assert!(private.starts_with("-----BEGIN PRIVATE KEY-----") && !private.contains("PUBLIC"));
        let both = dir.path().join("both.pem");
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        fs::write(&both, format!("# old and new\n{}\n{}", read(&pairs[0].public), read(&pairs[1].public))).unwrap();
        let (manifest, model) = (manifest(), model("models", "m.bin"));
        let reader = keys("salt", None, Some(&both)).unwrap();
        assert!(reader.are_required());
        let signed =
            |pair: &Keygen| keys("salt", Some(&pair.private), None).unwrap().sign(subject(&model), &manifest).unwrap();
        for pair in &pairs[..2] {
            assert_eq!(reader.verify(&signed(pair), subject(&model)), Ok(manifest.clone()));
        }
        assert_eq!(reader.verify(&signed(&pairs[2]), subject(&model)), Err(ManifestError::Untrusted));
        let text = signed(&pairs[0]);
        let (first, second) = text.trim_end().split_once('\n').unwrap();
        assert_eq!(reader.verify(first, subject(&model)), Err(ManifestError::Unsigned));
        assert!(reader.verify(second, subject(&model)).is_err());
        assert_eq!(reader.verify(&format!("{first}\n{first}"), subject(&model)), Err(ManifestError::Untrusted));
        // Who does not ask for line two does not read it.
        assert!(keys("salt", None, None).unwrap().verify(&format!("{first}\nanything"), subject(&model)).is_ok());
    }

    #[test]
    fn the_manifest_that_a_box_makes_is_no_uploaders() {
        let (keys, manifest, model) = (keys("salt", None, None).unwrap(), manifest(), model("models", "m.bin"));
        let own = keys.sign_own(subject(&model), &manifest).unwrap();
        assert_eq!(keys.verify_own(&own, subject(&model)), Ok(manifest.clone()));
        assert_eq!(keys.verify(&own, subject(&model)), Err(ManifestError::Forged));
        let real = keys.sign(subject(&model), &manifest).unwrap();
        assert_eq!(keys.verify_own(&real, subject(&model)), Err(ManifestError::Forged));
    }

    #[test]
    fn files_that_hold_no_key_are_named_with_their_variable() {
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
            let error = keys("salt", signing.map(PathBuf::as_path), trusted.map(PathBuf::as_path)).unwrap_err();
            assert!(error.contains(expected) && error.lines().count() == 1, "{error}");
        }
    }
}
