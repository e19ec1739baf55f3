//! An open file: reads of one version of a model, in whatever order programs and the kernel make them.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::service::{CallError, Service};
use super::stream::{KEPT, SKIPPED, Stream};
use super::tree::Version;
use crate::threads::lock;

/// So many places of a file are read in sequence at once.
const MAX_STREAMS: usize = 4;

/// A file that a program has open.
pub(super) struct OpenFile {
    service: Arc<Service>,
    pub(super) version: Arc<Version>,
    /// The one used last is the last.
    streams: Mutex<Vec<Place>>,
}

/// A place that is read in sequence.
struct Place {
    /// Where the stream will be after the reads that have begun.
    next: u64,
    stream: Arc<Mutex<Stream>>,
}

impl OpenFile {
    pub(super) fn new(service: Arc<Service>, version: Arc<Version>) -> Self {
        Self { service, version, streams: Mutex::default() }
    }

    /// Asks the service to hold the version.
    pub(super) fn hold(&self, deadline: Instant) -> Result<(), CallError> {
        self.service.hold(&self.version.model, &self.version.info, deadline)
    }

    /// Passes on the bytes from `offset` on: `size`, or fewer at the end of the file.
    pub(super) fn read<T>(
        &self,
        offset: u64,
        size: u32,
        limit: Duration,
        pass_on: impl FnOnce(Result<&[u8], CallError>) -> T,
    ) -> T {
        let end = (offset + u64::from(size)).min(self.version.info.size);
        if offset >= end {
            return pass_on(Ok(&[]));
        }
        let stream = self.stream(offset, end);
        let mut stream = lock(&stream);
        pass_on(stream.read(offset, end, limit))
    }

    /// Ends the responses that nobody has read for so long.
    pub(super) fn end_idle(&self, limit: Duration) {
        // A stream that is locked is being read.
        for place in lock(&self.streams).iter() {
            if let Ok(mut stream) = place.stream.try_lock() {
                stream.end_idle(limit);
            }
        }
    }

    /// The stream that `offset` follows, or else a new one.
    fn stream(&self, offset: u64, end: u64) -> Arc<Mutex<Stream>> {
        let mut places = lock(&self.streams);
        let follows = |place: &Place| (place.next.saturating_sub(KEPT)..=place.next + SKIPPED).contains(&offset);
        let mut place = match places.iter().rposition(follows) {
            Some(index) => places.remove(index),
            None => {
                if places.len() == MAX_STREAMS {
                    places.remove(0);
                }
                let stream = Stream::new(Arc::clone(&self.service), Arc::clone(&self.version), offset);
                Place { next: offset, stream: Arc::new(Mutex::new(stream)) }
            }
        };
        place.next = place.next.max(end);
        let stream = Arc::clone(&place.stream);
        places.push(place);
        stream
    }
}
