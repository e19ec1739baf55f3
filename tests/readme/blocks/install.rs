//! Blocks that install the program on a box. A temporary directory takes the place of the box's root directory.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::super::{DIST, README, repository};
use super::scene::Scene;
use crate::world::client::call;
use crate::world::loader_binary;
use crate::world::process::{signal, write_program};
use crate::world::skip;

const TOKEN: &str = "a-value-of-the-test";

/// `install` to an absolute path goes below the scene's root.
const INSTALL: &str = "words=()
for word; do case $word in /*) word=$root$word; mkdir -p \"$(dirname \"$word\")\"; [ \"${word%/}\" = \"$word\" ] || mkdir -p \"$word\";; esac
  words+=(\"$word\"); done
exec /usr/bin/install \"${words[@]}\"";

/// Starts the unit as systemd would, as far as the program can see: with the environment of the unit and of its file.
/// It waits until the service answers, as a person who types line by line would.
const SYSTEMCTL: &str = "unit=$root/etc/systemd/system/loader.service
case $* in
daemon-reload) [ -e $unit ];;
'enable --now loader')
  values=$(sed -n 's/^Environment=//p' $unit | sed \"s#%S#$root/var/lib#g; s#%L#$root/var/log#g\")
  mkdir -p $root/var/lib/loader
  program=$root$(sed -n 's/^ExecStart=//p' $unit)
  file=$(sed -n 's/^EnvironmentFile=-//p' $unit)
  env -i PATH=\"$PATH\" $values $(cat $root$file) BIND_ADDR=$BIND_ADDR $program >$root/said 2>&1 &
  echo $! >$root/pid
  for try in $(seq 500); do ! loader healthcheck 2>/dev/null || exit 0; sleep 0.02; done
  cat $root/said >&2; exit 1;;
*) exit 1;;
esac";

/// Ends the service that the scene's `systemctl` has started.
struct Started<'a>(&'a Scene);

impl Drop for Started<'_> {
    fn drop(&mut self) {
        let pid = fs::read_to_string(self.0.root("pid")).ok().and_then(|pid| pid.trim().parse().ok());
        // It has been adopted by another process, which may have waited for it: only the test's own program is killed.
        if let Some(pid) = pid.filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/environ")).is_ok_and(|all| all.contains(&self.0.address))
        }) {
            signal(pid, libc::SIGKILL);
        }
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).permissions().mode() & 0o777
}

pub fn as_a_systemd_service(block: &str) {
    let scene = Scene::new();
    scene.program("install", INSTALL);
    scene.program("systemctl", SYSTEMCTL);
    // Only what was installed is found.
    scene.program("loader", "exit 1");
    let program = format!("#!/bin/sh\nexec {} \"$@\"\n", loader_binary().display());
    fs::write(scene.path("loader-aarch64-unknown-linux-musl"), program).unwrap();
    let unit = repository().join(".dist/loader.service");
    fs::copy(unit, scene.path("loader.service")).unwrap();
    // The file that `.dist/README.md` shows, filled in.
    let variables = DIST.block("## As a systemd service", "ini").replace('…', TOKEN);
    fs::write(scene.path("loader.env"), variables).unwrap();

    let _started = Started(&scene);
    let out = scene.run(block);
    assert!(out.starts_with("CPU: ") && out.ends_with("\nit serves\n"), "{out}");
    assert_eq!(mode(&scene.root("/usr/local/bin/loader")), 0o755);
    assert_eq!(mode(&scene.root("/etc/systemd/system/loader.service")), 0o644);
    assert_eq!(mode(&scene.root("/etc/loader.env")), 0o600);
    let status = |headers: &[(&str, &str)]| {
        call(&scene.address, Duration::from_secs(10), "GET", "/status", headers, b"").unwrap()
    };
    assert_eq!(status(&[]).status, 401, "the file's variables are not the service's");
    let reply = status(&[("Authorization", &format!("Bearer {TOKEN}"))]);
    assert_eq!(reply.json()["modelCacheDir"], scene.root("/var/lib/loader/models").to_str().unwrap());
    let said = fs::read_to_string(scene.root("said")).unwrap();
    assert!(!said.contains("not set"), "the file leaves salts at their defaults: {said}");
}

/// What apt and the package do is in `operations::package`; the block must name what `.dist/package` makes.
pub fn as_a_debian_package(block: &str) {
    let scene = Scene::new();
    let script = fs::read_to_string(repository().join(".dist/package")).unwrap();
    assert!(
        script.contains("package=$DIRECTORY/${name}_${VERSION}_$ARCHITECTURE\n")
            && script.contains("\"${file##*/}.sha256\"")
    );
    let package = concat!("loader_", env!("CARGO_PKG_VERSION"), "_arm64.deb");
    let made =
        format!("mkdir -p target/dist && cd target/dist && echo x >{package} && sha256sum {package} >{package}.sha256");
    write_program(&scene.path(".dist/package"), &format!("#!/bin/sh\n{made}\n"));
    scene.program("apt-get", "[ -e \"$3\" ]");
    for program in ["vi", "systemctl", "loader"] {
        scene.program(program, "");
    }
    let out = scene.run(&format!("unset EDITOR\n{block}"));
    assert_eq!(out, format!("{package}: OK\nit serves\n"));
    assert_eq!(scene.calls("apt-get"), [format!("install -y ./{package}")]);
    assert_eq!(scene.calls("vi"), ["/etc/loader.env"]);
    assert_eq!(scene.calls("systemctl"), ["enable --now loader"]);
    assert_eq!(scene.calls("loader"), ["fingerprint", "healthcheck"]);
}

