//! `PRUNE_OLD_IMAGES`: after an unlock the images of earlier archives go, and no others.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::podman::Podman;
use super::unlock::{Unlocker, openssl, path_with, trap};
use crate::world::docker::{Engine, engine_or_skip, saved_images};
use crate::world::service::ServiceBuilder;

/// A service, and the engine that it unlocks into.
struct Scene<'a> {
    unlocker: Unlocker,
    /// A `docker` command for the engine, without arguments.
    command: Box<dyn Fn() -> Command + 'a>,
    /// The prefix of all tags, which no other test uses.
    name: String,
}

fn prunes(builder: ServiceBuilder) -> ServiceBuilder {
    builder.env("PRUNE_OLD_IMAGES", "true")
}

impl<'a> Scene<'a> {
    fn with_docker(name: &str, engine: &'a Engine, configure: impl FnOnce(ServiceBuilder) -> ServiceBuilder) -> Self {
        let command = Box::new(|| engine.command(&[]));
        Self { unlocker: Unlocker::with(engine, configure), command, name: format!("{name}-{}", std::process::id()) }
    }

    fn with_podman(podman: &'a Podman) -> Self {
        let command = Box::new(|| podman.command(&[]));
        Self { unlocker: podman.unlocker(prunes), command, name: "old-images".into() }
    }

    fn tag(&self, short: &str) -> String {
        format!("{}-{short}:1.0", self.name)
    }

