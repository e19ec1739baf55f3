//! Everything that can go wrong with an unlock: it ends in `error` and says why, and a good unlock follows.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::unlock::{FRAGMENT, Unlocker, packed, unique};
use crate::world::docker::{Engine, engine_or_skip, saved_images};
use crate::world::process::write_program;
use crate::world::protocol;
use crate::world::resource_api::{EMAIL, Fault, ResourceApi};
use crate::world::service::Service;

#[test]
fn every_failure_says_which_and_leaves_nothing_and_a_good_unlock_follows() {
    let Some(engine) = engine_or_skip("unlock failures") else { return };
    let unlocker = Unlocker::new(engine);
    let tag = unique("failures");
    let whole = packed(&saved_images(&[&tag], 20_000_000, false));
    let length = whole.len();
    unlocker.archive(&whole);

    let reply = unlocker.service.post_json("/unlock", json!({"email": EMAIL, "password": "wrong-horse"}));
    assert_eq!(reply.status, 200);
    let error = unlocker.finish()["error"].as_str().unwrap().to_owned();
    assert!(
        error.contains("login failed") && error.contains("Passwords do not match") && !error.contains("wrong-horse"),
        "{error}"
    );

    unlocker.api.fault("/binary-split", Fault::Status(500, String::new()), None);
    assert!(unlocker.fails().contains("key fragment cannot be fetched"));
    unlocker.api.clear_faults();

    unlocker.api.set_key_fragment(b"of another archive");
    assert!(unlocker.fails().contains("the key fragment does not fit"));
    unlocker.api.set_key_fragment(FRAGMENT);

    for cut in [1, 100, length / 2, length - 16, length - 1] {
        unlocker.archive(&whole[..cut]);
        let error = unlocker.fails();
        assert!(error.contains("truncated") && error.contains(&cut.to_string()), "cut at {cut}: {error}");
        assert!(!engine.has(&tag));
    }

    let mut flipped = whole.clone();
    flipped[length / 2 / 16 * 16] ^= 0xff;
    unlocker.archive(&flipped);
    let error = unlocker.fails();
    assert!(error.contains("docker load failed"), "{error}");
    assert!(!engine.has(&tag));

    unlocker.archive(&whole);
    unlocker.unlocks();
    engine.remove(&tag);
}

/// This takes 90 s: every call to the API is tried three times, for 30 s each.
#[test]
fn an_api_that_hangs_ends_in_error() {
    let Some(engine) = engine_or_skip("unlock with a hung API") else { return };
    let unlocker = Unlocker::new(engine);
    unlocker.archive(&packed(&saved_images(&["never:1"], 1000, false)));
    unlocker.api.fault("/login", Fault::Hang, None);
    let error = unlocker.fails();
    assert!(error.contains("sent or took nothing for 30 seconds"), "{error}");
}

#[test]
fn half_an_archive_of_images_is_not_left_behind() {
    let Some(engine) = engine_or_skip("unlock rollback") else { return };
    let unlocker = Unlocker::new(engine);
    let (first, second) = (unique("half-a"), unique("half-b"));
    let tar = saved_images(&[&first, &second], 5_000_000, false);
    let mut encrypted = packed(&tar);
    // The cut is in the second image's layer, after docker has loaded the first image.
    let at = encrypted.len() * 3 / 4 / 16 * 16;
    encrypted[at] ^= 0xff;
    unlocker.archive(&encrypted);
    assert!(unlocker.fails().contains("docker load failed"));
    assert!(!engine.has(&first) && !engine.has(&second));
}

#[test]
fn a_missing_docker_and_a_missing_engine_read_differently() {
    let api = ResourceApi::start();
    api.set_key_fragment(FRAGMENT);
    let archive = packed(&saved_images(&["x:1"], 1000, false));
    let run = |name: &str, value: &str| {
        let service = Service::builder().api(&api).env(name, value).start();
        let unlocker = Unlocker { api: ResourceApi::start(), service };
        unlocker.archive(&archive);
        unlocker.fails()
    };
    let error = run("PATH", "/nonexistent");
    assert!(error.contains("the docker command is not installed"), "{error}");
    let have_docker = Command::new("docker").arg("--version").output().is_ok();
    if have_docker || std::env::var_os("CI").is_some() {
        let error = run("DOCKER_HOST", "unix:///nonexistent/docker.sock");
        assert!(error.contains("the Docker engine does not answer"), "{error}");
    } else {
        let _ = writeln!(std::io::stderr(), "SKIPPED: unlock without an engine needs the docker command");
    }
}