/// What `systemctl` does with the units is in `operations::systemd`; the block must name what the socket unit has.
pub fn with_the_socket_unit(block: &str) {
    let scene = Scene::new();
    scene.program("install", INSTALL);
    scene.program("groupadd", "");
    scene.program("systemctl", "[ -e $root/etc/systemd/system/loader.socket ]");
    scene.program("loader", "echo $BIND_ADDR >$root/asked");
    let unit = repository().join(".dist/loader.socket");
    fs::copy(&unit, scene.path("loader.socket")).unwrap();
    let out = scene.run(block);
    assert!(out.ends_with("it serves\n"), "{out}");
    let unit = fs::read_to_string(unit).unwrap();
    let value = |name: &str| unit.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    assert_eq!(scene.calls("groupadd"), [format!("--system {}", value("SocketGroup="))]);
    let asked = fs::read_to_string(scene.root("asked")).unwrap();
    assert_eq!(asked.trim(), format!("unix:{}", value("ListenStream=")));
    assert_eq!(
        scene.calls("systemctl"),
        ["daemon-reload", "stop loader", "enable --now loader.socket", "start loader"]
    );
    assert!(unit.contains("\n#   groupadd --system loader "), "the unit's first lines tell something else");
}

/// Paths of the box are below the scene's root.
pub fn credentials_are_encrypted(block: &str) {
    let Ok(real) = Command::new("sh").args(["-c", "command -v systemd-creds"]).output() else { unreachable!() };
    let real = String::from_utf8(real.stdout).unwrap();
    if real.trim().is_empty() {
        return skip("encrypted credentials", "systemd-creds is not installed");
    }
    let scene = Scene::new();
    let below_root = "words=(); for word; do case $word in /*) word=$root$word;; esac; words+=(\"$word\"); done";
    scene.program("mkdir", &format!("{below_root}\nexec /bin/mkdir \"${{words[@]}}\""));
    scene.program("systemd-creds", &format!("{below_root}\nexec {} \"${{words[@]}}\"", real.trim()));
    let credentials = r#"{"email":"box17@example.com","password":"hush"}"#;
    fs::write(scene.path("login.json"), credentials).unwrap();
    scene.run(block);
    assert!(!scene.path("login.json").exists());
    let encrypted = scene.root("etc/loader/login.json.cred");
    assert!(!fs::read_to_string(&encrypted).unwrap().contains("hush"));
    let decrypt = Command::new(real.trim()).args(["decrypt", "--name=login.json"]).arg(&encrypted).arg("-").output();
    assert_eq!(String::from_utf8(decrypt.unwrap().stdout).unwrap(), credentials);
}

