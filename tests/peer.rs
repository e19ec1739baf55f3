//! The service that this one replaces reads what this one uploads, and the other way round.
//!
//! It runs as it does today: `tests/peer/seed_loader.py` under uvicorn, with its own HTTP, AES and S3 clients.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use crate::support::client::{self, Download};
use crate::support::multipart::Form;
use crate::support::process::command;
use crate::support::raw::{Stream, request_from};
use crate::support::resource_api::{EMAIL, PASSWORD};
use crate::support::tcp::free_port;
use crate::support::{PatternReader, pattern, sha256_hex_of};
use crate::world::World;

const MIB: u64 = 1 << 20;
/// How long the peer may take until it serves: Python reads some hundred modules first.
const START: Duration = Duration::from_secs(30);
/// How long one call may take as a whole; the peer does one thing after the other, and other tests run beside it.
const CALL: Duration = Duration::from_secs(300);
/// Everything that the peer imports.
const IMPORTS: &str = "import fastapi, uvicorn, python_multipart, requests, cryptography, boto3, jwt, yaml";

#[test]
fn files_of_all_sizes_go_from_the_loader_to_the_peer_and_back() {
    if is_missing() {
        return;
    }
    let world = World::with(|builder| builder.timeout(CALL));
    let peer = Peer::start(&world);
    for size in [0, 1, 10 << 10, 5 * MIB, largest()] {
        let (from_loader, from_peer) = (format!("from-loader-{size}.bin"), format!("from-peer-{size}.bin"));
        let (seed, other) = (size + 1, size + 2);

        let reply = world.service.upload_reader(&world.folder, &from_loader, size, PatternReader::new(size, seed));
        assert_eq!((reply.status, reply.text().as_str()), (200, r#"{"status":"ok"}"#));
        is_pattern(&peer.load(&world.folder, &from_loader), size, seed, "the peer");

        peer.upload(&world.folder, &from_peer, size, other);
        for state in ["the loader, cold", "the loader, warm"] {
            let download = world.service.load_to(&world.folder, &from_peer, &mut io::sink());
            is_pattern(&download, size, other, state);
        }
    }
}

#[test]
fn objects_of_the_peer_have_no_metadata_and_are_cached_all_the_same() {
    if is_missing() {
        return;
    }
    let (world, proxy) = World::behind_proxy();
    let peer = Peer::start(&world);
    let size = 200_000;
    peer.upload(&world.folder, "m.bin", size, 1);
    let metadata = world.s3.head_metadata(&world.folder, "m.bin.big").unwrap();
    assert!(metadata.is_empty(), "{metadata:?}");
    assert_eq!(world.keys(), ["m.bin.big"]);

    let bytes = pattern(200_000, 1);
    world.loads("m.bin", &bytes);
    assert!(proxy.bytes_sent("GET", "m.bin.big") > size / 2, "{:?}", proxy.requests());
    wait_until_cached(&world, "m.bin");
    proxy.down();
    world.loads("m.bin", &bytes);
}

/// Both versions are of one length: an old big part behind a new small part would decrypt without an error.
#[test]
fn version_two_of_the_peer_replaces_version_one_of_the_loader() {
    if is_missing() {
        return;
    }
    let world = World::new();
    let peer = Peer::start(&world);
    let (old, new) = (pattern(200_000, 1), pattern(200_000, 2));
    world.upload("m.bin", &old);
    world.loads("m.bin", &old);
    peer.upload(&world.folder, "m.bin", 200_000, 2);
    world.loads("m.bin", &new);
    world.loads("m.bin", &new);
    assert!(world.another_box().load(&world.folder, "m.bin").body == new, "another box loaded other bytes");
    is_pattern(&peer.load(&world.folder, "m.bin"), 200_000, 2, "the peer");
}

#[test]
fn version_two_of_the_loader_replaces_version_one_of_the_peer() {
    if is_missing() {
        return;
    }
    let world = World::new();
    let peer = Peer::start(&world);
    peer.upload(&world.folder, "m.bin", 200_000, 1);
    world.loads("m.bin", &pattern(200_000, 1));
    let new = pattern(200_000, 2);
    world.upload("m.bin", &new);
    world.loads("m.bin", &new);
    assert!(world.another_box().load(&world.folder, "m.bin").body == new, "another box loaded other bytes");
    // The first peer keeps its own copy for ever, and takes it for the new one: what it stored is of no interest here.
    drop(peer);
    is_pattern(&Peer::start(&world).load(&world.folder, "m.bin"), 200_000, 2, "a peer without a copy");
}

/// Whether this machine cannot run the peer; says so once, and fails where that must not be.
fn is_missing() -> bool {
    static WHY: OnceLock<Option<String>> = OnceLock::new();
    let Some(why) = WHY.get_or_init(|| {
        let why = why_missing()?;
        say(&format!("SKIPPED: interoperation with the Python service: {why}"));
        Some(why)
    }) else {
        return false;
    };
    assert!(std::env::var_os("CI").is_none(), "the peer is missing: {why}");
    true
}

fn why_missing() -> Option<String> {
    match Command::new("python3").args(["-c", IMPORTS]).stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            Some(said.lines().last().unwrap_or("python3 fails without a word").to_owned())
        }
        Err(error) => Some(format!("python3: {error}")),
    }
}

