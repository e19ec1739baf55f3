//! S3 servers made by others, each in its own process.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::client::call;
use super::s3::{Keys, S3};
use super::tcp::free_port;

/// How long one may take to serve.
const START: Duration = Duration::from_secs(60);

/// A running server; it ends when dropped.
pub struct OtherServer {
    process: Child,
    _dir: TempDir,
    /// Its URL.
    pub endpoint: String,
    /// The keys of its only account.
    pub keys: Keys,
}

impl OtherServer {
    /// Starts the server with this name; an error says why it is not there.
    pub fn start(name: &str) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let data = dir.path().join("data");
        std::fs::create_dir(&data).map_err(|error| error.to_string())?;
        let port = free_port();
        let address = format!("127.0.0.1:{port}");
        let keys = if name == "s3rver" { Keys::new("S3RVER", "S3RVER") } else { Keys::new("access", "secret-access") };
        let log = File::create(dir.path().join("log")).map_err(|error| error.to_string())?;
        let mut command = match name {
            "moto" => {
                let mut command = Command::new("moto_server");
                command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
                command
            }
            "s3rver" => {
                let mut command = Command::new("s3rver");
                command.args(["-s", "-a", "127.0.0.1", "-p", &port.to_string(), "-d"]).arg(&data);
                command
            }
            "juicefs" => {
                let meta = format!("sqlite3://{}", dir.path().join("meta.db").display());
                let bucket = format!("{}/", data.display());
                let format = Command::new("juicefs")
                    .args(["format", "--storage", "file", "--bucket", &bucket, &meta, "models"])
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status();
                if !format.map_err(|error| format!("juicefs: {error}"))?.success() {
                    return Err("juicefs: format failed".into());
                }
                let mut command = Command::new("juicefs");
                command.args(["gateway", "--no-usage-report", "--multi-buckets", "--keep-etag", "--object-meta"]);
                command.arg(format!("--cache-dir={}", dir.path().join("cache").display()));
                command.args([&meta, &address]);
                command.env("MINIO_ROOT_USER", &keys.access).env("MINIO_ROOT_PASSWORD", &keys.secret);
                command
            }
            other => return Err(format!("no such server: {other}")),
        };
        let process = command
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|error| error.to_string())?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("{name}: {error}"))?;
        let server = Self { process, _dir: dir, endpoint: format!("http://{address}"), keys };
        let deadline = Instant::now() + START;
        while call(&address, Duration::from_secs(2), "GET", "/", &[], b"").is_err() {
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(server._dir.path().join("log")).unwrap_or_default();
                return Err(format!("{name} does not serve: {log}"));
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(server)
    }

    /// A client for it.
    pub fn s3(&self) -> S3 {
        S3::at(&self.endpoint, self.keys.clone(), self.keys.clone())
    }
}

impl Drop for OtherServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
