//! A real Docker engine: the running one, or a `dockerd` started by this test process.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::{hex, pattern, sha256_hex, skip};

/// A Docker engine.
#[derive(Debug)]
pub struct Engine {
    /// Its `DOCKER_HOST`, unless the environment names the engine already.
    pub host: Option<String>,
    /// Its process, if this process started it.
    pub pid: Option<u32>,
    /// Its files, if this process started it.
    pub directory: Option<PathBuf>,
    /// Cleans up after it.
    _sweeper: Option<Sweeper>,
}

/// The engine for this process's tests, or why there is none.
pub fn engine() -> Result<&'static Engine, String> {
    static ENGINE: OnceLock<Result<Engine, String>> = OnceLock::new();
    ENGINE.get_or_init(|| answering().map_or_else(|| Engine::start(None), Ok)).as_ref().map_err(Clone::clone)
}

/// The engine that the environment names, if it answers.
pub fn answering() -> Option<Engine> {
    Some(Engine { host: None, pid: None, directory: None, _sweeper: None }).filter(Engine::answers)
}

/// The engine, or none and a line that the test is skipped.
pub fn engine_or_skip(test: &str) -> Option<&'static Engine> {
    match engine() {
        Ok(engine) => Some(engine),
        Err(why) => {
            skip(test, &format!("it needs a Docker engine: {why}"));
            None
        }
    }
}

impl Engine {
    /// Starts a `dockerd` that ends with this process. `size` limits its storage, in bytes.
    pub fn start(size: Option<u64>) -> Result<Self, String> {
        let made = tempfile::Builder::new().prefix("loader-dockerd-").tempdir();
        let directory = made.map_err(|error| error.to_string())?.keep();
        let mut sweeper = Sweeper::of(&directory).map_err(|error| format!("sh: {error}"))?;
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
                .stdout(log.try_clone().expect("a second descriptor"))
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
        sweeper.ends_first(pid);
        let directory = Some(directory);
        let engine = Self { host: Some(host), pid: Some(pid), directory, _sweeper: Some(sweeper) };
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
        let log = engine.directory.as_ref().map(|directory| std::fs::read_to_string(directory.join("log")));
        let log = log.and_then(Result::ok).unwrap_or_default();
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

    /// Runs a `docker` command that must succeed, and returns its output.
    pub fn docker(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().expect("docker is there");
        assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Whether there is an image with this tag.
    pub fn has(&self, tag: &str) -> bool {
        self.command(&["image", "inspect", tag]).output().is_ok_and(|output| output.status.success())
    }

    /// Runs a container of the image to its end, and returns its output.
    pub fn run(&self, tag: &str) -> Output {
        self.command(&["run", "--rm", "--network", "none", tag]).output().expect("docker is there")
    }

    /// Removes an image, if it is there.
    pub fn remove(&self, tag: &str) {
        let _ = self.command(&["image", "rm", "--force", tag]).output();
    }
}

/// A process that outlives this one, however this one ends, to stop an engine and remove its files. It is needed
/// because the engine that all tests share is a static, which is never dropped.
#[derive(Debug)]
struct Sweeper {
    process: Child,
    /// When this closes, the sweeper begins.
    input: Option<ChildStdin>,
}

impl Sweeper {
    fn of(directory: &Path) -> std::io::Result<Self> {
        const SCRIPT: &str = "read -r pid; cat >/dev/null
            [ -z \"$pid\" ] || kill \"$pid\"
            for try in $(seq 100); do [ -n \"$pid\" ] && [ -e \"/proc/$pid\" ] || break; sleep 0.1; done
            umount -l \"$1/exec/netns/default\" \"$1\"; rm -rf -- \"$1\"";
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "sh"]).arg(directory).stdin(Stdio::piped());
        // Ctrl-C in a terminal is for this process.
        command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let mut process = command.spawn()?;
        let input = process.stdin.take();
        Ok(Self { process, input })
    }

    /// Makes it end a process before it removes the files.
    fn ends_first(&mut self, pid: u32) {
        writeln!(self.input.as_mut().expect("piped"), "{pid}").expect("the sweeper waits for it");
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.process.wait();
    }
}

/// What the image's program prints.
pub const GREETING: &str = "hello from the unlocked image";

/// A small program that needs no library.
fn program() -> &'static [u8] {
    static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (source, program) = (directory.path().join("hello.rs"), directory.path().join("hello"));
        std::fs::write(&source, format!("fn main() {{ println!(\"{GREETING}\") }}")).expect("a temporary file");
        let output = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
            .args(["-O", "-C", "target-feature=+crt-static", "-o"])
            .args([&program, &source])
            .output()
            .expect("there is a compiler");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read(program).expect("it was just made")
    })
}

/// A `docker save` tar of images `FROM scratch` with these tags, each with a layer of `size` random-looking bytes. The
/// layout is that of docker 25 and later (OCI, with docker's manifest), or the older one.
pub fn saved_images(tags: &[&str], size: usize, oci: bool) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let (mut docker_manifest, mut oci_manifests) = (Vec::new(), Vec::new());
    let path = |digest: &str, classic: String| if oci { format!("blobs/sha256/{digest}") } else { classic };
    for tag in tags {
        // The same tag gives the same image in every archive.
        let layer = layer(size, tag.bytes().map(u64::from).sum());
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
    let program = program();
    header.set_mode(0o755);
    header.set_size(program.len() as u64);
    layer.append_data(&mut header, "hello", program).expect("a vector takes all");
    add(&mut layer, "payload", &pattern(size, seed));
    layer.into_inner().expect("a vector takes all")
}

fn add(archive: &mut tar::Builder<Vec<u8>>, path: &str, content: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, path, content).expect("a vector takes all");
}
