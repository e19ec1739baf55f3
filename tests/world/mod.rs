//! What the integration tests and the demo are built on: the servers and programs around the loader, and the loader as
//! a process.
//!
//! Nothing here uses the `loader` library, so that a mistake in the library cannot hide by being made on both sides.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::must_use_candidate
)]

pub mod browser;
pub mod client;
pub mod connect_proxy;
mod dice;
pub mod docker;
mod installation;
pub mod machine;
pub mod mount;
pub mod multipart;
pub mod peer;
pub mod process;
pub mod protocol;
pub mod pty;
pub mod raw;
pub mod resource_api;
pub mod resource_server;
pub mod s3;
pub mod s3_fault;
mod s3_forward;
pub mod s3_proxy;
pub mod s3_server;
pub mod s3_servers;
pub mod s3_store;
pub mod service;
pub mod small_disk;
pub mod tcp;
pub mod tls;
pub mod wall_clock;
pub mod weed;

use std::io::{self, Read};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

pub use dice::Dice;
pub use installation::World;
use sha2::{Digest, Sha256};

/// `size` bytes that depend on `seed` only.
pub fn pattern(size: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; size];
    PatternReader::new(size as u64, seed).read_exact(&mut bytes).expect("a pattern has the length that was asked for");
    bytes
}

/// The bytes of [`pattern`] as a stream, for files that should not be held in memory.
#[derive(Clone, Debug)]
pub struct PatternReader {
    size: u64,
    seed: u64,
    position: u64,
}

impl PatternReader {
    /// A reader of `size` bytes.
    pub fn new(size: u64, seed: u64) -> Self {
        Self { size, seed, position: 0 }
    }

    /// Eight bytes of the stream. splitmix64 of a counter: any word can be computed on its own, and no two seeds share
    /// a run that a test could take for the other.
    fn word(&self, index: u64) -> [u8; 8] {
        let mut z = self.seed.wrapping_mul(0xd134_2543_de82_ef95) ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    }
}

impl Read for PatternReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size - self.position).unwrap_or(usize::MAX);
        let count = buf.len().min(left);
        let mut done = 0;
        while done < count {
            // A fast path for whole words: most tests run in a debug build.
            if self.position.is_multiple_of(8) && count - done >= 8 {
                let mut index = self.position / 8;
                for piece in buf[done..count].chunks_exact_mut(8) {
                    piece.copy_from_slice(&self.word(index));
                    index += 1;
                }
                done += (count - done) / 8 * 8;
                self.position = index * 8;
                continue;
            }
            let offset = (self.position % 8) as usize;
            let word = self.word(self.position / 8);
            let step = (8 - offset).min(count - done);
            buf[done..done + step].copy_from_slice(&word[offset..offset + step]);
            done += step;
            self.position += step as u64;
        }
        Ok(count)
    }
}

/// SHA-256 in lower-case hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 in lower-case hex of everything that a reader returns.
pub fn sha256_hex_of(mut reader: impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes everything");
        text
    })
}

/// The `loader` program: the one that `LOADER_BINARY` names, else the one that Cargo built for this test, or, in an
/// example, the one in Cargo's directory.
pub fn loader_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("LOADER_BINARY") {
        return std::path::absolute(path).expect("LOADER_BINARY is a path");
    }
    if let Some(path) = option_env!("CARGO_BIN_EXE_loader") {
        return PathBuf::from(path);
    }
    let exe = std::env::current_exe().expect("this program has a path");
    let mut dir = exe.parent().expect("a program is in a directory");
    if dir.ends_with("examples") || dir.ends_with("deps") {
        dir = dir.parent().expect("Cargo's layout");
    }
    let path = dir.join("loader");
    assert!(path.is_file(), "no loader program at {}: run `cargo build` with the same profile first", path.display());
    path
}

/// Prints that a test is skipped, and why. In CI no test may be skipped.
pub fn skip(test: &str, why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{test}: {why}");
    // The test harness would capture `eprintln!`.
    let _ = std::io::Write::write_fmt(&mut io::stderr(), format_args!("SKIPPED: {test} ({why})\n"));
}

/// Whether tests take their large sizes.
pub fn in_ci() -> bool {
    std::env::var_os("CI").is_some()
}

/// Waits until `holds` returns true; panics with `what` if it does not in time.
pub fn eventually(at_most: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + at_most;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {at_most:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
