//! A loader that is watched from the moment of its start.

use std::ffi::OsString;
use std::path::Path;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use crate::world::loader_binary;
use crate::world::process::{Captured, spawn};
use crate::world::raw::{Stream, exchange};
use crate::world::tcp::free_port;

/// Only a hang takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// The process; it is killed when dropped.
pub struct Started {
    child: Child,
    address: String,
    at: Instant,
}

impl Started {
    /// Starts a loader with its directories under `dir`.
    pub fn in_dir(dir: &Path, env: &[(OsString, OsString)]) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let at = Instant::now();
        let child = spawn(&loader_binary(), dir, env, &address, &Captured::default());
        Self { child, address, at }
    }

    /// Its `BIND_ADDR`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// How many milliseconds after the start a `GET` of this path was first answered with 200.
    pub fn until(&self, path: &str) -> f64 {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        loop {
            if let Ok(stream) = Stream::connect(&self.address)
                && exchange(stream, request.as_bytes()).starts_with(b"HTTP/1.1 200")
            {
                return self.at.elapsed().as_secs_f64() * 1000.0;
            }
            assert!(self.at.elapsed() < PATIENCE, "{path} is not answered with 200");
            thread::sleep(Duration::from_micros(100));
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
