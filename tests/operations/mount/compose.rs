//! The example for compose, on a real engine.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use super::programs::Shared;
use super::{HANG, run, text};
use crate::operations::image::{import_base, make_context};
use crate::world::docker::{self, Engine};
use crate::world::mount::can_mount;
use crate::world::resource_api::{EMAIL, PASSWORD};
use crate::world::{World, eventually, skip};

/// A program without any library. It prints its model and tries to write next to it, or ends if there is no model yet.
const INFERENCE: &str = r#"fn main() {
    let model = std::env::var("MODEL").unwrap();
    println!("the model: {}", std::fs::read_to_string(&model).unwrap());
    println!("writing: {}", std::fs::write("/models/new", "x").unwrap_err());
    loop { std::thread::sleep(std::time::Duration::from_secs(60)) }
}"#;

/// The example with what is different in a test, in a project of its own. It is taken down when dropped.
struct Project<'a> {
    engine: &'a Engine,
    name: String,
    directory: &'a Path,
    images: Vec<String>,
}

impl Project<'_> {
    /// A `docker-compose` command. It sees a `/etc/loader.env` of this test.
    fn command(&self, arguments: &[&str]) -> Command {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join(".dist/compose.yaml");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-ec"]);
        command.arg("mount -t overlay -o lowerdir=$0/etc:/etc overlay /etc; exec docker-compose \"$@\"");
        command.arg(self.directory).args(["--project-name", &self.name, "--file"]).arg(example);
        command.arg("--file").arg(self.directory.join("override.json")).args(arguments);
        // The builder that every engine has; BuildKit is a plugin.
        command.env("DOCKER_BUILDKIT", "0");
        if let Some(host) = &self.engine.host {
            command.env("DOCKER_HOST", host);
        }
        command
    }

    fn run(&self, arguments: &[&str], input: &str) -> String {
        let mut command = self.command(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Project<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = self.command(&["logs"]).output().unwrap();
            eprintln!("{}", String::from_utf8_lossy(&logs.stdout));
        }
        let _ = self.command(&["down", "--volumes"]).output();
        self.images.iter().for_each(|image| self.engine.remove(image));
    }
}

fn image_of(engine: &Engine, directory: &Path, tag: &str) {
    let (source, program, tar) = (directory.join("main.rs"), directory.join("main"), directory.join("main.tar"));
    fs::write(&source, INFERENCE).unwrap();
    run("rustc", &["-O", "-C", "target-feature=+crt-static", "-o", text(&program), text(&source)]);
    run("tar", &["-C", text(directory), "-cf", text(&tar), "main"]);
    engine.docker(&["import", "--change", "CMD [\"/main\"]", text(&tar), tag]);
}

#[test]
fn the_example_brings_a_model_to_a_container_and_leaves_nothing_mounted() {
    const TEST: &str = "the example for compose";
    let Some(engine) = docker::engine_or_skip(TEST).filter(|_| can_mount(TEST)) else { return };
    if Command::new("docker-compose").arg("version").output().is_err() {
        return skip(TEST, "there is no docker-compose");
    }
    let world = World::new();
    world.upload("net.onnx", b"the bytes of a model");
    let made = tempfile::tempdir().unwrap();
    let [context, etc, files] = ["context", "etc", "files"].map(|name| made.path().join(name));
    [&context, &etc, &files].into_iter().for_each(|directory| fs::create_dir(directory).unwrap());
    fs::write(etc.join("loader.env"), format!("RESOURCE_API_URL={}\n", world.api.url())).unwrap();
    let name = format!("loader-test-compose-{}", std::process::id());
    let images = ["base", "loader", "inference"].map(|image| format!("{name}-{image}:1"));
    let [base, loader, inference] = &images;
    make_context(&context);
    let shared = Shared::new(&files);
    let project = Project { engine, name: name.clone(), directory: made.path(), images: images.to_vec() };
    // The health check of the example.
    import_base(engine, base, made.path(), "mountpoint");
    image_of(engine, made.path(), inference);

    // The engine of a test has no bridge, its registry is this machine, and so is the Resource API.
    let build = json!({"context": context, "args": {"PROGRAM": "loader-here", "BASE": base}});
    let files_at = |target: &str| json!([format!("{}:{target}", files.display())]);
    let differences = json!({"services": {
        "loader": {"build": build, "image": loader, "network_mode": "host", "healthcheck": {"interval": "1s"}},
        "models": {"build": build, "image": loader, "volumes": files_at("/run/loader-files:rshared")},
        "inference": {
            "image": inference, "network_mode": "none", "stop_signal": "SIGKILL", "volumes": files_at("/models:ro,rslave"),
            "environment": {"MODEL": format!("/models/live/{}/net.onnx", world.folder)},
        },
    }});
    fs::write(made.path().join("override.json"), differences.to_string()).unwrap();

    project.run(&["up", "--detach"], "");
    let live: PathBuf = files.join("live");
    let is_mounted = || fs::read_to_string("/proc/self/mounts").unwrap().contains(text(&live));
    assert!(is_mounted());
    // Until somebody has logged in, the container is started again and again.
    let login = ["exec", "-T", "loader", "loader", "login", EMAIL, "--password-stdin"];
    project.run(&login, &format!("{PASSWORD}\n"));
    let mut said = String::new();
    eventually(HANG, "the container has read its model", || {
        said = project.run(&["logs", "inference"], "");
        said.contains("writing: ")
    });
    assert!(said.contains("the model: the bytes of a model"), "{said}");
    assert!(said.contains("writing: Read-only file system"), "{said}");

    project.run(&["down", "--volumes"], "");
    assert!(!is_mounted());
    let left = engine.docker(&["ps", "--all", "--filter", &format!("name={name}"), "--format", "{{.Names}}"]);
    assert_eq!(left, "");
    drop(project);
    drop(shared);
}
