//! A real Docker engine: the one that answers, or a `dockerd` of this test process.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::{hex, pattern, sha256_hex};

/// An engine that answers at this address.
#[derive(Debug)]
pub struct Engine {
    /// `DOCKER_HOST` for it; none for the one that the environment names.
    pub host: Option<String>,
    /// Its process, if it is this process's own.
    pub pid: Option<u32>,
    /// Where it keeps its files, if it is this process's own.
    pub directory: Option<PathBuf>,
}

/// The engine for this process's tests, or why there is none.
pub fn engine() -> Result<&'static Engine, String> {
    static ENGINE: OnceLock<Result<Engine, String>> = OnceLock::new();
    ENGINE.get_or_init(|| answering().map_or_else(|| Engine::start(None), Ok)).as_ref().map_err(Clone::clone)
}

/// The engine that the environment names, if it answers.
pub fn answering() -> Option<Engine> {
    Some(Engine { host: None, pid: None, directory: None }).filter(Engine::answers)
}

/// The engine, or a line that says that the test is skipped. In CI there is nothing to skip.
pub fn engine_or_skip(test: &str) -> Option<&'static Engine> {
    match engine() {
        Ok(engine) => Some(engine),
        Err(why) if std::env::var_os("CI").is_some() => panic!("no Docker engine: {why}"),
        Err(why) => {
            // Not `eprintln!`, which the test harness would keep to itself.
            let _ = writeln!(std::io::stderr(), "SKIPPED: {test} needs a Docker engine ({why})");
            None
        }
    }
}

impl Engine {
    /// Starts a `dockerd` that ends with this process. `size` limits its storage, in bytes.
    pub fn start(size: Option<u64>) -> Result<Self, String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("loader-dockerd-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).map_err(|error| error.to_string())?;
        if let Some(size) = size {
            let status = Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
                .arg(&directory)
                .status();
            if !status.is_ok_and(|status| status.success()) {
                return Err("a file system of limited size cannot be mounted".into());
            }
        }
        let host = format!("unix://{}/docker.sock", directory.display());
        let (sender, receiver) = mpsc::channel();
        let (at, bind) = (directory.clone(), host.clone());
        // The kernel ends the daemon when the thread that started it ends, so that thread must stay.
        thread::spawn(move || {
            let log = File::create(at.join("log")).expect("a new directory takes files");
            let mut command = Command::new("dockerd");
            command
                .args(["--iptables=false", "--bridge=none", "-H", &bind])
                .arg("--data-root")
                .arg(at.join("data"))
                .arg("--exec-root")
                .arg(at.join("exec"))
                .arg("--pidfile")
                .arg(at.join("pid"))
                .stdin(Stdio::null())
                .stdout(log.try_clone().expect("a descriptor more"))
                .stderr(log);
            #[allow(unsafe_code)]
            // SAFETY: the call is async-signal-safe and touches no memory.
            unsafe {
                command.pre_exec(|| {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                    Ok(())
                });
            }
            let child = command.spawn();
            let _ = sender.send(child.as_ref().map(std::process::Child::id).map_err(ToString::to_string));
            if let Ok(mut child) = child {
                let _ = child.wait();
            }
            loop {
                thread::park();
            }
        });
        let pid = receiver.recv().map_err(|error| error.to_string())?.map_err(|error| format!("dockerd: {error}"))?;
        let engine = Self { host: Some(host), pid: Some(pid), directory: Some(directory.clone()) };
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            if engine.answers() {
                return Ok(engine);
            }
            if !Path::new(&format!("/proc/{pid}")).exists() {
                break;
            }
            thread::sleep(Duration::from_millis(200));
        }
        let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
        Err(format!("dockerd did not start: {}", log.lines().last().unwrap_or_default()))
    }

    fn answers(&self) -> bool {
        let output = self.command(&["version", "--format", "{{.Server.Version}}"]).output();
        output.is_ok_and(|output| output.status.success())
    }

    /// A `docker` command for this engine.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(arguments);
        if let Some(host) = &self.host {
            command.env("DOCKER_HOST", host);
        }
        command
    }

    /// Runs a `docker` command that must succeed, and gives its output.
    pub fn docker(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().expect("docker is there");
        assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Whether there is an image with this tag.
    pub fn has(&self, tag: &str) -> bool {
        self.command(&["image", "inspect", tag]).output().is_ok_and(|output| output.status.success())
    }

    /// Runs a container of the image, and gives what it came to.
    pub fn run(&self, tag: &str) -> Output {
        self.command(&["run", "--rm", "--network", "none", tag]).output().expect("docker is there")
    }

    /// Removes an image, if it is there.
    pub fn remove(&self, tag: &str) {
        let _ = self.command(&["image", "rm", "--force", tag]).output();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let (Some(pid), Some(directory)) = (self.pid, &self.directory) {
            super::process::signal(pid, libc::SIGTERM);
            for _ in 0..100 {
                if !Path::new(&format!("/proc/{pid}")).exists() {
                    break;
                }
                thread::sleep(Duration::from_millis(100));
            }
            let _ = Command::new("umount").arg("-l").arg(directory).output();
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}

/// The words that the image's program says.
pub const GREETING: &str = "hello from the unlocked image";

/// A small program without any library.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let directory = std::env::temp_dir().join(format!("loader-hello-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a temporary directory");
        let (source, program) = (directory.join("hello.rs"), directory.join("hello"));
        std::fs::write(&source, format!("fn main() {{ println!(\"{GREETING}\") }}")).expect("a temporary file");
        let output = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
            .args(["-O", "-C", "target-feature=+crt-static", "-o"])
            .args([&program, &source])
            .output()
            .expect("there is a compiler");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        program
    })
}

