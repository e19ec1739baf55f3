//! The Python service that the loader replaces, as it runs today: `tests/peer/seed_loader.py` under uvicorn, as a
//! process.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use super::client::{self, Download, Start};
use super::multipart::Form;
use super::process::command;
use super::raw::{Stream, request_from};
use super::resource_api::{EMAIL, PASSWORD, ResourceApi};
use super::s3::S3;
use super::tcp::free_port;

/// How long the peer may take to start: Python imports some hundred modules first.
const START: Duration = Duration::from_secs(30);
/// How long one call may take: the peer does one thing at a time, and other tests run as well.
const CALL: Duration = Duration::from_secs(300);
/// Everything that the peer imports.
const IMPORTS: &str = "import fastapi, uvicorn, python_multipart, requests, cryptography, boto3, jwt, yaml";

/// Why this machine cannot run the peer, if so.
pub fn why_missing() -> Option<String> {
    match Command::new("python3").args(["-c", IMPORTS]).stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            Some(said.lines().last().unwrap_or("python3 fails without a message").to_owned())
        }
        Err(error) => Some(format!("python3: {error}")),
    }
}

/// The Python service as a process, logged in; it is killed when dropped.
pub struct Peer {
    dir: TempDir,
    address: String,
    process: Child,
    started_in: Duration,
}

impl Peer {
    /// Starts it with this Resource API, this S3 server and these additional variables, in its own directory with its
    /// own cache.
    pub fn start(api: &ResourceApi, s3: &S3, env: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cdn = dir.path().join("cdn.yaml");
        fs::write(&cdn, s3.cdn_yaml()).unwrap();
        let mut all: Vec<(OsString, OsString)> = vec![
            ("RESOURCE_API_URL".into(), api.url().into()),
            ("CDN_CONFIG_PATH".into(), cdn.into()),
            ("PYTHONDONTWRITEBYTECODE".into(), "1".into()),
        ];
        all.extend(env.iter().map(|(name, value)| (name.into(), value.into())));
        let port = free_port().to_string();
        let address = format!("127.0.0.1:{port}");
        let log = File::create(log_path(&dir)).unwrap();
        let mut python = command(Path::new("python3"), dir.path(), &all, &address);
        // The developer's credentials for other services must not reach it.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
            python.env_remove(name);
        }
        python.env("AWS_CONFIG_FILE", dir.path().join("no-config"));
        python.args(["-m", "uvicorn", "seed_loader:app", "--port", &port, "--app-dir"]);
        python.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peer"));
        python.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let started = Instant::now();
        let mut peer = Self { dir, address, process: python.spawn().unwrap(), started_in: Duration::ZERO };
        peer.wait_until_healthy();
        peer.started_in = started.elapsed();
        let body = json!({ "email": EMAIL, "password": PASSWORD }).to_string();
        let headers = [("Content-Type", "application/json")];
        let reply = client::call(&peer.address, CALL, "POST", "/login", &headers, body.as_bytes()).unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        peer
    }

    fn wait_until_healthy(&mut self) {
        let deadline = Instant::now() + START;
        loop {
            // Dropping it prints what it wrote.
            if let Some(status) = self.process.try_wait().unwrap() {
                panic!("the peer ended during its start: {status}");
            }
            let health = client::call(&self.address, Duration::from_secs(2), "GET", "/health", &[], b"");
            if health.as_ref().is_ok_and(|reply| reply.status == 200) {
                return;
            }
            assert!(Instant::now() < deadline, "the peer's /health did not answer in time: {health:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The time from its start to its first answer.
    pub fn started_in(&self) -> Duration {
        self.started_in
    }

    /// The `host:port` that it listens on.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Where the big part of a file is cached.
    pub fn cache_file(&self, folder: &str, name: &str) -> PathBuf {
        self.dir.path().join(folder).join(format!("{name}.big"))
    }

    /// Uploads `size` bytes.
    pub fn upload(&self, folder: &str, name: &str, size: u64, from: impl Read + Send) {
        let form = Form::new(name, &[("folder", folder)], &[]);
        let headers = [("Content-Type", form.content_type.as_str())];
        let stream = Stream::connect(&self.address).unwrap();
        stream.set_timeout(CALL).unwrap();
        let path = format!("/upload/{}", client::segment(name));
        let body = form.around(from);
        let reply = request_from(stream, "POST", &path, &headers, form.length(size), body).unwrap();
        assert_eq!((reply.status, reply.text().as_str()), (200, r#"{"status":"ok"}"#));
    }

    /// Loads a file; panics if the status is not a success.
    pub fn load(&self, folder: &str, name: &str) -> Download {
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

fn log_path(dir: &TempDir) -> PathBuf {
    dir.path().join("peer.log")
}
