//! The container image: built from the repository's `Dockerfile` on a base made here, and run on a real engine.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::readme::DIST;
use crate::world::client;
use crate::world::docker::{Engine, GREETING, encrypted, engine_or_skip, saved_images};
use crate::world::loader_binary;
use crate::world::resource_api::{EMAIL, PASSWORD, ResourceApi};
use crate::world::tcp::free_port;

const FRAGMENT: &[u8] = b"the key fragment of the image test";

/// The same options as in the Dockerfile's first lines and in `.dist/README.md`.
const OPTIONS: &str = "--read-only --cap-drop ALL --security-opt no-new-privileges --ulimit core=0 \
                       --stop-timeout 20 --log-driver local --log-opt max-size=10m";

/// If only root may use the engine's socket: with the capability that lets root write into other users' volumes.
const AS_ROOT: &str = "--user 0:0 --cap-add DAC_OVERRIDE";

/// Removes what the test made, even if it fails.
struct Made<'a> {
    engine: &'a Engine,
    containers: Vec<String>,
    images: Vec<String>,
    volumes: Vec<String>,
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        for container in &self.containers {
            if thread::panicking() {
                let logs = self.engine.command(&["logs", container]).output();
                eprintln!("{}", logs.map_or_else(|error| error.to_string(), |logs| format!("{logs:?}")));
            }
            let _ = self.engine.command(&["rm", "--force", "--volumes", container]).output();
        }
        self.images.iter().for_each(|image| self.engine.remove(image));
        for volume in &self.volumes {
            let _ = self.engine.command(&["volume", "rm", "--force", volume]).output();
        }
    }
}

#[test]
fn the_image_unlocks_through_the_mounted_docker_socket_without_being_root_and_as_root() {
    let Some(engine) = engine_or_skip("the image") else { return };
    let number = std::process::id();
    let mut made = Made { engine, containers: Vec::new(), images: Vec::new(), volumes: Vec::new() };

    let base = format!("loader-test-base-{number}:1");
    made.images.push(base.clone());
    let directory = tempfile::tempdir().unwrap();
    import_base(engine, &base, directory.path(), "docker");

    // The build context has the repository's layout, and a program for this processor.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for document in ["Dockerfile", ".dist/README.md"] {
        let text = fs::read_to_string(root.join(document)).unwrap();
        let words: Vec<&str> = text.split_whitespace().filter(|word| !["#", "\\"].contains(word)).collect();
        for options in [OPTIONS, AS_ROOT] {
            assert!(words.join(" ").contains(options), "{document} has other options than {options}");
        }
    }
    let context = tempfile::tempdir().unwrap();
    make_context(context.path());
    let image = format!("loader-test-image-{number}:1");
    made.images.push(image.clone());
    let context = context.path().to_str().unwrap();
    let mut build = engine.command(&["build", "--build-arg", "PROGRAM=loader-here", "--build-arg"]);
    // Every engine has the old builder; BuildKit is a plugin.
    let build = build.env("DOCKER_BUILDKIT", "0").arg(format!("BASE={base}")).args(["--tag", &image, context]);
    let built = build.output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));

    // The image with the health check of the compose example.
    let checked = format!("loader-test-ready-{number}:1");
    made.images.push(checked.clone());
    let dockerfile = format!("FROM {image}\nHEALTHCHECK --interval=1s CMD {}\n", readiness_check());
    fs::create_dir(directory.path().join("checked")).unwrap();
    fs::write(directory.path().join("checked/Dockerfile"), dockerfile).unwrap();
    let mut build = engine.command(&["build", "--tag", &checked, directory.path().join("checked").to_str().unwrap()]);
    let built = build.env("DOCKER_BUILDKIT", "0").output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));

    let tag = format!("loader-test-in-image-{number}:1.0");
    made.images.push(tag.clone());
    let archive = directory.path().join("images.enc");
    fs::write(&archive, encrypted(&saved_images(&[&tag], 1_000_000, false), FRAGMENT)).unwrap();
    let api = ResourceApi::start();
    api.set_key_fragment(FRAGMENT);
    let host = engine.host.clone().or_else(|| std::env::var("DOCKER_HOST").ok());
    let socket = host.as_deref().and_then(|host| host.strip_prefix("unix://")).unwrap_or("/var/run/docker.sock");
    // The second container finds the files of the first in the volumes.
    made.volumes = ["models", "logs"].map(|name| format!("loader-test-{name}-{number}")).into();
    let volumes = made.volumes.clone();
    for (options, user) in [("", 65534), (AS_ROOT, 0)] {
        engine.remove(&tag);
        let address = format!("127.0.0.1:{}", free_port());
        let container = format!("loader-test-{number}-{user}");
        made.containers.push(container.clone());
        let mut words = vec!["run", "--detach", "--name", &container];
        // The test's engine has no bridge.
        words.extend(["--network", "host"]);
        words.extend(OPTIONS.split_whitespace().chain(options.split_whitespace()));
        let mounts = [
            format!("--volume={}:/var/lib/loader/models", volumes[0]),
            format!("--volume={}:/var/log/loader", volumes[1]),
            format!("--volume={socket}:/var/run/docker.sock"),
            format!("--group-add={}", fs::metadata(socket).unwrap().gid()),
            format!("--volume={}:/opt/azaion/images.enc:ro", archive.display()),
            format!("--env=BIND_ADDR={address}"),
            format!("--env=RESOURCE_API_URL={}", api.url()),
        ];
        words.extend(mounts.iter().map(String::as_str).chain([checked.as_str()]));
        engine.docker(&words);
        let call = |method: &str, path: &str, body: &Value| {
            let headers = [("Content-Type", "application/json")];
            let body = if body.is_null() { String::new() } else { body.to_string() };
            client::call(&address, Duration::from_secs(30), method, path, &headers, body.as_bytes())
        };
        wait_until("it serves", || call("GET", "/health", &Value::Null).is_ok_and(|reply| reply.status == 200));

        // What the image's HEALTHCHECK runs.
        let check: Vec<String> =
            serde_json::from_str(&engine.docker(&["inspect", "--format", "{{json .Config.Healthcheck.Test}}", &image]))
                .unwrap();
        assert_eq!(check[0], "CMD");
        let check: Vec<&str> = check[1..].iter().map(String::as_str).collect();
        engine.docker(&[&["exec", &container], &check[..]].concat());

        // What compose waits for: it is not ready before the login.
        let health = |field: &str| {
            engine.docker(&["inspect", "--format", &format!("{{{{json .State.Health.{field}}}}}"), &container])
        };
        wait_until("the engine has checked it", || health("Log").contains("nobody is logged in"));
        assert_ne!(health("Status"), "\"healthy\"");

        let pid = engine.docker(&["inspect", "--format", "{{.State.Pid}}", &container]);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains(&format!("\nUid:\t{user}\t{user}\t{user}\t{user}\n")), "{status}");

        let started = call("POST", "/unlock", &json!({"email": EMAIL, "password": PASSWORD})).unwrap();
        assert_eq!(started.status, 200, "{}", started.text());
        let mut last = Value::Null;
        wait_until("it has unlocked", || {
            last = call("GET", "/unlock/status", &Value::Null).unwrap().json();
            assert_ne!(last["state"], "error", "{last}");
            last["state"] == "ready"
        });
        wait_until("it is healthy", || health("Status") == "\"healthy\"");
        let said = engine.run(&tag);
        assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), GREETING, "{said:?}");

        // It could write into its volumes, which hold the record of the unlock and this run's log.
        let directory =
            |volume: &str| PathBuf::from(engine.docker(&["volume", "inspect", "--format", "{{.Mountpoint}}", volume]));
        assert_eq!(fs::metadata(directory(&volumes[0]).join(".unlock.json")).unwrap().uid(), user);
        let log = fs::read_dir(directory(&volumes[1])).unwrap().next().unwrap().unwrap().path();
        assert!(fs::read_to_string(log).unwrap().contains(&address), "its log has no line of this run");

        engine.docker(&["stop", &container]);
        let stopped = "{{.State.ExitCode}} {{.Config.StopTimeout}} {{.HostConfig.LogConfig.Type}}";
        assert_eq!(engine.docker(&["inspect", "--format", stopped, &container]), "0 20 local");
        assert!(engine.docker(&["logs", &container]).contains("message=\"stopped\""));
    }
}

