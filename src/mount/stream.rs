//! Sequential reads of one version of a model, over responses that each last as long as they are read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::service::{Body, CallError, Service, patiently};
use super::tree::Version;
use crate::page_buffer::PageBuffer;

/// What the first request asks for when a program begins to read in sequence; each further one asks for twice as much.
const FIRST_WINDOW: u64 = 1 << 20;

/// What a request asks for at most. Each request makes the service prove the last chunk of the one before again, and begins with no
/// chunk proven ahead.
const MAX_WINDOW: u64 = 256 << 20;

/// How far the kernel is told to read ahead, which is also the most that it then asks for at once; by default 128 KiB.
pub(super) const READ_AHEAD: u64 = 512 << 10;

/// Bytes that were passed on already and are kept. The kernel reads ahead with two or three requests at once, and any of them may
/// come first; the ones that it overtook then find their bytes here.
pub(super) const KEPT: u64 = 2 * READ_AHEAD;

/// A read that begins so far past the last one still follows it: it has overtaken others.
pub(super) const SKIPPED: u64 = 2 * READ_AHEAD;

/// The length of a stream's buffer, unless a single read needs more. The bytes that are kept are moved when it is full.
const BUFFER: usize = 3 << 20;

/// A response that is being read, and the bytes before its position.
pub(super) struct Stream {
    service: Arc<Service>,
    version: Arc<Version>,
    body: Option<Body>,
    /// Where the next byte of `body` is in the file.
    position: u64,
    /// Begins with the bytes before `position`.
    buffer: PageBuffer,
    /// How many those are.
    filled: usize,
    /// How much the last request asked for; 0 for the first, which may be the only one.
    window: u64,
    used_at: Instant,
}

impl Stream {
    /// A stream that begins at `position`.
    pub(super) fn new(service: Arc<Service>, version: Arc<Version>, position: u64) -> Self {
        let (body, buffer, used_at) = (None, PageBuffer::default(), Instant::now());
        Self { service, version, body, position, buffer, filled: 0, window: 0, used_at }
    }

    /// The bytes of `offset..end`, which is not empty and in the file.
    pub(super) fn read(&mut self, offset: u64, end: u64, limit: Duration) -> Result<&[u8], CallError> {
        self.prepare(offset);
        patiently(limit, |deadline| {
            let result = self.read_to(offset, end, deadline);
            if result.is_err() {
                self.body = None;
            }
            result
        })?;
        self.used_at = Instant::now();
        let first = self.filled - (self.position - offset) as usize;
        Ok(&self.buffer[first..first + (end - offset) as usize])
    }

    /// Ends a response that nobody has read for so long, since it keeps one of the service's handlers.
    pub(super) fn end_idle(&mut self, limit: Duration) {
        if self.used_at.elapsed() >= limit {
            (self.body, self.buffer, self.filled) = (None, PageBuffer::default(), 0);
        }
    }

    /// Starts again at `offset` unless the stream can continue to there.
    fn prepare(&mut self, offset: u64) {
        let kept_from = self.position - self.filled as u64;
        if offset < kept_from || offset > self.position + SKIPPED || (self.body.is_none() && offset > self.position) {
            (self.body, self.position, self.filled, self.window) = (None, offset, 0, 0);
        }
    }

    /// Reads on to `end`, and keeps the bytes from `offset` on.
    fn read_to(&mut self, offset: u64, end: u64, deadline: Instant) -> Result<(), CallError> {
        while self.position < end {
            if self.body.as_ref().is_none_or(|body| body.remaining() == 0) {
                self.request(end, deadline)?;
            }
            self.make_room(self.position.saturating_sub(offset).max(KEPT) as usize, (end - self.position) as usize);
            let Some(body) = &mut self.body else { return Ok(()) };
            let count = (end - self.position).min(body.remaining());
            let filled = self.filled + count as usize;
            body.read_exact(&mut self.buffer[self.filled..filled], deadline)?;
            (self.filled, self.position) = (filled, self.position + count);
        }
        Ok(())
    }

    /// Makes room in the buffer for `count` bytes, and keeps the last `kept`.
    fn make_room(&mut self, kept: usize, count: usize) {
        if self.filled + count > BUFFER && self.filled > kept {
            self.buffer.copy_within(self.filled - kept..self.filled, 0);
            self.filled = kept;
        }
        let needed = self.filled + count;
        if self.buffer.len() < needed {
            self.buffer.resize(needed);
        }
    }

    /// Makes the request that begins at the position.
    fn request(&mut self, end: u64, deadline: Instant) -> Result<(), CallError> {
        // A read at the beginning of a file is most often followed by others.
        if self.position == 0 || self.filled > 0 || self.window > 0 {
            self.window = (2 * self.window).clamp(FIRST_WINDOW, MAX_WINDOW);
        }
        let length = self.window.max(end - self.position).min(self.version.info.size - self.position);
        let range = self.position..self.position + length;
        self.body = Some(self.service.open(&self.version.model, &self.version.info, range, deadline)?);
        Ok(())
    }
}
