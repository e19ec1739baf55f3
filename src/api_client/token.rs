//! The Resource API's bearer token: whom it names and when it expires.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jwt_simple::prelude::{ECDSAP256PublicKeyLike, ES256PublicKey, JWTClaims, RS256PublicKey, RSAPublicKeyLike};
use jwt_simple::reexports::ct_codecs::{Base64UrlSafeNoPadding, Decoder};
use serde::{Deserialize, Serialize};

use crate::secret::Secret;
use crate::user::{Role, User};

/// A token is renewed when it has less than this left.
const RENEWAL_MARGIN: Duration = Duration::from_secs(60);

/// The longest token that is accepted.
const MAX_TOKEN: usize = 16 * 1024;

/// A token and its claims.
#[derive(Clone, Debug)]
pub struct Token {
    /// The text that goes into the `Authorization` header.
    pub bearer: Secret,
    /// The account.
    pub user: User,
    /// When it expires, if it does.
    pub expires_at: Option<SystemTime>,
}

impl Token {
    /// Whether it should be renewed before use at `now`.
    pub fn is_stale(&self, now: SystemTime) -> bool {
        self.expires_at.is_some_and(|expiry| now + RENEWAL_MARGIN >= expiry)
    }
}

/// The claims that this program uses, by the Resource API's names.
#[derive(Serialize, Deserialize)]
struct Claims {
    #[serde(default)]
    nameid: String,
    #[serde(default)]
    unique_name: String,
    #[serde(default, skip_serializing)]
    role: Role,
}

/// Reads tokens. With a public key it refuses tokens that were not signed with the private key.
pub enum TokenReader {
    /// Accepts every token: the TLS connection vouches for it.
    Trusting,
    /// RSA with SHA-256.
    Rs256(Box<RS256PublicKey>),
    /// ECDSA on P-256 with SHA-256.
    Es256(Box<ES256PublicKey>),
}

impl TokenReader {
    /// A reader that verifies with the PEM public key in the file, if there is one.
    pub fn new(public_key_path: Option<&Path>) -> Result<Self, String> {
        let Some(path) = public_key_path else { return Ok(Self::Trusting) };
        let unusable = |reason: &str| format!("JWT_PUBLIC_KEY_PATH names {}: {reason}", path.display());
        let pem = std::fs::read_to_string(path).map_err(|error| unusable(&error.to_string()))?;
        if let Ok(key) = RS256PublicKey::from_pem(&pem) {
            return Ok(Self::Rs256(Box::new(key)));
        }
        ES256PublicKey::from_pem(&pem)
            .map(|key| Self::Es256(Box::new(key)))
            .map_err(|_| unusable("it is neither an RSA nor a P-256 public key in PEM form"))
    }

    /// Reads a token.
    pub fn read(&self, bearer: Secret) -> Result<Token, String> {
        // It becomes part of a header, so it must be visible ASCII.
        if bearer.expose().len() > MAX_TOKEN || !bearer.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("the token is not a JWT".into());
        }
        let claims: JWTClaims<Claims> = match self {
            Self::Trusting => claims_unverified(bearer.expose()).ok_or("the token is not a JWT")?,
            Self::Rs256(key) => key.verify_token(bearer.expose(), None).map_err(unverified)?,
            Self::Es256(key) => key.verify_token(bearer.expose(), None).map_err(unverified)?,
        };
        let expires_at =
            claims.expires_at.and_then(|expiry| UNIX_EPOCH.checked_add(Duration::from_secs(expiry.as_secs())));
        let Claims { nameid, unique_name, role } = claims.custom;
        Ok(Token { bearer, user: User { id: nameid, email: unique_name, role }, expires_at })
    }
}

fn unverified(error: impl std::fmt::Display) -> String {
    format!("the token does not verify with the key at JWT_PUBLIC_KEY_PATH ({error})")
}

/// `jwt-simple` cannot read claims without verifying them, but its claims type and its codec are public.
fn claims_unverified(token: &str) -> Option<JWTClaims<Claims>> {
    let mut parts = token.split('.');
    let (_header, claims, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let json = Base64UrlSafeNoPadding::decode_to_vec(claims.trim_end_matches('='), None).ok()?;
    serde_json::from_slice(&json).ok()
}

#[cfg(test)]
mod tests {
    use jwt_simple::reexports::ct_codecs::Encoder;

    use super::*;

    fn token(claims: &str) -> Secret {
        Secret::new(format!("e30.{}.c2ln", Base64UrlSafeNoPadding::encode_to_string(claims).unwrap()))
    }

    #[test]
    fn reads_the_claims() {
        let token = TokenReader::Trusting
            .read(token(r#"{"nameid":"7f9c","unique_name":"a@b.c","role":"Admin","exp":2000000000,"iat":1,"x":[]}"#))
            .unwrap();
        assert_eq!(token.user, User { id: "7f9c".into(), email: "a@b.c".into(), role: Role::Admin });
        assert_eq!(token.expires_at, Some(UNIX_EPOCH + Duration::from_secs(2_000_000_000)));
    }

    #[test]
    fn a_token_is_stale_a_minute_before_it_expires() {
        let token = TokenReader::Trusting.read(token(r#"{"exp":1000}"#)).unwrap();
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert!(!token.is_stale(at(939)));
        assert!(token.is_stale(at(940)) && token.is_stale(at(2000)));
    }

    #[test]
    fn a_malformed_token_is_refused_and_not_quoted() {
        for bad in
            ["", "abc", "a.b", "a.!!.c", "a.b.c.d", "e30.bm90IGpzb24.c2ln", "a\r\nX: y.e30.c", &"a".repeat(20_000)]
        {
            let error = TokenReader::Trusting.read(Secret::new(bad)).unwrap_err();
            assert_eq!(error, "the token is not a JWT", "{bad:?}");
        }
    }
}
