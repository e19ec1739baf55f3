//! The unlock, against a real Docker engine.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::world::docker::{Engine, GREETING, encrypted, engine_or_skip, saved_images};
use crate::world::eventually;
use crate::world::process::write_program;
use crate::world::resource_api::{EMAIL, Fault, PASSWORD, ResourceApi};
use crate::world::service::{Promptness, Service, ServiceBuilder};

pub(super) const FRAGMENT: &[u8] = b"the key fragment of these tests";

/// No test here needs a CDN, but every login reads its configuration.
const UNUSED_CDN: &str = "host: http://127.0.0.1:1\ndownloader_access_key: a\ndownloader_access_secret: b\n\
                          uploader_access_key: c\nuploader_access_secret: d\n";

/// A tag that no other test has.
pub(super) fn unique(name: &str) -> String {
    format!("loader-test-{name}-{}:1.0", std::process::id())
}

pub(super) struct Unlocker {
    pub(super) api: ResourceApi,
    pub(super) service: Service,
}

impl Unlocker {
    pub(super) fn new(engine: &Engine) -> Self {
        Self::with(engine, |builder| builder)
    }

    pub(super) fn with(engine: &Engine, configure: impl FnOnce(ServiceBuilder) -> ServiceBuilder) -> Self {
        let api = ResourceApi::start();
        api.set_key_fragment(FRAGMENT);
        let mut builder = Service::builder().api(&api);
        if let Some(host) = engine.host.clone().or_else(|| std::env::var("DOCKER_HOST").ok()) {
            builder = builder.env("DOCKER_HOST", host);
        }
        Self { service: configure(builder).start(), api }
    }

    pub(super) fn archive(&self, encrypted: &[u8]) {
        std::fs::write(self.service.images_path(), encrypted).unwrap();
    }

    pub(super) fn start(&self) -> Value {
        let reply = self.service.post_json("/unlock", json!({"email": EMAIL, "password": PASSWORD}));
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()
    }

    /// Waits for the end. Meanwhile the status must be answered at once, and progress must never go back.
    pub(super) fn finish(&self) -> Value {
        let (mut done, mut promptness) = (0, Promptness::new());
        let deadline = Instant::now() + Duration::from_secs(240);
        loop {
            let status = promptness.get(&self.service, "/unlock/status").json();
            let now = status["progress"]["done"].as_u64().unwrap();
            assert!(now >= done && now <= status["progress"]["total"].as_u64().unwrap(), "{status}");
            done = now;
            if matches!(status["state"].as_str().unwrap(), "ready" | "error") {
                promptness.judge(&self.service, "/unlock/status");
                return status;
            }
            assert!(Instant::now() < deadline, "{status}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub(super) fn unlocks(&self) {
        self.start();
        let status = self.finish();
        assert_eq!((&status["state"], &status["error"]), (&json!("ready"), &Value::Null), "{status}");
    }

    pub(super) fn fails(&self) -> String {
        self.start();
        let status = self.finish();
        assert_eq!(status["state"], "error", "{status}");
        self.left_nothing();
        status["error"].as_str().unwrap().to_owned()
    }

    /// Checks that no child process is left, and no tar.
    pub(super) fn left_nothing(&self) {
        let children =
            std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.service.pid())).unwrap_or_default();
        assert_eq!(children.trim(), "", "child processes are left");
        for entry in std::fs::read_dir(self.service.dir()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(!name.ends_with(".tar"), "{name} is left");
        }
    }
}

pub(super) fn openssl(tar: &[u8]) -> Vec<u8> {
    encrypted(tar, FRAGMENT)
}

pub(super) fn packed(tar: &[u8]) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("fragment");
    std::fs::write(&key, FRAGMENT).unwrap();
    let output = Service::builder().run(&["pack", "--key-file", key.to_str().unwrap()], tar);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

pub(super) fn gzipped(tar: &[u8]) -> Vec<u8> {
    let mut child = Command::new("gzip").arg("-1").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let tar = tar.to_vec();
    let feeder = thread::spawn(move || stdin.write_all(&tar).unwrap());
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    output.stdout
}

/// A `docker` that handles `$1 $2` by these branches of a shell `case`, and leaves the rest to the real one.
pub(super) fn trap(directory: &Path, case: &str) {
    let real = Command::new("sh").args(["-c", "command -v docker"]).output().unwrap().stdout;
    let real = String::from_utf8(real).unwrap();
    let script = format!("#!/bin/sh\ndocker={}\ncase \"$1 $2\" in\n{case}\nesac\nexec $docker \"$@\"\n", real.trim());
    let (new, docker) = (directory.join("new"), directory.join("docker"));
    write_program(&new, &script);
    std::fs::rename(new, docker).unwrap();
}

