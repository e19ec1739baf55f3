//! The end of a command's output.

use std::io::{self, Read};
use std::thread::JoinHandle;

use crate::threads;

/// How many bytes are kept. A line for each image of an engine fits.
pub(super) const KEPT: usize = 1024 * 1024;

/// Reads a stream on a thread of its own, so that the command never blocks on a full pipe, and keeps its end.
pub(super) struct Tail(JoinHandle<Vec<u8>>);

impl Tail {
    pub(super) fn of(stream: Option<impl Read + Send + 'static>) -> io::Result<Self> {
        let read = move || {
            let mut kept = Vec::new();
            let mut buffer = [0; 4096];
            let Some(mut stream) = stream else { return kept };
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                kept.extend_from_slice(&buffer[..count]);
                let excess = kept.len().saturating_sub(KEPT);
                kept.drain(..excess);
            }
            kept
        };
        threads::spawn("docker-output", read).map(Self)
    }

    /// Waits until the command has closed the stream.
    pub(super) fn finish(self) -> String {
        String::from_utf8_lossy(&self.0.join().unwrap_or_default()).into_owned()
    }
}