#[test]
fn an_engine_that_dies_in_the_middle_or_is_full_ends_in_error() {
    if engine_or_skip("unlock with a dying engine").is_none() {
        return;
    }
    let own = match Engine::start(Some(150 << 20)) {
        Ok(own) => own,
        Err(why) => {
            assert!(std::env::var_os("CI").is_none(), "{why}");
            let _ = writeln!(std::io::stderr(), "SKIPPED: unlock with a dying engine ({why})");
            return;
        }
    };
    let unlocker = Unlocker::new(&own);
    let tag = unique("dying");
    unlocker.archive(&packed(&saved_images(&[&tag], 300_000_000, false)));
    let error = unlocker.fails();
    assert!(error.contains("docker load failed") && error.contains("no space left on device"), "{error}");
    assert!(!own.has(&tag));

    unlocker.archive(&packed(&saved_images(&[&tag], 40_000_000, false)));
    unlocker.start();
    while unlocker.service.get("/unlock/status").json()["progress"]["done"] == 0 {
        thread::yield_now();
    }
    crate::world::process::signal(own.pid.unwrap(), libc::SIGKILL);
    let status = unlocker.finish();
    // The load may have ended just before the engine died.
    assert!(status["state"] == "error" || status["state"] == "ready", "{status}");
    let error = status["error"].as_str().unwrap_or("docker");
    assert!(error.contains("docker") || error.contains("Docker"), "{error}");
    unlocker.left_nothing();
}

#[test]
fn a_docker_that_stops_reading_is_killed() {
    use loader::unlock::docker::{Docker, DockerError};
    let directory = tempfile::tempdir().unwrap();
    let fake = directory.path().join("docker");
    write_program(&fake, "#!/bin/sh\nexec sleep 1000\n");
    let docker = Docker::new(fake.to_str().unwrap(), Duration::from_millis(500));
    let mut load = docker.load().unwrap();
    let started = Instant::now();
    while load.write_all(&[0; 65_536]).is_ok() {
        assert!(started.elapsed() < Duration::from_secs(10));
    }
    assert!(matches!(load.into_error(), DockerError::Stalled(_)));
}

#[test]
fn sigterm_kills_docker_load() {
    let Some(engine) = engine_or_skip("unlock and SIGTERM") else { return };
    let unlocker = Unlocker::new(engine);
    let tag = unique("sigterm");
    unlocker.archive(&packed(&saved_images(&[&tag], 200_000_000, false)));
    unlocker.start();
    while unlocker.service.get("/unlock/status").json()["progress"]["done"] == 0 {
        thread::yield_now();
    }
    assert_eq!(unlocker.service.terminate().code(), Some(0));
    assert!(!engine.has(&tag));
}

#[test]
fn pack_says_what_is_wrong() {
    let run = |arguments: &[&str], input: &[u8]| {
        let output = Service::builder().run(arguments, input);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (key, empty, input) = (file("key", FRAGMENT), file("empty", b""), file("in", b"tar"));
    let (status, err) = run(&["pack"], b"");
    assert!(status == Some(2) && err.contains("--key-file is missing"), "{err}");
    let (status, err) = run(&["pack", "--key-file", "/no/such/key"], b"x");
    assert!(status == Some(1) && err.contains("/no/such/key"), "{err}");
    let (status, err) = run(&["pack", "--key-file", &empty], b"x");
    assert!(status == Some(1) && err.contains("is empty"), "{err}");
    let output = directory.path().join("out").to_str().unwrap().to_owned();
    let (status, err) = run(&["pack", "--key-file", &key, &empty, &output], b"");
    assert!(status == Some(1) && err.contains("/empty is empty; did docker save fail?"), "{err}");
    assert!(!Path::new(&output).exists() && !Path::new(&format!("{output}.partial")).exists());
    assert_eq!(run(&["pack", "--key-file", &key, &input, &output], b"").0, Some(0));
    assert_eq!(protocol::decrypt(&std::fs::read(&output).unwrap(), FRAGMENT).unwrap(), b"tar");
}