/// `PATH` with this directory before the others.
pub(super) fn path_with(directory: &Path) -> String {
    format!("{}:{}", directory.display(), std::env::var("PATH").unwrap())
}

#[test]
fn archives_of_every_kind_unlock_and_their_images_run() {
    let Some(engine) = engine_or_skip("unlock") else { return };
    let size = if std::env::var_os("CI").is_some() { 600_000_000 } else { 60_000_000 };
    let unlocker = Unlocker::new(engine);
    let idle = unlocker.service.vm_rss_kib();
    for (kind, oci, make) in [
        ("openssl", false, &openssl as &dyn Fn(&[u8]) -> Vec<u8>),
        ("pack", false, &packed),
        ("gzip", false, &|tar: &[u8]| packed(&gzipped(tar))),
        ("oci", true, &packed),
    ] {
        let tag = unique(kind);
        unlocker.archive(&make(&saved_images(&[&tag], size, oci)));
        unlocker.service.reset_hwm();
        unlocker.unlocks();
        unlocker.service.peaked_at_most(idle, 12 * 1024, kind);
        let output = engine.run(&tag);
        engine.remove(&tag);
        assert_eq!(
            String::from_utf8_lossy(&output.stdout).trim(),
            GREETING,
            "{kind}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn the_states_come_in_their_order() {
    let Some(engine) = engine_or_skip("unlock states") else { return };
    // Each state is held until it has been seen: two by the Resource API, two by `docker`, which waits for a file.
    let directory = tempfile::tempdir().unwrap();
    let go = |command: &str| directory.path().join("go").join(command);
    std::fs::create_dir(go("")).unwrap();
    let wait = format!("until [ -e {}/$1 ]; do sleep 0.02; done", go("").display());
    trap(directory.path(), &format!("version*|load*) {wait};;"));
    let path = path_with(directory.path());
    let unlocker = Unlocker::with(engine, |builder| builder.env("PATH", path));
    let tag = unique("states");
    unlocker.archive(&packed(&saved_images(&[&tag], 1_000_000, false)));
    unlocker.api.fault("/login", Fault::Hang, Some(1));
    unlocker.api.fault("/binary-split", Fault::Hang, Some(1));
    let is = |state: &str| {
        eventually(Duration::from_secs(60), state, || {
            let status = unlocker.service.get("/unlock/status").json();
            assert!(status["state"] != "error", "{state} was expected: {status}");
            status["state"] == state
        });
    };
    is("idle");
    assert_eq!(unlocker.start(), json!({"state": "authenticating"}));
    for (path, state) in [("/login", "authenticating"), ("/binary-split", "downloading_key")] {
        eventually(Duration::from_secs(60), path, || unlocker.api.count(path) == 1);
        is(state);
        unlocker.api.cut();
    }
    for (command, state) in [("version", "decrypting"), ("load", "loading_images")] {
        is(state);
        std::fs::write(go(command), "").unwrap();
    }
    is("ready");
    engine.remove(&tag);
}

#[test]
fn a_restart_is_ready_at_once_while_the_images_are_there() {
    let Some(engine) = engine_or_skip("unlock record") else { return };
    let unlocker = Unlocker::new(engine);
    let (tag, other) = (unique("record-a"), unique("record-b"));
    let archive = packed(&saved_images(&[&tag, &other], 1_000_000, false));
    unlocker.archive(&archive);
    unlocker.unlocks();
    unlocker.service.restart();
    // The service finds the images by itself, without the Resource API.
    unlocker.api.clear_requests();
    assert_eq!(unlocker.finish()["state"], "ready");
    assert!(unlocker.api.requests().is_empty());
    // The unlock logs in all the same: the caller will want to load models.
    unlocker.api.put_file("", "cdn.yaml", UNUSED_CDN);
    assert_eq!(unlocker.start(), json!({"state": "ready"}));
    assert_eq!(unlocker.service.get("/status").json()["authenticated"], json!(true));
    assert_eq!(unlocker.api.count("/binary-split"), 0);
    // An image is gone.
    engine.remove(&other);
    assert_eq!(unlocker.start(), json!({"state": "authenticating"}));
    assert_eq!(unlocker.finish()["state"], "ready");
    assert!(engine.has(&other));
    // The same bytes, but a new file.
    unlocker.archive(&archive);
    assert_eq!(unlocker.start(), json!({"state": "authenticating"}));
    assert_eq!(unlocker.finish()["state"], "ready");
    engine.remove(&tag);
    engine.remove(&other);
}

#[test]
fn with_unlock_at_start_the_images_come_without_a_person() {
    let Some(engine) = engine_or_skip("unlock at the start") else { return };
    let credentials = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(credentials.path(), json!({ "email": EMAIL, "password": PASSWORD }).to_string()).unwrap();
    let unlocker = Unlocker::with(engine, |builder| {
        builder.env("CREDENTIALS_PATH", credentials.path()).env("UNLOCK_AT_START", "true")
    });
    unlocker.api.put_file("", "cdn.yaml", UNUSED_CDN);
    let waiting = |reason: &str| {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !unlocker.service.get("/ready").text().contains(reason) {
            let text = unlocker.service.get("/ready").text();
            assert!(Instant::now() < deadline, "{reason:?} is not in {text}");
            thread::sleep(Duration::from_millis(50));
        }
    };
    waiting("there is no archive at IMAGES_PATH");
    let tag = unique("at-start");
    // The archive may be copied to a new box after the service was started.
    unlocker.archive(&packed(&saved_images(&[&tag], 1_000_000, false)));
    waiting(r#"{"ready":true}"#);
    assert!(engine.has(&tag));
    // The engine has the images, so the next start needs neither the key nor the Resource API for them.
    unlocker.api.down();
    unlocker.service.restart();
    assert_eq!(unlocker.finish()["state"], "ready");
    waiting("logged in");
    engine.remove(&tag);
}

#[test]
fn api_version_must_be_a_tag_of_the_archive() {
    let Some(engine) = engine_or_skip("unlock version") else { return };
    let tag = unique("version");
    let archive = packed(&saved_images(&[&tag], 1_000_000, false));
    let unlocker = Unlocker::with(engine, |builder| builder.env("API_VERSION", "2.0"));
    unlocker.archive(&archive);
    let error = unlocker.fails();
    assert!(error.contains("API_VERSION is 2.0") && error.contains(&tag), "{error}");
    assert!(!engine.has(&tag), "it was loaded before its version was known");
    let unlocker = Unlocker::with(engine, |builder| builder.env("API_VERSION", "1.0"));
    unlocker.archive(&archive);
    unlocker.unlocks();
    engine.remove(&tag);
}

#[test]
fn fifty_concurrent_unlocks_start_one_docker_load() {
    let Some(engine) = engine_or_skip("concurrent unlocks") else { return };
    let tag = unique("fifty");
    let directory = tempfile::tempdir().unwrap();
    let counter = directory.path().join("loads");
    trap(directory.path(), &format!("load*) echo load >>{};;", counter.display()));
    let path = path_with(directory.path());
    let unlocker = Unlocker::with(engine, |builder| builder.env("PATH", path).env("HANDLER_THREADS", "16"));
    unlocker.archive(&packed(&saved_images(&[&tag], 30_000_000, false)));
    thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                let state = unlocker.start()["state"].as_str().unwrap().to_owned();
                assert!(state != "idle" && state != "error", "{state}");
            });
        }
    });
    assert_eq!(unlocker.finish()["state"], "ready");
    assert_eq!(std::fs::read_to_string(&counter).unwrap(), "load\n");
    engine.remove(&tag);
}

#[test]
fn loads_work_while_an_unlock_runs() {
    let Some(engine) = engine_or_skip("unlock during loads") else { return };
    let s3 = crate::world::s3::S3::start();
    let unlocker = Unlocker::new(engine);
    unlocker.api.put_file("", "cdn.yaml", s3.cdn_yaml());
    let folder = s3.new_bucket("models");
    assert_eq!(unlocker.service.login().status, 200);
    assert_eq!(unlocker.service.upload(&folder, "m.bin", b"model").status, 200);
    let tag = unique("during");
    unlocker.archive(&packed(&saved_images(&[&tag], 100_000_000, false)));
    unlocker.start();
    let mut loads = 0;
    while !matches!(unlocker.service.get("/unlock/status").json()["state"].as_str().unwrap(), "ready" | "error") {
        assert_eq!(unlocker.service.load(&folder, "m.bin").body, b"model");
        loads += 1;
    }
    assert!(loads > 0);
    assert_eq!(unlocker.finish()["state"], "ready");
    engine.remove(&tag);
}
