//! Why a model could not be loaded.

use std::fmt;
use std::io;

use super::login::LoginError;
use super::resource_api::ApiError;
use crate::cdn_manager::CdnError;
use crate::manifest::ManifestError;
use crate::model_cache::OfflineError;
use crate::security::DecryptError;

/// Why a model could not be loaded.
#[derive(Debug)]
pub enum LoadError {
    /// Nobody has logged in since the start.
    NotLoggedIn,
    /// The small part could not be fetched.
    Small(ApiError),
    /// The Resource API is away, and the model cannot be loaded offline.
    Offline(ApiError, OfflineError),
    /// The requested range begins past the end.
    NoSuchRange {
        /// Length of the plaintext in bytes.
        length: u64,
    },
    /// The client wants a version (`If-Match`) that is neither the current one nor held.
    Replaced,
    /// The CDN configuration could not be loaded.
    Config(LoginError),
    /// The big part could not be fetched.
    Big(CdnError),
    /// This box does not accept the manifest of the big part.
    Manifest(ManifestError),
    /// The big part has no manifest, and this is why it needs one.
    NoManifest(&'static str),
    /// The parts in the Resource API and in the CDN do not belong together.
    TornPair,
    /// The parts do not decrypt.
    Decrypt(DecryptError),
    /// The cache, or the transfer into it, failed.
    Io(io::Error),
}

impl LoadError {
    /// The kind of failure for programs, if there is more to say than that it failed: `missing` or `refused`.
    pub fn kind(&self) -> Option<&'static str> {
        match self {
            // 70: the Resource API has no such file.
            Self::Small(ApiError::NotFound(_) | ApiError::Business { code: 70, .. }) => Some("missing"),
            Self::Small(ApiError::Unauthorized(_) | ApiError::Business { .. }) | Self::NotLoggedIn => Some("refused"),
            _ => None,
        }
    }

    /// Whether the Resource API is away, so that a later load may succeed.
    pub(super) fn is_away(&self) -> bool {
        matches!(self, Self::Small(error) | Self::Offline(error, _) if error.is_away())
    }

    /// Whether the parts did not fit each other. An upload may be replacing them, so a second try can find the new pair.
    pub(super) fn is_worth_a_retry(&self) -> bool {
        matches!(self, Self::NoManifest(_) | Self::TornPair | Self::Decrypt(_))
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLoggedIn => f.write_str("log in first: POST /login with email and password"),
            Self::Small(ApiError::NotFound(_)) => {
                f.write_str("the Resource API has no model of this name in this folder; check both")
            }
            Self::Small(error) => write!(f, "the small part of the model cannot be fetched: {error}"),
            Self::Offline(away, refusal) => {
                write!(f, "the small part of the model cannot be fetched: {away}; offline: {refusal}")
            }
            Self::NoSuchRange { length } => write!(f, "the range begins past the model's {length} bytes"),
            Self::Replaced => f.write_str("the model was replaced by a new upload; load it without If-Match"),
            Self::Config(error) => write!(f, "the big part of the model cannot be fetched: {error}"),
            Self::Big(error) => write!(f, "the big part of the model cannot be fetched: {error}"),
            Self::Manifest(error) => write!(f, "the manifest of the model {error}"),
            Self::NoManifest(reason) => write!(
                f,
                "the model has no manifest in the CDN, so it cannot be verified, and {reason}; upload the model again"
            ),
            Self::TornPair => f.write_str(
                "the model's parts in the Resource API and in the CDN are of different uploads; upload the model again",
            ),
            Self::Decrypt(error) => write!(f, "the model cannot be decrypted: {error} (check RESOURCE_KEY_SALT)"),
            Self::Io(error) => write!(f, "the model cannot be loaded: {error}"),
        }
    }
}
