//! A full disk at every write: models still stream, uploads fail with a clear sentence, logging stops nothing, and once
//! there is space again everything works.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};
use serde_json::json;

use crate::world::docker::{engine_or_skip, saved_images};
use crate::world::resource_api::{EMAIL, PASSWORD};
use crate::world::s3_fault::Fault;
use crate::world::service::Service;
use crate::world::small_disk::SmallDisk;
use crate::world::{World, eventually, pattern, protocol};

const MIB: usize = 1 << 20;

/// Files below a directory, except the disk's filler and the empty files that record that a model had a manifest.
fn files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        if entry.path().is_dir() {
            found.extend(files(&entry.path()));
        } else if entry.file_name() != "filler" && entry.path().extension().is_none_or(|kind| kind != "proven") {
            found.push(entry.file_name().into_string().unwrap());
        }
    }
    found.sort();
    found
}

fn loads(service: &Service, folder: &str, bytes: &[u8]) {
    let reply = service.load(folder, "m.bin");
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(reply.body == bytes, "wrong bytes were loaded");
}

/// Frees the space of a file, which keeps its length.
fn give_back_space(path: &Path) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, flags, 0, file.metadata().unwrap().len()).unwrap();
}

#[test]
fn a_load_streams_uncached_while_the_cache_is_full() {
    let Some(disk) = SmallDisk::mount_or_skip("a full cache", 4096, 100) else { return };
    let (world, proxy) = World::behind_proxy();
    let bytes = pattern(2 * MIB, 1);
    world.upload("m.bin", &bytes);
    let service = Service::builder().api(&world.api).env("MODEL_CACHE_DIR", disk.path()).start();
    assert_eq!(service.login().status, 200);
    let warned = || service.log_text().matches("is loaded without the cache").count() > 0;

    // Full from the first byte, full halfway, and full when only the records are missing.
    for left in [0, 1000, 2048] {
        disk.fill_but(left);
        loads(&service, &world.folder, &bytes);
        loads(&service, &world.folder, &bytes);
        assert!(warned(), "{left}");
    }
    // A moment after its load an unfinished part takes no space; a finished one is complete and has its record.
    eventually(Duration::from_secs(2), "nothing unfinished is on the disk", || {
        let files = files(disk.path());
        files.is_empty() || files == ["m.bin.big", "m.bin.big.json"]
    });
    disk.free();

    // Another program takes the space while a load runs: what is left, and then what the load has reserved, as it could on a file
    // system without reservations. The load takes ten seconds, so that this comes first on a busy machine as well.
    let big = disk.path().join(&world.folder).join("m.bin.big");
    for path in [big.clone(), big.with_extension("big.json")] {
        let _ = std::fs::remove_file(path);
    }
    let full = || service.log_text().matches("No space left").count();
    let before = full();
    proxy.fault("GET", "m.bin", Fault::Trickle(20_000), None);
    thread::scope(|scope| {
        scope.spawn(|| loads(&service, &world.folder, &bytes));
        let part = big.with_extension("big.part");
        eventually(Duration::from_secs(20), "the download has its space", || {
            std::fs::metadata(&part).is_ok_and(|part| part.len() > 0 && part.blocks() * 512 >= part.len())
        });
        disk.fill_but(0);
        give_back_space(&part);
        disk.fill_but(0);
    });
    proxy.clear_faults();
    assert!(full() > before, "the load did not meet the full disk: {}", service.log_text());

    disk.free();
    loads(&service, &world.folder, &bytes);
    for _ in 0..100 {
        if files(disk.path()) == ["m.bin.big", "m.bin.big.json"] {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    proxy.down();
    loads(&service, &world.folder, &bytes);
}

/// There is room for the bytes, but no inode for the file of their record.
#[test]
fn a_load_streams_while_no_record_can_be_written() {
    // Of the root, the spool's directory, the folder and the part, some do not fit.
    for inodes in 2..=6 {
        let Some(disk) = SmallDisk::mount_or_skip("a cache without inodes", 8192, inodes) else { return };
        let (world, proxy) = World::behind_proxy();
        let bytes = pattern(2 * MIB, 1);
        world.upload("m.bin", &bytes);
        // So slow that the record of the part is due before the end.
        proxy.fault("GET", "m.bin", Fault::Trickle(150_000), None);
        let service = Service::builder().api(&world.api).env("MODEL_CACHE_DIR", disk.path()).start();
        assert_eq!(service.login().status, 200);
        thread::scope(|scope| {
            scope.spawn(|| loads(&service, &world.folder, &bytes));
            thread::sleep(Duration::from_millis(400));
            // Takes the inode that the temporary file of the record used.
            let _ = std::fs::write(disk.path().join("filler"), b"");
        });
        proxy.clear_faults();
        loads(&service, &world.folder, &bytes);
        disk.free();
        loads(&service, &world.folder, &bytes);
    }
}

#[test]
fn an_upload_to_a_full_disk_is_refused_and_leaves_nothing() {
    let Some(disk) = SmallDisk::mount_or_skip("a full spool", 4096, 100) else { return };
    let world = World::with(|builder| builder.env("MODEL_CACHE_DIR", disk.path()));
    let (old, new) = (pattern(MIB, 1), pattern(MIB, 2));
    world.upload("m.bin", &old);
    for left in [0, 500] {
        disk.fill_but(left);
        let reply = world.service.upload(&world.folder, "m.bin", &new);
        assert_eq!(reply.status, 500, "{}", reply.text());
        assert!(
            reply.detail().contains("the upload cannot be kept in MODEL_CACHE_DIR: No space"),
            "{}",
            reply.detail()
        );
        assert_eq!(files(disk.path()), ["m.bin.big", "m.bin.big.json"]);
        world.loads("m.bin", &old);
    }
    // Room for the upload but not for its record: it is stored, and not kept in the cache.
    disk.fill_but(new.len().div_ceil(4096) * 4);
    world.upload("m.bin", &new);
    assert!(world.service.log_text().contains("is not kept in the cache"), "the record had room");
    world.loads("m.bin", &new);
    disk.free();
    world.loads("m.bin", &new);
    world.upload("m.bin", &old);
    world.loads("m.bin", &old);
}

#[test]
fn a_full_log_directory_takes_nothing_down_and_whole_lines_follow() {
    let Some(disk) = SmallDisk::mount_or_skip("a full log directory", 64, 10) else { return };
    let world = World::with(|builder| builder.env("LOG_DIR", disk.path()));
    world.upload("m.bin", b"model");
    disk.fill_but(0);
    for _ in 0..400 {
        assert_eq!(world.service.get("/status").status, 200);
        assert_eq!(world.service.load(&world.folder, "missing").status, 500);
    }
    world.loads("m.bin", b"model");
    disk.free();
    // Lines of a flood are counted, not written, until a second has passed without one.
    thread::sleep(Duration::from_secs(3));
    world.service.load(&world.folder, "after");
    let name = files(disk.path()).remove(0);
    let text = std::fs::read_to_string(disk.path().join(name)).unwrap();
    assert!(text.contains("/after was not loaded") && text.ends_with('\n'), "{text}");
    // A line may be cut short, but the next one begins on a line of its own.
    let begins = |line: &str| {
        (line.starts_with("time=20") || "time=20".starts_with(line)) && line.matches("time=20").count() <= 1
    };
    assert!(text.lines().all(begins), "half lines: {text}");
}

#[test]
fn a_log_file_that_cannot_be_created_comes_when_it_can() {
    let Some(disk) = SmallDisk::mount_or_skip("a log directory without inodes", 64, 2) else { return };
    disk.fill_but(0);
    let world = World::with(|builder| builder.env("LOG_DIR", disk.path()));
    assert!(world.service.log_text().contains("there are no log files until it can be"));
    assert_eq!(files(disk.path()), [""; 0]);
    disk.free();
    // Lines of a flood are counted, not written, until a second has passed without one.
    thread::sleep(Duration::from_secs(3));
    world.service.load(&world.folder, "after");
    let name = files(disk.path()).remove(0);
    assert!(std::fs::read_to_string(disk.path().join(name)).unwrap().contains("/after was not loaded"));
}

#[test]
fn an_unlock_succeeds_while_its_record_cannot_be_written() {
    let Some(engine) = engine_or_skip("an unlock without space for its record") else { return };
    let Some(disk) = SmallDisk::mount_or_skip("an unlock without space for its record", 64, 10) else { return };
    let fragment = b"the key fragment of this test";
    let world = World::with(|builder| {
        let builder = builder.env("MODEL_CACHE_DIR", disk.path());
        match engine.host.clone().or_else(|| std::env::var("DOCKER_HOST").ok()) {
            Some(host) => builder.env("DOCKER_HOST", host),
            None => builder,
        }
    });
    world.api.set_key_fragment(fragment);
    let tag = format!("loader-test-full-disk-{}:1.0", std::process::id());
    let archive = protocol::encrypt(&saved_images(&[&tag], 100_000, false), fragment);
    std::fs::write(world.service.images_path(), archive).unwrap();
    let unlock = || {
        let reply = world.service.post_json("/unlock", json!({"email": EMAIL, "password": PASSWORD}));
        assert_eq!(reply.status, 200, "{}", reply.text());
        loop {
            let status = world.service.get("/unlock/status").json();
            assert_ne!(status["state"], "error", "{status}");
            if status["state"] == "ready" {
                return reply.json()["state"].as_str().unwrap().to_owned();
            }
            thread::sleep(Duration::from_millis(10));
        }
    };
    disk.fill_but(0);
    assert_eq!(unlock(), "authenticating");
    assert!(world.service.log_text().contains("the next start unlocks again"));
    assert_eq!(files(disk.path()), [""; 0]);
    assert_eq!(unlock(), "authenticating", "there is no record");
    disk.free();
    assert_eq!(unlock(), "authenticating");
    assert_eq!(unlock(), "ready", "now there is one");
    engine.remove(&tag);
}