/// What waits for the unit is in `operations::resets`.
pub fn the_unit_to_wait_for(block: &str) {
    let scene = Scene::new();
    scene.program("install", INSTALL);
    scene.program("systemctl", "[ -e $root/etc/systemd/system/loader-ready.service ]");
    fs::copy(repository().join(".dist/loader-ready.service"), scene.path("loader-ready.service")).unwrap();
    scene.run(block);
    assert_eq!(scene.calls("systemctl"), ["daemon-reload"]);
    let unit = fs::read_to_string(scene.path("loader-ready.service")).unwrap();
    assert!(unit.contains(&format!("\n#   {block}\n")), "the unit's first lines tell something else");
}

/// The values of an option that may be given more than once.
fn values<'a>(words: &'a [&'a str], option: &str) -> Vec<&'a str> {
    words.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1]).collect()
}

/// `docker` keeps its arguments, which must be those that fit the Dockerfile; `operations::image` builds and runs the image.
pub fn as_a_container(block: &str) {
    let scene = Scene::new();
    scene.program("docker", "");
    // There need be no engine here, and so no socket.
    scene.program("stat", "[ \"$*\" = '-c %g /var/run/docker.sock' ] && echo 998");
    scene.run(block);
    let calls = scene.calls("docker");
    let dockerfile = fs::read_to_string(repository().join("Dockerfile")).unwrap();
    assert_eq!(calls[0], "build --platform linux/arm64 -t loader .");
    assert!(dockerfile.contains("\nARG BASE="));

    // The Dockerfile's comment has the same command.
    let (_, run) = block.split_once("docker run").unwrap();
    let comment: String =
        dockerfile.lines().map(|line| format!("{}\n", line.trim_start_matches('#').trim_start())).collect();
    let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(plain(&comment).contains(&plain(&format!("docker run{run}"))), "the Dockerfile has another command");

    let words: Vec<&str> = calls[1].split(' ').collect();
    assert_eq!((words[0], words[words.len() - 1], calls.len()), ("run", "loader", 2));
    let port = values(&words, "-p")[0].rsplit(':').next().unwrap();
    assert!(
        dockerfile.contains(&format!("BIND_ADDR=0.0.0.0:{port} ")) && dockerfile.contains(&format!("EXPOSE {port}\n"))
    );
    assert_eq!(values(&words, "--group-add"), ["998"]);
    let inside: BTreeSet<&str> = values(&words, "-v").iter().map(|volume| volume.split(':').nth(1).unwrap()).collect();
    for directory in ["/var/lib/loader/models", "/var/log/loader"] {
        assert!(inside.contains(directory) && dockerfile.contains(&format!("={directory}")), "{directory}");
    }
    let readme = README.text();
    let images = readme.lines().find(|line| line.starts_with("| `IMAGES_PATH`")).unwrap();
    assert!(inside.iter().any(|directory| images.contains(&format!("`{directory}/"))), "{inside:?} has no {images}");
    assert!(inside.contains("/var/run/docker.sock"));
    // It is the file of the systemd service.
    assert_eq!(values(&words, "--env-file"), ["loader.env"]);
    let variables = README.table("## Configuration");
    for line in DIST.block("## As a systemd service", "ini").lines() {
        let name = line.split('=').next().unwrap();
        assert!(variables.iter().any(|row| row[0] == name), "{line}");
    }

    match Command::new("docker").args(["run", "--help"]).output() {
        Ok(help) if help.status.success() => {
            let help = String::from_utf8(help.stdout).unwrap();
            for option in words.iter().filter(|word| word.starts_with('-')) {
                let known = help.split_whitespace().any(|word| word.trim_end_matches(',') == *option);
                assert!(known, "docker run has no {option}");
            }
        }
        _ => skip("the options of the README's docker run", "there is no docker command"),
    }
}