/// Size of the largest file.
fn largest() -> u64 {
    if ["CI", "TEST_S3_URL"].iter().any(|name| std::env::var_os(name).is_some()) {
        return 300 * MIB;
    }
    say("peer: the largest file is 20 MiB; with CI or TEST_S3_URL set it is 300 MiB");
    20 * MIB
}

/// A line that is seen even though the test passes: libtest captures what the macros print, and not this.
#[allow(clippy::explicit_write)]
fn say(line: &str) {
    writeln!(io::stderr(), "{line}").unwrap();
}

fn is_pattern(download: &Download, size: u64, seed: u64, by: &str) {
    let expected = sha256_hex_of(PatternReader::new(size, seed)).unwrap();
    assert_eq!(
        (download.status, download.content_length, download.received, download.sha256.as_str(), &download.error),
        (200, Some(size), size, expected.as_str(), &None),
        "{size} bytes, loaded by {by}"
    );
}

/// The end of a download reaches the client a moment before it counts as cached.
fn wait_until_cached(world: &World, name: &str) {
    let mut record = world.service.cache_file(&world.folder, name).into_os_string();
    record.push(".json");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !Path::new(&record).exists() {
        assert!(Instant::now() < deadline, "{} did not appear", record.display());
        thread::sleep(Duration::from_millis(10));
    }
}

/// The Python service as a process, logged in; it is killed when dropped.
struct Peer {
    dir: TempDir,
    address: String,
    process: Child,
}

impl Peer {
    /// On the Resource API and the S3 server of this world, in a directory, and so with a cache, of its own.
    fn start(world: &World) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cdn = dir.path().join("cdn.yaml");
        fs::write(&cdn, world.s3.cdn_yaml()).unwrap();
        let env: [(OsString, OsString); 3] = [
            ("RESOURCE_API_URL".into(), world.api.url().into()),
            ("CDN_CONFIG_PATH".into(), cdn.into()),
            ("PYTHONDONTWRITEBYTECODE".into(), "1".into()),
        ];
        let port = free_port().to_string();
        let address = format!("127.0.0.1:{port}");
        let log = File::create(log_path(&dir)).unwrap();
        let mut python = command(Path::new("python3"), dir.path(), &env, &address);
        // What a developer has set for other services is not for this one.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
            python.env_remove(name);
        }
        python.env("AWS_CONFIG_FILE", dir.path().join("no-config"));
        python.args(["-m", "uvicorn", "seed_loader:app", "--port", &port, "--app-dir"]);
        python.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peer"));
        python.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut peer = Self { dir, address, process: python.spawn().unwrap() };
        peer.wait_until_healthy();
        let body = json!({ "email": EMAIL, "password": PASSWORD }).to_string();
        let headers = [("Content-Type", "application/json")];
        let reply = client::call(&peer.address, CALL, "POST", "/login", &headers, body.as_bytes()).unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        peer
    }

    fn wait_until_healthy(&mut self) {
        let deadline = Instant::now() + START;
        loop {
            // Its drop shows what it said.
            if let Some(status) = self.process.try_wait().unwrap() {
                panic!("the peer ended at its start: {status}");
            }
            let health = client::call(&self.address, Duration::from_secs(2), "GET", "/health", &[], b"");
            if health.as_ref().is_ok_and(|reply| reply.status == 200) {
                return;
            }
            assert!(Instant::now() < deadline, "the peer's /health did not answer in time: {health:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Uploads the pattern of this seed.
    fn upload(&self, folder: &str, name: &str, size: u64, seed: u64) {
        let form = Form::new(name, &[("folder", folder)], &[]);
        let headers = [("Content-Type", form.content_type.as_str())];
        let stream = Stream::connect(&self.address).unwrap();
        stream.set_timeout(CALL).unwrap();
        let path = format!("/upload/{}", client::segment(name));
        let body = form.around(PatternReader::new(size, seed));
        let reply = request_from(stream, "POST", &path, &headers, form.length(size), body).unwrap();
        assert_eq!((reply.status, reply.text().as_str()), (200, r#"{"status":"ok"}"#));
    }

    fn load(&self, folder: &str, name: &str) -> Download {
        let path = format!("/load/{}", client::segment(name));
        let body = json!({ "filename": name, "folder": folder }).to_string();
        let mut start = Start::default();
        let download = client::download(&self.address, CALL, &path, body.as_bytes(), &mut start).unwrap();
        assert_eq!(download.status, 200, "{}", String::from_utf8_lossy(&start.0));
        download
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if thread::panicking() {
            eprintln!("the peer said:\n{}", fs::read_to_string(log_path(&self.dir)).unwrap_or_default());
        }
    }
}

/// Keeps the start of an answer, where the reason of a failure is, and lets the rest go.
#[derive(Default)]
struct Start(Vec<u8>);

impl Write for Start {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = 4096_usize.saturating_sub(self.0.len()).min(bytes.len());
        self.0.extend_from_slice(&bytes[..room]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn log_path(dir: &TempDir) -> PathBuf {
    dir.path().join("peer.log")
}