/// What the Dockerfile builds the image from, with a program for this processor, `loader-here`.
pub(super) fn make_context(directory: &Path) {
    fs::create_dir_all(directory.join("target/dist")).unwrap();
    for file in ["Dockerfile", ".dockerignore"] {
        fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join(file), directory.join(file)).unwrap();
    }
    fs::copy(loader_binary(), directory.join("target/dist/loader-here")).unwrap();
}

/// The command of compose's health check in `.dist/README.md`, as JSON.
fn readiness_check() -> String {
    let compose: Value = serde_yaml::from_str(&DIST.block("### Programs that wait for it", "yaml")).unwrap();
    assert_eq!(compose["services"]["detector"]["depends_on"]["loader"]["condition"], "service_healthy");
    let test: Vec<String> =
        serde_json::from_value(compose["services"]["loader"]["healthcheck"]["test"].clone()).unwrap();
    assert_eq!(test[0], "CMD");
    serde_json::to_string(&test[1..]).unwrap()
}

fn wait_until(what: &str, mut come_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !come_true() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// An image with a program of this machine, and the libraries that it and the program under test need.
pub(super) fn import_base(engine: &Engine, tag: &str, directory: &Path, program: &str) {
    let found = find(program);
    let mut files: BTreeSet<PathBuf> = libraries(&found);
    files.extend(libraries(&loader_binary()));
    let tar = directory.join("base.tar");
    let mut archive = tar::Builder::new(fs::File::create(&tar).unwrap());
    // Links are followed: a library's name leads to its file through several.
    archive.follow_symlinks(true);
    archive.append_path_with_name(found, format!("usr/local/bin/{program}")).unwrap();
    for file in files {
        archive.append_path_with_name(&file, file.strip_prefix("/").unwrap()).unwrap();
    }
    archive.finish().unwrap();
    engine.docker(&["import", "--change", "ENV PATH=/usr/local/bin", tar.to_str().unwrap(), tag]);
    fs::remove_file(tar).unwrap();
}

fn find(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let found = std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("no {program} on the PATH"))
}

/// The shared libraries of a program, and their dynamic linker; none for a static program.
fn libraries(program: &Path) -> BTreeSet<PathBuf> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .filter(|path| path.is_file())
        .collect()
}
