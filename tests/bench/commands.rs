//! The limits: what the machine's own tools need for the same work.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::world::hex;
use crate::world::protocol::{self, BLOCK, Salts};

/// Whether a program is there.
pub fn is_there(program: &str, argument: &str) -> bool {
    let status =
        Command::new(program).arg(argument).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    // `wrk -v` fails, and says its version.
    status.is_ok()
}

/// The key of all models, as `openssl` takes it.
pub fn resource_key() -> String {
    hex(&protocol::aes_key(protocol::resource_key(&Salts::default()).as_bytes()))
}

/// `openssl enc -d` of the file from this position on, whose output is a pipe.
pub fn decrypting(file: &Path, position: u64, key: &str, iv: &[u8]) -> Child {
    let mut input = File::open(file).expect("the file is there");
    input.seek(SeekFrom::Start(position)).expect("the file is longer");
    openssl(&["-d", "-K", key, "-iv", &hex(iv)]).stdin(input).stdout(Stdio::piped()).spawn().expect("openssl is there")
}

/// Seconds to decrypt a cached big part into a pipe. `small` is the small part before it.
pub fn decrypt_into_pipe(big: &Path, small: &[u8]) -> f64 {
    let started = Instant::now();
    let mut openssl = decrypting(big, 0, &resource_key(), &small[small.len() - BLOCK..]);
    let mut plain = openssl.stdout.take().expect("piped");
    let (mut buffer, mut length) = (vec![0; 256 * 1024], 0);
    while let Ok(count @ 1..) = plain.read(&mut buffer) {
        length += count as u64;
    }
    assert!(openssl.wait().expect("a child").success());
    assert!(length > 0 && length <= big.metadata().expect("the file is there").len());
    started.elapsed().as_secs_f64()
}

/// Seconds to encrypt a file into another one and upload that.
pub fn encrypt_and_send(plain: &Path, encrypted: &Path, address: &str) -> f64 {
    let started = Instant::now();
    let mut command = openssl(&["-K", &resource_key(), "-iv", &hex(&[7; BLOCK])]);
    let status = command.arg("-in").arg(plain).arg("-out").arg(encrypted).status().expect("openssl is there");
    assert!(status.success());
    curl(&["-T", &encrypted.display().to_string(), address]);
    started.elapsed().as_secs_f64()
}

fn openssl(arguments: &[&str]) -> Command {
    let mut command = Command::new("openssl");
    command.args(["enc", "-aes-256-cbc"]).args(arguments);
    command
}

/// Seconds that `curl` says a transfer took, and the bytes it got.
pub fn curl(arguments: &[&str]) -> (f64, u64) {
    let said = start_curl(arguments).wait_with_output().expect("a child");
    understand_curl(&said)
}

/// Runs several [`curl`]s at once; the seconds are those of all together.
pub fn curls(all: &[Vec<&str>]) -> (f64, u64) {
    let started = Instant::now();
    let running: Vec<Child> = all.iter().map(|arguments| start_curl(arguments)).collect();
    let got = running.into_iter().map(|child| understand_curl(&child.wait_with_output().expect("a child")).1);
    let bytes = got.sum();
    (started.elapsed().as_secs_f64(), bytes)
}

fn start_curl(arguments: &[&str]) -> Child {
    let mut command = Command::new("curl");
    command.args(["-s", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code} %{time_total} %{size_download}"]);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("curl is there")
}

fn understand_curl(output: &std::process::Output) -> (f64, u64) {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let words: Vec<&str> = said.split_whitespace().collect();
    assert!(output.status.success() && words[0].starts_with('2'), "curl: {} {said}", output.status);
    (words[1].parse().expect("curl says seconds"), words[2].parse().expect("curl says bytes"))
}

/// Lets what earlier turns have written reach the disk, so that it does not slow down the next one.
pub fn settle() {
    let _ = Command::new("sync").status();
}

/// Bytes that are free where `dir` is.
pub fn room(dir: &Path) -> Option<u64> {
    let output = Command::new("df").args(["-B1", "--output=avail"]).arg(dir).output().ok()?;
    String::from_utf8_lossy(&output.stdout).lines().nth(1)?.trim().parse().ok()
}
