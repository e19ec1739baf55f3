//! Sequential reads of one version of a model, over responses that each last as long as they are read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::service::{Body, CallError, Service, patiently};
use super::tree::Version;

/// What the first request asks for when a program begins to read in sequence; each further one asks for twice as much.
const FIRST_WINDOW: u64 = 1 << 20;

/// What a request asks for at most.
const MAX_WINDOW: u64 = 16 << 20;

/// How far the kernel is told to read ahead; by default 128 KiB.
pub(super) const READ_AHEAD: u64 = 1 << 20;

/// Bytes that were passed on already and are kept. The kernel reads ahead with up to three requests at once, and any of them may
/// come first.
pub(super) const KEPT: u64 = 256 << 10;

/// A read that begins so far past the last one still follows it.
pub(super) const SKIPPED: u64 = 512 << 10;

/// A response that is being read, and the bytes before its position.
pub(super) struct Stream {
    service: Arc<Service>,
    version: Arc<Version>,
    body: Option<Body>,
    /// Where the next byte of `body` is in the file.
    position: u64,
    /// The bytes before `position`.
    before: Vec<u8>,
    /// How much the last request asked for; 0 for the first, which may be the only one.
    window: u64,
    used_at: Instant,
}

impl Stream {
    /// A stream that begins at `position`.
    pub(super) fn new(service: Arc<Service>, version: Arc<Version>, position: u64) -> Self {
        Self { service, version, body: None, position, before: Vec::new(), window: 0, used_at: Instant::now() }
    }

    /// The bytes of `offset..end`, which is not empty and in the file.
    pub(super) fn read(&mut self, offset: u64, end: u64, limit: Duration) -> Result<&[u8], CallError> {
        self.prepare(offset);
        patiently(limit, |deadline| {
            let result = self.read_to(end, deadline);
            if result.is_err() {
                self.body = None;
            }
            result
        })?;
        self.used_at = Instant::now();
        let first = self.before.len() - (self.position - offset) as usize;
        Ok(&self.before[first..first + (end - offset) as usize])
    }

    /// Ends a response that nobody has read for so long, since it keeps one of the service's handlers.
    pub(super) fn end_idle(&mut self, limit: Duration) {
        if self.used_at.elapsed() >= limit {
            (self.body, self.before) = (None, Vec::new());
        }
    }

    /// Starts again at `offset` unless the stream can continue to there. Forgets bytes that are no longer needed.
    fn prepare(&mut self, offset: u64) {
        let kept_from = self.position - self.before.len() as u64;
        if offset < kept_from || offset > self.position + SKIPPED || (self.body.is_none() && offset > self.position) {
            (self.body, self.position, self.window) = (None, offset, 0);
            self.before.clear();
            return;
        }
        let excess = (self.before.len() as u64).saturating_sub(KEPT);
        self.before.drain(..excess.min(offset - kept_from) as usize);
    }

    fn read_to(&mut self, end: u64, deadline: Instant) -> Result<(), CallError> {
        while self.position < end {
            if self.body.as_ref().is_none_or(|body| body.remaining() == 0) {
                self.request(end, deadline)?;
            }
            let Some(body) = &mut self.body else { return Ok(()) };
            let count = (end - self.position).min(body.remaining());
            let filled = self.before.len();
            self.before.resize(filled + count as usize, 0);
            if let Err(error) = body.read_exact(&mut self.before[filled..], deadline) {
                self.before.truncate(filled);
                return Err(error);
            }
            self.position += count;
        }
        Ok(())
    }

    /// Makes the request that begins at the position.
    fn request(&mut self, end: u64, deadline: Instant) -> Result<(), CallError> {
        // A read at the beginning of a file is most often followed by others.
        if self.position == 0 || !self.before.is_empty() || self.window > 0 {
            self.window = (2 * self.window).clamp(FIRST_WINDOW, MAX_WINDOW);
        }
        let length = self.window.max(end - self.position).min(self.version.info.size - self.position);
        let range = self.position..self.position + length;
        self.body = Some(self.service.open(&self.version.model, &self.version.info, range, deadline)?);
        Ok(())
    }
}
