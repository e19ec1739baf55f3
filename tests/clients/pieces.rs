//! Requests that a test sends in pieces, and helpers to watch what happens to them.

use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant};

use crate::world::eventually;
use crate::world::raw::Stream;
use crate::world::service::{Service, ServiceBuilder};

/// How much later than the service's limit an answer may come on a busy machine. By default the limit is 30 s.
pub const SLACK: Duration = Duration::from_secs(20);

pub fn with_limit(seconds: u32) -> ServiceBuilder {
    Service::builder().env("CLIENT_STALL_SECONDS", seconds.to_string())
}

/// Waits until the service has as many descriptors and threads as before. An idle thread of `tiny_http` lives 5 s.
pub fn settles(service: &Service, descriptors: usize, threads: usize) {
    eventually(Duration::from_secs(20), "descriptors and threads return", || {
        service.descriptors() <= descriptors + 2 && service.threads() <= threads + 4
    });
}

/// Reads until the service closes the connection; returns how long that took and what it sent.
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