/// A `docker save` tar of images `FROM scratch` with these tags, each with a layer of `size` random-looking bytes. It is
/// written as docker 25 and later do, OCI layout with docker's manifest, or as docker did before.
pub fn saved_images(tags: &[&str], size: usize, oci: bool) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let (mut docker_manifest, mut oci_manifests) = (Vec::new(), Vec::new());
    let path = |digest: &str, classic: String| if oci { format!("blobs/sha256/{digest}") } else { classic };
    for (number, tag) in tags.iter().enumerate() {
        let layer = layer(size, number as u64 + tag.len() as u64);
        let layer_digest = sha256_hex(&layer);
        let config = serde_json::json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
            "config": {"Cmd": ["/hello"], "Labels": {"tag": tag}},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
        });
        let config = serde_json::to_vec(&config).expect("JSON");
        let config_digest = sha256_hex(&config);
        let layer_path = path(&layer_digest, format!("{layer_digest}/layer.tar"));
        let config_path = path(&config_digest, format!("{config_digest}.json"));
        add(&mut archive, &layer_path, &layer);
        add(&mut archive, &config_path, &config);
        if oci {
            let manifest = serde_json::json!({
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": format!("sha256:{config_digest}"), "size": config.len()},
                "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": format!("sha256:{layer_digest}"), "size": layer.len()}],
            });
            let manifest = serde_json::to_vec(&manifest).expect("JSON");
            let digest = sha256_hex(&manifest);
            add(&mut archive, &format!("blobs/sha256/{digest}"), &manifest);
            oci_manifests.push(serde_json::json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": format!("sha256:{digest}"), "size": manifest.len(),
                "annotations": {"io.containerd.image.name": format!("docker.io/library/{tag}"), "org.opencontainers.image.ref.name": tag.split(':').nth(1)},
            }));
        }
        docker_manifest.push(serde_json::json!({"Config": config_path, "RepoTags": [tag], "Layers": [layer_path]}));
    }
    if oci {
        add(
            &mut archive,
            "index.json",
            &serde_json::to_vec(&serde_json::json!({"schemaVersion": 2, "manifests": oci_manifests})).expect("JSON"),
        );
        add(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    }
    add(&mut archive, "manifest.json", &serde_json::to_vec(&docker_manifest).expect("JSON"));
    archive.into_inner().expect("a vector takes all")
}

/// The archive for `IMAGES_PATH` from a tar, made by OpenSSL.
pub fn encrypted(tar: &[u8], fragment: &[u8]) -> Vec<u8> {
    let iv: Vec<u8> = (0..16).collect();
    let mut child = Command::new("openssl")
        .args(["enc", "-aes-256-cbc", "-K", &sha256_hex(fragment), "-iv", &hex(&iv)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("openssl is there");
    let mut stdin = child.stdin.take().expect("piped");
    thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(tar).expect("openssl takes all"));
        [iv, child.wait_with_output().expect("it was started").stdout].concat()
    })
}

fn layer(size: usize, seed: u64) -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    let program = std::fs::read(program()).expect("it was just made");
    header.set_mode(0o755);
    header.set_size(program.len() as u64);
    layer.append_data(&mut header, "hello", &program[..]).expect("a vector takes all");
    add(&mut layer, "payload", &pattern(size, seed));
    layer.into_inner().expect("a vector takes all")
}

fn add(archive: &mut tar::Builder<Vec<u8>>, path: &str, content: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, path, content).expect("a vector takes all");
}
