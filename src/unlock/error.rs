//! Why an unlock fails.

use std::fmt;
use std::io;

use super::docker::DockerError;
use crate::api_client::ApiError;
use crate::binary_split::ArchiveError;

/// Why an unlock failed.
#[derive(Debug)]
pub enum UnlockError {
    /// The login failed.
    Login(ApiError),
    /// The key fragment could not be fetched.
    KeyFragment(ApiError),
    /// The archive is unusable.
    Archive(ArchiveError),
    /// A docker command failed.
    Docker(DockerError),
    /// The archive broke off or made no sense while it was read.
    Damaged(io::Error),
    /// The archive names no image that could be confirmed.
    NoTags,
    /// `API_VERSION` is not among the archive's tags.
    WrongVersion {
        /// The expected tag.
        expected: String,
        /// The tags in the archive.
        found: Vec<String>,
    },
    /// `docker load` succeeded, but the engine lacks this image.
    NotLoaded(String),
}

impl fmt::Display for UnlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Login(error) => write!(f, "login failed: {error}"),
            Self::KeyFragment(error) => write!(f, "the key fragment cannot be fetched: {error}"),
            Self::Archive(error) => error.fmt(f),
            Self::Docker(error) => error.fmt(f),
            Self::Damaged(error) => {
                write!(f, "the encrypted archive at IMAGES_PATH is damaged ({error}); copy it to the box again")
            }
            Self::NoTags => f.write_str("the archive names no image; make it with docker save NAME:TAG"),
            Self::WrongVersion { expected, found } => {
                write!(f, "API_VERSION is {expected}, but the archive holds {}", found.join(", "))
            }
            Self::NotLoaded(tag) => write!(f, "docker load reported success, but the engine has no image {tag}"),
        }
    }
}

impl From<DockerError> for UnlockError {
    fn from(error: DockerError) -> Self {
        Self::Docker(error)
    }
}

impl From<ArchiveError> for UnlockError {
    fn from(error: ArchiveError) -> Self {
        Self::Archive(error)
    }
}
