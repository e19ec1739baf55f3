//! Programs that people use on any read-only file system, and other users and containers.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{QUICK, run, text};
use crate::world::docker;
use crate::world::mount::{Mount, can_mount};
use crate::world::{World, eventually, pattern, sha256_hex, skip};

#[test]
fn rsync_tar_find_df_and_inotifywait_work_as_on_any_read_only_file_system() {
    const TEST: &str = "programs on the mount";
    if !can_mount(TEST) {
        return;
    }
    for (program, flag) in [("rsync", "--version"), ("inotifywait", "--help")] {
        if Command::new(program).arg(flag).output().is_err() {
            return skip(TEST, &format!("{program} is not installed"));
        }
    }
    let world = World::new();
    let models = [("a.bin", pattern(700_000, 1)), ("empty.bin", Vec::new()), ("with space.bin", pattern(5_000_000, 2))];
    for (name, bytes) in &models {
        world.upload(name, bytes);
    }
    let mount = Mount::of(&world.service, &[]);
    let source = mount.path().join(&world.folder);
    let is_copy = |copy: &Path| {
        for (name, bytes) in &models {
            assert!(fs::read(copy.join(name)).unwrap() == *bytes, "{name} in {}", copy.display());
            let times = [&source, &copy.to_owned()].map(|folder| fs::metadata(folder.join(name)).unwrap().mtime());
            assert_eq!(times[0], times[1], "{name}");
        }
    };
    let made = tempfile::tempdir().unwrap();
    let at = |name: &str| made.path().join(name);

    run("cp", &["-a", text(&source), text(&at("cp"))]);
    is_copy(&at("cp"));
    run("rsync", &["-a", &format!("{}/", source.display()), text(&at("rsync"))]);
    is_copy(&at("rsync"));
    // Nothing has changed, so nothing is sent, even when rsync compares checksums.
    for flags in ["-ai", "-aic"] {
        assert_eq!(run("rsync", &[flags, &format!("{}/", source.display()), text(&at("rsync"))]), b"", "{flags}");
    }
    fs::create_dir(at("tar")).unwrap();
    fs::write(at("t.tar"), run("tar", &["-C", text(&source), "-cf", "-", "."])).unwrap();
    run("tar", &["-C", text(&at("tar")), "-xf", text(&at("t.tar"))]);
    is_copy(&at("tar"));
    run("diff", &["-r", text(&source), text(&at("tar"))]);
    // One call reads several files.
    let names: Vec<String> = models.iter().map(|(name, _)| source.join(name).display().to_string()).collect();
    let sums = String::from_utf8(run("sha256sum", &names.iter().map(String::as_str).collect::<Vec<_>>())).unwrap();
    let expected: Vec<String> = models.iter().map(|(_, bytes)| sha256_hex(bytes)).collect();
    assert_eq!(sums.lines().map(|line| &line[..64]).collect::<Vec<_>>(), expected);

    let lines = |program: &str, words: &[&str]| {
        let mut lines: Vec<String> =
            String::from_utf8(run(program, words)).unwrap().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(lines("find", &[text(&source), "-type", "f"]), names);
    assert_eq!(lines("find", &[text(&source), "-type", "f", "-empty"]), [names[1].clone()]);
    assert_eq!(lines("find", &[text(mount.path()), "-writable", "-newer", "/proc/self", "-size", "+9M"]), [""; 0]);
    // `du` counts the sizes that `ls` shows.
    assert_eq!(lines("du", &["-b", &names[0]]), [format!("700000\t{}", names[0])]);
    let df = lines("df", &["--output=source,fstype,target", text(&source)]);
    assert!(df.iter().any(|line| line.split_whitespace().eq(["loader", "fuse", text(mount.path())])), "{df:?}");
    for (program, words) in [
        ("touch", vec![names[0].as_str()]),
        ("rm", vec!["-f", &names[0]]),
        ("mv", vec![&names[0], &names[2]]),
        ("chmod", vec!["0666", &names[0]]),
        ("truncate", vec!["-s", "0", &names[0]]),
        ("mkdir", vec![text(&source.join("new"))]),
        ("ln", vec!["-s", "x", text(&source.join("link"))]),
    ] {
        let output = Command::new(program).args(&words).env("LC_ALL", "C").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("Read-only file system"), "{program} {words:?}: {said}");
    }

    // inotify reports what programs on this machine do.
    let mut watch = Command::new("inotifywait");
    watch.args(["-m", "-e", "open,close_nowrite", "--format", "%e %f", text(&source)]);
    let mut watch = watch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let output = crate::world::process::Captured::default();
    crate::world::process::capture(watch.stdout.take().unwrap(), &output);
    crate::world::process::capture(watch.stderr.take().unwrap(), &output);
    let said = || String::from_utf8_lossy(&crate::world::tcp::lock(&output)).into_owned();
    eventually(QUICK, "inotifywait watches", || said().contains("Watches established"));
    run("cat", &[&names[0]]);
    eventually(QUICK, "inotifywait sees a read", || {
        said().contains("OPEN a.bin") && said().contains("CLOSE_NOWRITE,CLOSE a.bin")
    });
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[test]
fn other_users_read_only_what_the_options_allow() {
    if !can_mount("other users and the mount") {
        return;
    }
    const NOBODY: u32 = 65534;
    let world = World::new();
    world.upload("model.bin", b"a model");
    // Whether a user whose only group is `group` can read the model.
    let reads = |options: &[&str], group: u32| {
        let mount = Mount::of(&world.service, options);
        fs::set_permissions(mount.path().parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = mount.path().join(&world.folder).join("model.bin");
        assert_eq!(fs::read(&path).unwrap(), b"a model", "root");
        let mut cat = Command::new("cat");
        let output = cat.arg(&path).uid(NOBODY).gid(group).output().unwrap();
        assert!(output.stdout == b"a model" || output.stdout.is_empty());
        output.status.success()
    };
    assert!(!reads(&["--mode", "0444"], NOBODY), "without --allow-other");
    assert!(!reads(&["--allow-other"], NOBODY), "not in the group");
    assert!(reads(&["--allow-other", "--group", "4321"], 4321), "in the group");
    assert!(!reads(&["--allow-other", "--group", "4321", "--mode", "0400"], 4321), "only the owner");
    assert!(reads(&["--allow-other", "--mode", "0444"], NOBODY), "everybody");
}

#[test]
fn it_unmounts_when_the_last_opener_leaves_if_asked() {
    if !can_mount("--until-closed") {
        return;
    }
    let world = World::new();
    world.upload("model.bin", b"a model");
    let mut mount = Mount::of(&world.service, &["--until-closed"]);
    let path = mount.path().join(&world.folder).join("model.bin");
    // `stat` does not open anything.
    run("find", &[text(mount.path())]);
    let file = fs::File::open(&path).unwrap();
    thread::sleep(Duration::from_secs(5));
    assert_eq!(io::read_to_string(&file).unwrap(), "a model");
    assert!(mount.is_mounted());
    drop(file);
    let started = Instant::now();
    assert!(mount.wait().success());
    assert!(!mount.is_mounted() && !path.exists());
    assert!(started.elapsed() < super::HANG, "{:?}", started.elapsed());
}

/// A program without libraries, which prints the files that standard input names.
const READER: &str = r#"fn main() {
    for line in std::io::stdin().lines() {
        match std::fs::read_to_string(line.unwrap()) { Ok(text) => println!("{text}"), Err(error) => println!("{error}") }
    }
}"#;

/// A directory that propagates what is mounted in it.
pub(super) struct Shared<'a>(&'a Path);