    fn docker(&self, arguments: &[&str]) -> String {
        let output = (self.command)().args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn id(&self, short: &str) -> String {
        self.docker(&["image", "inspect", "--format", "{{.Id}}", &self.tag(short)])
    }

    /// Whether the engine has the image with this tag or id.
    fn has(&self, image: &str) -> bool {
        (self.command)().args(["image", "inspect", image]).output().unwrap().status.success()
    }

    fn remove(&self, shorts: &[&str]) {
        for short in shorts {
            self.docker(&["image", "rm", &self.tag(short)]);
        }
    }

    /// A `docker save` tar with one image for each of these names; `renamed` gives some of them other tags.
    fn tar(&self, shorts: &[&str], renamed: &[(&str, &[&str])]) -> Vec<u8> {
        let tags: Vec<String> = shorts.iter().map(|short| self.tag(short)).collect();
        let tar = saved_images(&tags.iter().map(String::as_str).collect::<Vec<_>>(), 100_000, false);
        let mut changed = tar::Builder::new(Vec::new());
        for entry in tar::Archive::new(&tar[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let (path, mut header) = (entry.path().unwrap().into_owned(), entry.header().clone());
            let mut content = Vec::new();
            std::io::copy(&mut entry, &mut content).unwrap();
            if path == Path::new("manifest.json") {
                let mut images: Vec<Value> = serde_json::from_slice(&content).unwrap();
                for (image, short) in images.iter_mut().zip(shorts) {
                    if let Some((_, names)) = renamed.iter().find(|(from, _)| from == short) {
                        image["RepoTags"] = names.iter().map(|name| self.tag(name)).collect();
                    }
                }
                content = serde_json::to_vec(&images).unwrap();
                header.set_size(content.len() as u64);
            }
            changed.append_data(&mut header, path, &content[..]).unwrap();
        }
        changed.into_inner().unwrap()
    }

    fn unlocks(&self, shorts: &[&str], renamed: &[(&str, &[&str])]) {
        self.unlocker.archive(&openssl(&self.tar(shorts, renamed)));
        self.unlocker.unlocks();
    }

    /// The log files; standard error would have each line a second time.
    fn log(&self) -> String {
        let files = fs::read_dir(self.unlocker.service.log_dir()).unwrap();
        files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect()
    }

    /// Waits until these words are in the log this many times: removals come after the state `ready`.
    fn logs(&self, count: usize, words: &str) {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let log = self.log();
            if log.matches(words).count() == count {
                return;
            }
            assert!(Instant::now() < deadline, "{words:?} is not {count} times in\n{log}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

const REMOVED: &str = "removed the old image";

/// The life of a box, in any engine.
fn only_images_of_earlier_archives_go(scene: &Scene) {
    // A person has loaded this image already; the first archive has it as well.
    let by_hand = tempfile::NamedTempFile::new().unwrap();
    fs::write(by_hand.path(), scene.tar(&["theirs"], &[])).unwrap();
    scene.docker(&["load", "-i", by_hand.path().to_str().unwrap()]);

    scene.unlocks(
        &["plain", "moving", "two", "shared", "old-name", "stopped", "tagged", "theirs"],
        &[("two", &["two", "two-b"])],
    );
    let [plain, moving, two, shared, kept, stopped, tagged, theirs] =
        ["plain", "moving", "two", "shared", "old-name", "stopped", "tagged", "theirs"].map(|short| scene.id(short));
    let container = scene.docker(&["create", &stopped]);
    scene.docker(&["tag", &tagged, &scene.tag("by-hand")]);
    // Moves a tag of the archive to another image.
    scene.docker(&["tag", &shared, &scene.tag("plain")]);
    scene.logs(0, "old image");

    // In this archive `moving` is the tag of another image, and an image of the old archive has a new tag.
    scene.unlocks(&["shared", "old-name", "next"], &[("old-name", &["new-name"]), ("next", &["moving"])]);
    scene.logs(1, "stays: a container uses it");
    scene.logs(1, "stays: it has a name that no unlock gave to it");
    scene.logs(3, REMOVED);
    for gone in [&plain, &moving, &two] {
        assert!(!scene.has(gone), "{gone} of {plain}, {moving}, {two}");
    }
    for image in [&shared, &kept, &stopped, &tagged, &theirs] {
        assert!(scene.has(image), "{image} of {shared}, {kept}, {stopped}, {tagged}, {theirs}");
    }
    for tag in ["shared", "plain", "new-name", "moving", "stopped", "tagged", "by-hand", "theirs"] {
        assert!(scene.has(&scene.tag(tag)), "{tag}");
    }

    // An unlock that finds its images in the engine tries the removals again, and so does a start.
    scene.docker(&["rm", &container]);
    assert_eq!(scene.unlocker.start()["state"], "ready");
    scene.logs(4, REMOVED);
    // The order of the two lines depends on the ids.
    scene.logs(2, "stays: it has a name");
    assert!(!scene.has(&stopped));
    scene.remove(&["by-hand"]);
    scene.unlocker.service.restart();
    scene.logs(5, REMOVED);
    assert!(!scene.has(&tagged));
    assert_eq!(scene.unlocker.finish()["state"], "ready");

    // An archive of new images only removes all the others, but never what the box had before the first unlock.
    scene.unlocks(&["last"], &[]);
    scene.logs(7, REMOVED);
    scene.logs(3, "stays: it has a name");
    assert!(!scene.has(&kept) && !scene.has(&scene.tag("moving")));
    for tag in ["last", "theirs", "shared", "plain"] {
        assert!(scene.has(&scene.tag(tag)), "{tag}");
    }
    scene.logs(0, "cannot be removed");
    scene.remove(&["last", "theirs", "shared", "plain"]);
}

#[test]
fn images_of_earlier_archives_go_from_docker() {
    let Some(engine) = engine_or_skip("old images") else { return };
    only_images_of_earlier_archives_go(&Scene::with_docker("old-images", engine, prunes));
}

#[test]
fn images_of_earlier_archives_go_from_podman() {
    let Some(podman) = Podman::or_skip("old images with podman") else { return };
    only_images_of_earlier_archives_go(&Scene::with_podman(&podman));
}

#[test]
fn nothing_is_removed_unless_it_is_asked_for() {
    let Some(engine) = engine_or_skip("old images that stay") else { return };
    let scene = Scene::with_docker("old-stay", engine, |builder| builder);
    scene.unlocks(&["a"], &[]);
    scene.unlocks(&["b"], &[]);
    assert_eq!(scene.unlocker.start()["state"], "ready");
    scene.unlocker.service.restart();
    assert_eq!(scene.unlocker.finish()["state"], "ready");
    assert!(scene.has(&scene.tag("a")) && scene.has(&scene.tag("b")));
    // The record was kept while the setting was off.
    scene.unlocker.service.set_env("PRUNE_OLD_IMAGES", "true");
    scene.unlocker.service.restart();
    scene.logs(1, REMOVED);
    assert!(!scene.has(&scene.tag("a")));
    scene.remove(&["b"]);
}

#[test]
fn the_record_of_an_older_version_is_read() {
    let Some(engine) = engine_or_skip("old images of an older version") else { return };
    let scene = Scene::with_docker("old-record", engine, prunes);
    scene.unlocks(&["a", "tagged"], &[]);
    scene.docker(&["tag", &scene.tag("tagged"), &scene.tag("by-hand")]);
    let path = scene.unlocker.service.cache_dir().join(".unlock.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    record.as_object_mut().unwrap().retain(|key, _| key == "archive" || key == "images");
    fs::write(&path, record.to_string()).unwrap();
    scene.unlocker.service.restart();
    assert_eq!(scene.unlocker.finish()["state"], "ready");
    scene.unlocks(&["b"], &[]);
    scene.logs(1, REMOVED);
    assert!(!scene.has(&scene.tag("a")) && scene.has(&scene.tag("tagged")) && scene.has(&scene.tag("by-hand")));
    scene.remove(&["b", "tagged", "by-hand"]);
}

#[test]
fn failures_and_power_cuts_lose_no_old_image() {
    let Some(engine) = engine_or_skip("old images and power cuts") else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = path_with(directory.path());
    let scene = Scene::with_docker("old-cuts", engine, |builder| prunes(builder).env("PATH", path));
    let service = &scene.unlocker.service;
    let reached = directory.path().join("reached");
    let at = reached.display();
    let cut = || {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !reached.exists() {
            assert!(Instant::now() < deadline, "{}", service.log_text());
            thread::sleep(Duration::from_millis(10));
        }
        service.kill();
        fs::remove_file(&reached).unwrap();
        trap(directory.path(), "");
        service.restart();
    };

    // The power fails when the engine has the images and the record has not been written.
    let wait = format!("touch {at}; while [ -e {at} ]; do sleep 0.05; done; exit 1");
    trap(directory.path(), &format!("load*) $docker \"$@\"; {wait};;"));
    scene.unlocker.archive(&openssl(&scene.tar(&["a"], &[])));
    scene.unlocker.start();
    cut();
    assert!(scene.has(&scene.tag("a")));
    scene.unlocker.unlocks();

    // A removal that fails does not fail the unlock.
    trap(directory.path(), "'image rm') echo 'disk on fire' >&2; exit 1;;");
    scene.unlocks(&["b"], &[]);
    scene.logs(1, "cannot be removed");
    scene.logs(1, "disk on fire");
    assert!(scene.has(&scene.tag("a")));

    // The next unlock tries again, and the power fails before the removal.
    trap(directory.path(), &format!("'image rm') {wait};;"));
    scene.unlocks(&["c"], &[]);
    cut();
    scene.logs(2, REMOVED);
    assert!(!scene.has(&scene.tag("a")) && !scene.has(&scene.tag("b")) && scene.has(&scene.tag("c")));
    scene.remove(&["c"]);
}
