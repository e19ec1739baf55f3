//! The keys that manifests are signed and checked with.

use std::io;
use std::path::Path;

use jwt_simple::prelude::{
    Duration, Ed25519KeyPair, Ed25519PublicKey, EdDSAKeyPairLike, EdDSAPublicKeyLike, HS256Key, JWTClaims, MACLike,
    UnixTimeStamp, VerificationOptions,
};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::key_files::{signing_key, trusted_keys};
use super::{MAX_MANIFEST_BYTES, Manifest, ManifestError, Payload, Subject};
use crate::security::{Salts, resource_key};

/// The keys that sign manifests, and those that a manifest has to be signed with.
pub struct ManifestKeys {
    /// Known to every box of the installation, but not to the CDN.
    installation: HS256Key,
    /// For the manifests that this box makes of old uploads. The key is a different one, so that none of them can pass as an
    /// uploader's.
    own: HS256Key,
    /// `SIGNING_KEY_PATH`.
    signing: Option<Ed25519KeyPair>,
    /// `TRUSTED_KEYS_PATH`.
    trusted: Option<Vec<Ed25519PublicKey>>,
    required: bool,
}

impl std::fmt::Debug for ManifestKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ManifestKeys(***)")
    }
}

impl ManifestKeys {
    /// The keys of this installation, and those in the configured files. An error is one line that names the variable whose file
    /// cannot be used.
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

    /// Whether old uploads are refused: because of `REQUIRE_MANIFEST`, or because they cannot have a trusted signature.
    pub fn are_required(&self) -> bool {
        self.required || self.trusted.is_some()
    }

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

    pub fn verify(&self, text: &str, subject: Subject<'_>) -> Result<Manifest, ManifestError> {
        if text.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLong);
        }
        let mut lines = text.lines();
        let (first, second) = (lines.next().unwrap_or_default(), lines.next());
        if lines.next().is_some() {
            return Err(ManifestError::Malformed("number of lines"));
        }
        // Checked in any case: with the wrong salt nothing decrypts, and this error says so.
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

    /// The text of a manifest that this box makes of an old upload, for its own cache.
    pub fn sign_own(&self, subject: Subject<'_>, manifest: &Manifest) -> io::Result<String> {
        let mut text = self.own.authenticate(claims(Payload::new(subject, manifest))).map_err(io::Error::other)?;
        text.push('\n');
        Ok(text)
    }

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

/// Claims about time are ignored: at this artificial time nothing has expired.
fn options() -> VerificationOptions {
    VerificationOptions {
        accept_future: true,
        artificial_time: Some(UnixTimeStamp::from_secs(0)),
        time_tolerance: Some(Duration::from_secs(0)),
        max_token_length: Some(MAX_MANIFEST_BYTES as usize),
        ..VerificationOptions::default()
    }
}

/// The payload of a verified line. Distinguishes a wrong signature from a malformed payload.
fn payload(verified: Result<JWTClaims<Payload>, jwt_simple::Error>) -> Result<Payload, ManifestError> {
    verified.map(|claims| claims.custom).map_err(|error| match error.downcast_ref::<serde_json::Error>() {
        Some(_) => ManifestError::Malformed("payload"),
        None => ManifestError::Forged,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::manifest::{ChunkHasher, Keygen, ManifestError};
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
    fn a_signed_manifest_is_accepted_and_a_changed_one_is_not() {
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
    fn a_signed_payload_that_contradicts_itself_is_refused() {
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
        // Lengths that fit each other reserve no memory before the text proves to be as long.
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
    fn trusted_keys_accept_only_what_one_of_them_signed() {
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
        // Without TRUSTED_KEYS_PATH line two is not read.
        assert!(keys("salt", None, None).unwrap().verify(&format!("{first}\nanything"), subject(&model)).is_ok());
    }

    #[test]
    fn a_manifest_that_a_box_made_does_not_pass_as_an_uploaders() {
        let (keys, manifest, model) = (keys("salt", None, None).unwrap(), manifest(), model("models", "m.bin"));
        let own = keys.sign_own(subject(&model), &manifest).unwrap();
        assert_eq!(keys.verify_own(&own, subject(&model)), Ok(manifest.clone()));
        assert_eq!(keys.verify(&own, subject(&model)), Err(ManifestError::Forged));
        let real = keys.sign(subject(&model), &manifest).unwrap();
        assert_eq!(keys.verify_own(&real, subject(&model)), Err(ManifestError::Forged));
    }
}
