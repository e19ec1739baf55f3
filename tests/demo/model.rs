//! The model that is uploaded, and the hash of what passes by. Neither is ever in memory as a whole.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::world::{PatternReader, hex};

/// Bytes of test data if there is no file.
const TEST_DATA: u64 = 32 << 20;

/// A model on its way to the loader.
pub struct Model {
    /// Its name in the loader's API.
    pub name: String,
    /// Length in bytes.
    pub size: u64,
    file: Option<PathBuf>,
}

impl Model {
    /// Bytes that no compression or deduplication can make less of.
    pub fn test_data() -> Self {
        Self { name: "demo.bin".to_owned(), size: TEST_DATA, file: None }
    }

    /// A file of the user, under its own name.
    pub fn file(path: PathBuf) -> Result<Self, String> {
        let failed = |why: &dyn std::fmt::Display| format!("{} cannot be read: {why}", path.display());
        let metadata = File::open(&path).and_then(|file| file.metadata()).map_err(|error| failed(&error))?;
        if !metadata.is_file() {
            return Err(failed(&"it is not a regular file"));
        }
        let name = path.file_name().and_then(|name| name.to_str());
        // The name goes into a form's header and into commands to copy; names that would need escaping are replaced.
        let plain = |name: &&str| !name.contains(|c: char| c.is_control() || matches!(c, '"' | '\\'));
        let name = name.filter(plain).unwrap_or("demo.bin").to_owned();
        Ok(Self { name, size: metadata.len(), file: Some(path) })
    }

    /// What it is, for people.
    pub fn description(&self) -> String {
        match &self.file {
            Some(path) => path.display().to_string(),
            None => format!("{} MiB of test data", self.size >> 20),
        }
    }

    /// Opens it for reading.
    pub fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        Ok(match &self.file {
            // If the file grows in the meantime, only the announced length is sent.
            Some(path) => Box::new(File::open(path)?.take(self.size)),
            None => Box::new(PatternReader::new(self.size, 0)),
        })
    }
}

/// A reader that hashes what it hands on.
pub struct HashReader<R> {
    inner: R,
    hash: Sha256,
    count: u64,
}

impl<R: Read> HashReader<R> {
    /// Wraps a reader.
    pub fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new(), count: 0 }
    }

    /// Number and SHA-256 of the bytes so far.
    pub fn finish(self) -> (u64, String) {
        (self.count, hex(&self.hash.finalize()))
    }
}

impl<R: Read> Read for HashReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        self.hash.update(&buf[..count]);
        self.count += count as u64;
        Ok(count)
    }
}
