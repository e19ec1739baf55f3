//! The encrypted archive of container images: checked before any byte is used, then read as plaintext.

mod manifest;
mod record;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::security::{
    AesKey, BLOCK, DecryptError, DecryptReader, HELD_BACK, decrypt_beginning, decrypt_whole, plain_length,
};

pub use self::manifest::{ManifestReader, loaded_tags, tag_of};
pub use self::record::{ArchiveIdentity, Loading, UnlockRecord};

/// Size of a tar header.
const TAR_BLOCK: usize = 512;

/// The shortest archive: initialization vector, one tar header, padding.
const SHORTEST: u64 = (BLOCK + TAR_BLOCK + BLOCK) as u64;

/// Why an archive is unusable.
#[derive(Debug)]
pub enum ArchiveError {
    /// It cannot be read.
    Unreadable(io::Error),
    /// Its length or its last block shows that its end is missing.
    Truncated {
        /// The length of the file.
        length: u64,
    },
    /// It does not decrypt to an archive: the key fragment belongs to another one.
    WrongKey,
}

impl fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => write!(f, "the encrypted archive at IMAGES_PATH cannot be read: {error}"),
            Self::Truncated { length } => write!(
                f,
                "the encrypted archive at IMAGES_PATH is truncated: it ends after {length} bytes; copy it to the box again"
            ),
            Self::WrongKey => f.write_str(
                "the key fragment does not fit the encrypted archive at IMAGES_PATH: it is the key of another archive, \
                 or the file is no archive",
            ),
        }
    }
}

impl From<io::Error> for ArchiveError {
    fn from(error: io::Error) -> Self {
        Self::Unreadable(error)
    }
}

/// The format of an archive's plaintext. Docker reads all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A plain tar, whose manifest can be read on the way to docker.
    Tar,
    /// A tar compressed with gzip, xz or zstd.
    Compressed,
}

impl Format {
    /// Detects the format from the first bytes of the plaintext; none if it is no archive.
    fn of(head: &[u8]) -> Option<Self> {
        const GZIP: &[u8] = &[0x1f, 0x8b, 0x08];
        const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];
        const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
        if head.get(257..262) == Some(b"ustar") {
            return Some(Self::Tar);
        }
        [GZIP, XZ, ZSTD].iter().any(|magic| head.starts_with(magic)).then_some(Self::Compressed)
    }
}

/// An archive whose beginning and end were checked: its key fits, and it is not truncated.
pub struct Archive {
    file: File,
    key: AesKey,
    format: Format,
    plain_length: u64,
}

impl Archive {
    /// Opens and checks the archive at `path` with the key derived from `key_fragment`.
    pub fn open(path: &Path, key_fragment: &[u8]) -> Result<Self, ArchiveError> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let truncated = ArchiveError::Truncated { length };
        if length < SHORTEST {
            return Err(truncated);
        }
        let key = AesKey::from_secret(key_fragment);

        // The beginning first: it reveals a wrong key, under which the end means nothing.
        let mut head = [0; BLOCK + TAR_BLOCK];
        file.read_exact_at(&mut head, 0)?;
        let head = decrypt_beginning(&head, &key).unwrap_or_default();
        let format = Format::of(&head).ok_or(ArchiveError::WrongKey)?;

        if !length.is_multiple_of(BLOCK as u64) {
            return Err(truncated);
        }
        let mut tail = [0; HELD_BACK];
        file.read_exact_at(&mut tail, length - HELD_BACK as u64)?;
        let plain_length = match plain_length(length, &tail, &key) {
            Ok(plain_length) => plain_length,
            Err(DecryptError::TooShort | DecryptError::NotWholeBlocks | DecryptError::BadPadding) => {
                return Err(truncated);
            }
        };
        // One block in 256 looks padded by chance. A whole tar also ends in zeros.
        if format == Format::Tar && !ends_in_zeros(&file, length, &key)? {
            return Err(truncated);
        }
        Ok(Self { file, key, format, plain_length })
    }

    /// What the plaintext is.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Length of the plaintext in bytes.
    pub fn plain_length(&self) -> u64 {
        self.plain_length
    }

    /// The plaintext.
    pub fn into_reader(self) -> DecryptReader<File> {
        DecryptReader::new(self.file, self.key)
    }
}

/// Whether the plaintext ends in the zeros of a tar's last block.
fn ends_in_zeros(file: &File, length: u64, key: &AesKey) -> io::Result<bool> {
    // Each ciphertext block is the initialization vector of the next one.
    let mut tail = [0; BLOCK + TAR_BLOCK];
    file.read_exact_at(&mut tail, length - (BLOCK + TAR_BLOCK) as u64)?;
    let plain = decrypt_whole(&tail, key).unwrap_or_else(|_| vec![1]);
    Ok(plain.iter().all(|byte| *byte == 0))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::security::EncryptWriter;

    const FRAGMENT: &[u8] = b"fragment";

    fn archive(plain: &[u8]) -> Vec<u8> {
        let mut writer = EncryptWriter::new(Vec::new(), &AesKey::from_secret(FRAGMENT)).unwrap();
        writer.write_all(plain).unwrap();
        writer.finish().unwrap()
    }

    fn open(bytes: &[u8], fragment: &[u8]) -> Result<Archive, ArchiveError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        Archive::open(file.path(), fragment)
    }

    fn tar() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(5000);
        builder.append_data(&mut header, "layer", &vec![0xaa; 5000][..]).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_whole_archive_opens_and_reads() {
        let archive = open(&archive(&tar()), FRAGMENT).unwrap();
        assert_eq!((archive.format(), archive.plain_length()), (Format::Tar, tar().len() as u64));
        let mut plain = Vec::new();
        archive.into_reader().read_to_end(&mut plain).unwrap();
        assert!(plain == tar());
        let gzip = [&[0x1f, 0x8b, 8][..], &[7; 1000]].concat();
        assert_eq!(open(&super::tests::archive(&gzip), FRAGMENT).unwrap().format(), Format::Compressed);
    }

    #[test]
    fn a_wrong_key_and_truncation_are_different_errors_at_every_length() {
        let whole = archive(&tar());
        for length in (0..whole.len()).step_by(7).chain([whole.len() - 1, whole.len() - 16]) {
            let error = open(&whole[..length], FRAGMENT).err().unwrap();
            assert!(matches!(error, ArchiveError::Truncated { .. }), "length {length}: {error}");
        }
        assert!(matches!(open(&whole, b"other"), Err(ArchiveError::WrongKey)));
        assert!(matches!(open(&whole[..whole.len() - 1], b"other"), Err(ArchiveError::WrongKey)));
        assert!(matches!(open(&archive(&[7; 5000]), FRAGMENT), Err(ArchiveError::WrongKey)));
    }
}
