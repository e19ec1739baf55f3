//! Requests that are sent in pieces, and how the tests see what becomes of them.

use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant};

use crate::world::eventually;
use crate::world::raw::Stream;
use crate::world::service::{Service, ServiceBuilder};

/// How long the machine that runs the tests may take beyond a limit that the service keeps.
pub const SLACK: Duration = Duration::from_secs(6);

pub fn with_limit(seconds: u32) -> ServiceBuilder {
    Service::builder().env("CLIENT_STALL_SECONDS", seconds.to_string())
}

/// Descriptors and threads come back to what they were. An idle thread of the library lives 5 s.
pub fn settles(service: &Service, descriptors: usize, threads: usize) {
    eventually(Duration::from_secs(20), "descriptors and threads return", || {
        service.descriptors() <= descriptors + 2 && service.threads() <= threads + 4
    });
}

/// Reads until the service ends the connection: how long it took, and what it said.
pub fn end_of(stream: &mut Stream) -> (Duration, String) {
    let (started, mut said) = (Instant::now(), Vec::new());
    if let Err(error) = stream.read_to_end(&mut said) {
        assert!(!matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "the connection stays open");
    }
    (started.elapsed(), String::from_utf8_lossy(&said).into_owned())
}

pub fn load_head(folder: &str, name: &str) -> String {
    let body = format!(r#"{{"folder":"{folder}"}}"#);
    let length = body.len();
    format!(
        "POST /load/{name} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

pub const UPLOAD: &str =
    "POST /upload/stalled.bin HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n";
pub const FILE: &str = "--b\r\nContent-Disposition: form-data; name=data; filename=x\r\n\r\nDATA";
