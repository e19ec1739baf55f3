//! An open file: reads of one version of a model, in whatever order programs and the kernel make them.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::service::{CallError, Service};
use super::stream::{KEPT, SKIPPED, Stream};
use super::tree::Version;
use crate::threads::lock;

/// So many places of a file are read in sequence at once. Each takes up to 3 MiB here, and as much in the service.
const MAX_STREAMS: usize = 3;

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

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::thread;
    use std::time::SystemTime;

    use super::super::service::VersionInfo;
    use super::super::stream::READ_AHEAD;
    use super::*;
    use crate::configuration::Configuration;
    use crate::names::ModelName;

    const LIMIT: Duration = Duration::from_secs(60);

    fn byte(offset: u64) -> u8 {
        (offset % 251) as u8
    }

    /// A service whose only model has this size, and how many requests it got.
    fn service(size: u64) -> (OpenFile, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        thread::spawn(move || {
            for mut stream in listener.incoming().map(Result::unwrap) {
                let requests = Arc::clone(&counted);
                thread::spawn(move || {
                    let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                    for range in lines.filter_map(|line| Some(line.strip_prefix("Range: bytes=")?.to_owned())) {
                        requests.fetch_add(1, Ordering::Relaxed);
                        let (first, last) = range.split_once('-').unwrap();
                        let body: Vec<u8> = (first.parse().unwrap()..=last.parse().unwrap()).map(byte).collect();
                        let length = body.len();
                        let head = format!(
                            "HTTP/1.1 206 Partial Content\r\nETag: \"a\"\r\nContent-Range: bytes {range}/{size}\r\n\
                             Content-Length: {length}\r\n\r\n"
                        );
                        // The mount leaves when it has enough.
                        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
                    }
                });
            }
        });
        let configuration =
            Configuration::from_lookup(&|name| Ok((name == "BIND_ADDR").then(|| address.clone()))).unwrap();
        let version = Version {
            model: ModelName::new("models", "m.bin").unwrap(),
            info: VersionInfo { tag: "\"a\"".into(), size, modified: None },
            modified: SystemTime::now(),
            checked_at: Mutex::default(),
            is_reported: AtomicBool::new(false),
        };
        (OpenFile::new(Arc::new(Service::new(&configuration)), Arc::new(version)), requests)
    }

    /// Reads pieces of the file, which are numbered, and returns how many requests that took.
    fn requests_for(pieces: impl Iterator<Item = u64>, size: u64) -> usize {
        let (file, requests) = service(size);
        for piece in pieces {
            let offset = piece * READ_AHEAD;
            file.read(offset, READ_AHEAD as u32, LIMIT, |bytes| {
                assert!(bytes.unwrap().iter().copied().eq((offset..offset + READ_AHEAD).map(byte)), "piece {piece}");
            });
        }
        requests.load(Ordering::Relaxed)
    }

    #[test]
    fn reads_that_overtake_each_other_stay_on_one_stream() {
        const SIZE: u64 = 16 << 20;
        let pieces = SIZE / READ_AHEAD;
        // 1, 2, 4 and 8 MiB, and the last one.
        assert_eq!(requests_for(0..pieces, SIZE), 5);
        // Each second one comes first. Before the first of all there is no stream that it could follow.
        assert_eq!(requests_for((0..pieces).map(|piece| piece ^ 1), SIZE), 6);
        assert_eq!(requests_for((0..1).chain((1..pieces - 1).map(|piece| ((piece - 1) ^ 1) + 1)), SIZE), 5);
    }
}