impl<'a> Shared<'a> {
    pub(super) fn new(path: &'a Path) -> Self {
        run("mount", &["--bind", text(path), text(path)]);
        run("mount", &["--make-rshared", text(path)]);
        Self(path)
    }
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).output();
    }
}

#[test]
fn a_container_reads_the_models_also_after_the_mount_was_started_again() {
    use std::io::{BufRead, BufReader, Write};
    const TEST: &str = "a container and the mount";
    let Some(engine) = docker::engine_or_skip(TEST).filter(|_| can_mount(TEST)) else { return };
    let world = World::new();
    world.upload("model.bin", b"a model");
    let mut mount = Mount::of(&world.service, &["--allow-other"]);
    mount.kill();
    run("umount", &["--lazy", text(mount.path())]);
    // The container gets the parent directory, so the mount must propagate into it.
    let parent = mount.path().parent().unwrap().to_owned();
    let shared = Shared::new(&parent);
    mount.start_again(&world.service);

    let build = tempfile::tempdir().unwrap();
    let (source, program) = (build.path().join("reader.rs"), build.path().join("reader"));
    fs::write(&source, READER).unwrap();
    run("rustc", &["-O", "-C", "target-feature=+crt-static", "-o", text(&program), text(&source)]);
    let tar = build.path().join("image.tar");
    run("tar", &["-C", text(build.path()), "-cf", text(&tar), "reader"]);
    engine.docker(&["import", text(&tar), "test/reader"]);
    let volume = format!("type=bind,source={},target=/run/loader,readonly,bind-propagation=rslave", parent.display());
    let mut container = engine.command(&["run", "--rm", "-i", "--network", "none", "--mount", &volume]);
    container.args(["test/reader", "/reader"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut container = container.spawn().unwrap();
    let mut lines = BufReader::new(container.stdout.take().unwrap()).lines();
    let mut input = container.stdin.take().unwrap();
    let mut reads = || {
        writeln!(input, "/run/loader/models/{}/model.bin", world.folder).unwrap();
        lines.next().unwrap().unwrap()
    };
    assert_eq!(reads(), "a model");
    mount.kill();
    assert_ne!(reads(), "a model");
    mount.start_again(&world.service);
    assert_eq!(reads(), "a model");
    drop(input);
    container.wait().unwrap();
    drop(mount);
    drop(shared);
    engine.remove("test/reader");
}
