//! Names that clients send and that become parts of paths, object keys and URLs. These types guarantee that they are safe there.

use std::fmt;
use std::ops::Deref;

/// The longest name, in bytes. With the cache's suffixes it is still a valid file name.
pub const MAX_BYTES: usize = 200;

/// A model's file name: one path segment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileName(String);

/// A model's folder: one path segment that is also a valid S3 bucket name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Folder(String);

/// The full name of a model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelName {
    /// The folder, which is the bucket in the CDN.
    pub folder: Folder,
    /// The file name.
    pub file: FileName,
}

impl ModelName {
    /// Checks both names.
    pub fn new(folder: impl Into<String>, file: impl Into<String>) -> Result<Self, NameError> {
        Ok(Self { folder: Folder::new(folder)?, file: FileName::new(file)? })
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.folder, self.file)
    }
}

/// Why a text is not a valid name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// Empty, too long, `.`, `..`, or with a separator or control character.
    FileName,
    /// Not a bucket name.
    Folder,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FileName => write!(
                f,
                "filename must be one path segment of 1 to {MAX_BYTES} bytes without /, \\ and control characters"
            ),
            Self::Folder => f.write_str(
                "folder must be a bucket name: 3 to 63 lower-case letters, digits, dots and hyphens, \
                 with a letter or digit at both ends",
            ),
        }
    }
}

impl FileName {
    /// Checks `text`.
    pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
        let text = text.into();
        let valid = !matches!(text.as_str(), "" | "." | "..")
            && text.len() <= MAX_BYTES
            && !text.chars().any(|c| c.is_control() || matches!(c, '/' | '\\'));
        if valid { Ok(Self(text)) } else { Err(NameError::FileName) }
    }
}

impl Folder {
    /// Checks `text` by the rules for S3 bucket names.
    pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
        let text = text.into();
        let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        let valid = (3..=63).contains(&bytes.len())
            && bytes.iter().all(|b| alphanumeric(b) || matches!(b, b'.' | b'-'))
            && bytes.first().is_some_and(alphanumeric)
            && bytes.last().is_some_and(alphanumeric)
            && !text.contains("..")
            && text.parse::<std::net::Ipv4Addr>().is_err();
        if valid { Ok(Self(text)) } else { Err(NameError::Folder) }
    }
}

impl Deref for FileName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Deref for Folder {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_one_path_segment() {
        for good in ["m", "model.bin", "a b", "..hidden", "модель.onnx", "a%2Fb", "x..", &"n".repeat(200)] {
            assert!(FileName::new(good).is_ok(), "{good:?}");
        }
        for bad in ["", ".", "..", "a/b", "../x", "a\\b", "a\0b", "a\nb", "a\u{7f}", "a\u{85}b", &"n".repeat(201)] {
            assert_eq!(FileName::new(bad), Err(NameError::FileName), "{bad:?}");
        }
    }

    #[test]
    fn folders_are_bucket_names() {
        for good in ["models", "abc", "a-b.c", "123", &"f".repeat(63)] {
            assert!(Folder::new(good).is_ok(), "{good:?}");
        }
        for bad in [
            "",
            "ab",
            "Models",
            "a_b",
            ".abc",
            "abc.",
            "-abc",
            "a..b",
            "a/b",
            "..",
            "10.0.0.1",
            "a b c",
            &"f".repeat(64),
        ] {
            assert_eq!(Folder::new(bad), Err(NameError::Folder), "{bad:?}");
        }
    }
}
