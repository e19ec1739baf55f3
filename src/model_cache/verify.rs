//! Compares a cached model with its manifest, and repairs it.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use serde::Serialize;

use super::record::Record;
use super::version::{Remote, Version};
use super::{ModelCache, reader};
use crate::cancellation::Cancellation;
use crate::manifest::Subject;
use crate::names::ModelName;
use crate::page_buffer::PageBuffer;

/// The result of a verification.
#[derive(Debug, Default, Serialize)]
pub struct Verified {
    /// The number of chunks that the model has.
    chunks: usize,
    /// Length of the chunks that were read.
    bytes: u64,
    /// The number of damaged chunks that were fetched again.
    repaired: usize,
    /// The number of damaged chunks that could not be fetched again. Loads will try once more.
    bad: usize,
    /// Why they could not.
    reason: Option<String>,
}

/// Why a model could not be verified.
#[derive(Debug)]
pub enum VerifyError {
    /// It is not in the cache.
    NotCached,
    /// Its manifest in the cache is not accepted.
    NoManifest,
    /// The client has gone.
    Cancelled,
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotCached => "the model is not in the cache",
            Self::NoManifest => {
                "the model's manifest in the cache cannot be used (the log says why); load the model again"
            }
            Self::Cancelled => "the client is gone",
        })
    }
}

impl ModelCache {
    /// Reads the chunks of a cached model that are in `chunks`. Damaged ones are fetched again, until that fails once.
    pub fn verify(
        &self,
        model: &ModelName,
        chunks: Range<usize>,
        remote: &Arc<dyn Remote>,
    ) -> Result<Verified, VerifyError> {
        let entry = self.entry(model);
        let Some(record) = Record::read(&entry.record()).filter(|_| entry.big.exists()) else {
            return Err(VerifyError::NotCached);
        };
        let subject = Subject { model, small: record.small_sha256, small_length: None };
        let version = self.find_any(&entry, subject, remote).ok_or(VerifyError::NoManifest)?;
        let mut verified = Verified { chunks: version.count(), ..Verified::default() };
        let chunks = chunks.start..chunks.end.min(version.count());
        let mut buffer = PageBuffer::default();
        for index in chunks {
            Cancellation::check().map_err(|_| VerifyError::Cancelled)?;
            let bytes = version.bytes_of(index..index + 1);
            verified.bytes += bytes.end - bytes.start;
            if version.is_intact(index, &mut buffer) {
                continue;
            }
            if verified.reason.is_none()
                && let Err(error) = version.repair(bytes, index, &mut buffer)
            {
                log::warn!("chunk {index} of the cached {model} cannot be repaired: {error}");
                verified.reason = Some(error.to_string());
            }
            *(if verified.reason.is_none() { &mut verified.repaired } else { &mut verified.bad }) += 1;
        }
        Ok(verified)
    }
}

impl Version {
    /// Whether the chunk in the file has its hash. If not, it is marked as missing.
    fn is_intact(&self, index: usize, buffer: &mut PageBuffer) -> bool {
        let Some(expected) = self.stored(index) else { return false };
        let is_intact = self.read_stored(index, buffer) && reader::digest(buffer) == expected;
        if !is_intact {
            self.mark_bad(index);
        }
        is_intact
    }

    fn repair(self: &Arc<Self>, bytes: Range<u64>, index: usize, buffer: &mut PageBuffer) -> io::Result<()> {
        io::copy(&mut self.read(bytes), &mut io::sink())?;
        if self.is_intact(index, buffer) { Ok(()) } else { Err(io::Error::other("the cache cannot be written")) }
    }
}
