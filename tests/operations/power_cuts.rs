//! A kill -9 at random moments, as in a power cut: after the next start there are no wrong bytes, no half file under
//! its final name and no temporary files, downloads continue, and everything works.
//!
//! The moments come from a seed, which a failing test prints; `POWER_CUTS_SEED` repeats them.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use jwt_simple::reexports::ct_codecs::{Base64, Base64UrlSafeNoPadding, Decoder, Encoder};
use serde_json::{Value, json};

use crate::world::docker::{engine_or_skip, saved_images};
use crate::world::process::{Captured, spawn};
use crate::world::resource_api::{EMAIL, PASSWORD, ResourceApi};
use crate::world::s3_fault::{Fault, Purpose};
use crate::world::service::Service;
use crate::world::tcp::free_port;
use crate::world::{Dice, World, loader_binary, pattern, protocol, sha256_hex};

const NAME: &str = "m.bin";

/// How many cuts: two hundred in all in CI.
fn cuts(here: usize, in_ci: usize) -> usize {
    if std::env::var_os("CI").is_some() { in_ci } else { here }
}

/// Every file below a directory.
fn files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path().display().to_string());
        }
    }
    found.sort();
    found
}

/// What a start may leave in the cache: the model or none, and a download to resume or none. `seen` has the hashes of
/// the versions that were whole before.
fn check_cache(service: &Service, folder: &str, contents: &[Vec<u8>], seen: &mut HashSet<String>) {
    let big = service.cache_file(folder, NAME);
    let part = big.with_file_name(format!("{NAME}.big.part"));
    let names: Vec<String> = files(&service.cache_dir());
    for name in &names {
        let kind = name.rsplit_once(&format!("{NAME}.big")).map(|(_, kind)| kind);
        let kinds = ["", ".json", ".proven", ".part", ".part.json", ".part.source.json"];
        assert!(kind.is_some_and(|kind| kinds.contains(&kind)), "{name} is left");
    }
    assert_eq!(part.exists(), part.with_file_name(format!("{NAME}.big.part.json")).exists(), "{names:?}");
    if let Ok(bytes) = fs::read(&big) {
        // A version that the CDN has deleted since is whole if its record's manifest says so, or if it was whole
        // before: the record of the next version comes before its file.
        let record = fs::read_to_string(big.with_file_name(format!("{NAME}.big.json"))).unwrap_or_default();
        let hash = sha256_hex(&bytes);
        let is_whole = contents.contains(&bytes) || is_of_manifest(&bytes, &record) || seen.contains(&hash);
        assert!(is_whole, "an incomplete file of {} bytes has its final name", bytes.len());
        seen.insert(hash);
    }
}

/// Whether the manifest in a record fits these bytes.
fn is_of_manifest(bytes: &[u8], record: &str) -> bool {
    let record: Value = serde_json::from_str(record).unwrap_or_default();
    let Some(payload) = record["manifest"].as_str().and_then(|text| text.split('.').nth(1)) else { return false };
    let payload: Value =
        serde_json::from_slice(&Base64UrlSafeNoPadding::decode_to_vec(payload, None).unwrap()).unwrap();
    let hashes = bytes.chunks(payload["chunk"].as_u64().unwrap() as usize).flat_map(|chunk| unhex(&sha256_hex(chunk)));
    let hashes = Base64UrlSafeNoPadding::encode_to_string(hashes.collect::<Vec<u8>>()).unwrap();
    payload["sha256"] == hashes.as_str() && payload["big_length"] == bytes.len()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// The bytes that the record of a part file promises to have on the disk.
fn promised(record: &Path, length: u64) -> u64 {
    let record: Option<Value> = fs::read(record).ok().and_then(|json| serde_json::from_slice(&json).ok());
    let Some(chunks) = record.as_ref().and_then(|record| record["chunks"].as_str()) else { return 0 };
    let chunks = Base64::decode_to_vec(chunks, None).unwrap();
    let stored = (0..length.div_ceil(1 << 20)).filter(|index| chunks[*index as usize / 8] & (1 << (index % 8)) != 0);
    stored.map(|index| length.min((index + 1) << 20) - (index << 20)).sum()
}

fn restart(service: &Service) {
    service.restart();
    let reply = service.login();
    assert_eq!(reply.status, 200, "{}", reply.text());
}

/// Every state with a temporary file, made without killing anything.
#[test]
fn temporary_files_of_every_kind_are_gone_after_the_next_start() {
    let world = World::new();
    let bytes = pattern(100_000, 1);
    world.upload(NAME, &bytes);
    let (root, folder) = (world.service.cache_dir(), world.service.cache_dir().join(&world.folder));
    let whole = files(&root);
    fs::create_dir_all(root.join(".spool")).unwrap();
    let orphans = [
        root.join(".spool/0123456789abcdef"),
        root.join(".unlock.json.tmp"),
        folder.join("m.bin.big.json.tmp"),
        folder.join("a.bin.big.part"),
        folder.join("b.bin.big.part.json"),
        folder.join("c.bin.big.part.json.tmp"),
        folder.join("d.bin.big.part.source.json"),
        folder.join("e.bin.big.part.source.json.tmp"),
    ];
    for orphan in &orphans {
        fs::write(orphan, b"half").unwrap();
    }
    restart(&world.service);
    assert_eq!(files(&root), whole);
    world.loads(NAME, &bytes);
}

#[test]
fn power_cuts_in_a_load() {
    let mut moments = Dice::new("POWER_CUTS_SEED");
    let (world, proxy) = World::behind_proxy();
    let bytes = pattern(4 << 20, 1);
    world.upload(NAME, &bytes);
    let big = world.s3.get(&world.folder, &format!("{NAME}.big")).unwrap();
    let record = world.service.cache_file(&world.folder, NAME).with_file_name(format!("{NAME}.big.part.json"));
    let (mut resumed, count) = (0, cuts(9, 70));
    for cut in 0..count {
        world.forget(NAME);
        // Most cuts hit the transfer, every third one its end.
        let slowly = cut % 3 != 0;
        if slowly {
            proxy.fault_on(Purpose::Whole, ".big", Fault::Trickle(200_000), None);
        }
        let moment = moments.within(Duration::from_millis(if slowly { 2200 } else { 150 }));
        thread::scope(|scope| {
            let load = scope.spawn(|| world.service.try_load(&world.folder, NAME));
            thread::sleep(moment);
            world.service.kill();
            if let Ok(reply) = load.join().unwrap() {
                assert!(reply.status == 200 && reply.body == bytes, "cut {cut}: {}", reply.status);
            }
        });
        let proven = promised(&record, big.len() as u64);
        proxy.clear_faults();
        restart(&world.service);
        check_cache(&world.service, &world.folder, std::slice::from_ref(&big), &mut HashSet::new());
        proxy.clear_requests();
        world.loads(NAME, &bytes);
        let sent = proxy.bytes_sent("GET", ".big");
        assert!(sent <= big.len() as u64 - proven, "cut {cut}: {sent} bytes were sent, {proven} were proven");
        resumed += usize::from(proven > 0);
    }
    assert!(resumed >= count / 6, "only {resumed} of {count} downloads were resumed");
}

#[test]
fn power_cuts_in_an_upload() {
    let mut moments = Dice::new("POWER_CUTS_SEED");
    let world = World::new();
    let cold = world.another_box();
    let size = 2 << 20;
    let mut certain = 1;
    let started = Instant::now();
    world.upload(NAME, &pattern(size, certain));
    let whole = started.elapsed();
    let (mut tried, mut seen) = (certain, HashSet::new());
    for cut in 0..cuts(9, 70) {
        tried += 1;
        let bytes = pattern(size, tried);
        let moment = moments.within(whole * 5 / 4);
        thread::scope(|scope| {
            let upload =
                scope.spawn(|| world.service.try_upload_reader(&world.folder, NAME, size as u64, bytes.as_slice()));
            thread::sleep(moment);
            world.service.kill();
            if let Ok(reply) = upload.join().unwrap() {
                assert_eq!(reply.status, 200, "cut {cut}: {}", reply.text());
                certain = tried;
            }
        });
        restart(&world.service);
        let generations: Vec<_> = world.keys();
        let bigs: Vec<_> = generations.iter().filter_map(|key| world.s3.get(&world.folder, key)).collect();
        check_cache(&world.service, &world.folder, &bigs, &mut seen);
        for service in [&world.service, &cold] {
            let reply = service.load(&world.folder, NAME);
            assert_eq!(reply.status, 200, "cut {cut}: {}", reply.text());
            let version = (certain..=tried).rev().find(|version| reply.body == pattern(size, *version));
            certain = version.unwrap_or_else(|| panic!("cut {cut}: no version from {certain} to {tried} was loaded"));
        }
    }
    // The first upload leaves what another box might be about to commit.
    for version in tried + 1..=tried + 2 {
        thread::sleep(Duration::from_millis(1100));
        world.upload(NAME, &pattern(size, version));
    }
    let bytes = pattern(size, tried + 2);
    world.loads(NAME, &bytes);
    assert!(cold.load(&world.folder, NAME).body == bytes);
    // The server of `cargo test` writes an object and its metadata one after the other, so a cut between them leaves an
    // object that does not say what it is. It is never removed, because it may be a model of that name.
    let says_what_it_is = |key: &String| {
        let metadata = world.s3.head_metadata(&world.folder, key);
        metadata.is_some_and(|metadata| metadata.keys().any(|name| name.contains("small-sha256")))
    };
    let left: Vec<String> = world.keys().into_iter().filter(says_what_it_is).collect();
    assert!((1..=3).contains(&left.len()), "plain key and two generations: {left:?} of {:?}", world.keys());
}

#[test]
fn power_cuts_in_an_unlock() {
    let Some(engine) = engine_or_skip("power cuts in an unlock") else { return };
    let mut moments = Dice::new("POWER_CUTS_SEED");
    let fragment = b"the key fragment of this test";
    let api = ResourceApi::start();
    api.set_key_fragment(fragment);
    let mut builder = Service::builder().api(&api);
    if let Some(host) = engine.host.clone().or_else(|| std::env::var("DOCKER_HOST").ok()) {
        builder = builder.env("DOCKER_HOST", host);
    }
    let service = builder.start();
    let tag = format!("loader-test-power-cuts-{}:1.0", std::process::id());
    let archive = protocol::encrypt(&saved_images(&[&tag], 8_000_000, false), fragment);
    fs::write(service.images_path(), archive).unwrap();
    let start = || {
        let reply = service.post_json("/unlock", json!({"email": EMAIL, "password": PASSWORD}));
        assert_eq!(reply.status, 200, "{}", reply.text());
    };
    let unlocks = || {
        start();
        loop {
            let status = service.get("/unlock/status").json();
            assert_ne!(status["state"], "error", "{status}");
            if status["state"] == "ready" {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        assert!(engine.has(&tag));
    };
    let started = Instant::now();
    unlocks();
    let whole = started.elapsed();
    for cut in 0..cuts(5, 40) {
        engine.remove(&tag);
        start();
        thread::sleep(moments.within(whole * 5 / 4));
        service.kill();
        service.restart();
        let left = files(&service.cache_dir());
        assert!(left.iter().all(|name| name.ends_with("/.unlock.json")), "cut {cut}: {left:?}");
        for name in files(service.dir()) {
            let plain = fs::read(&name).is_ok_and(|bytes| bytes.windows(5).any(|word| word == b"ustar"));
            assert!(!plain || name.ends_with("images.enc"), "cut {cut}: {name} holds plaintext");
        }
        unlocks();
    }
    engine.remove(&tag);
}

/// The day changes during the start: the new day's file is created, and the eighth oldest is deleted.
#[test]
fn power_cuts_in_the_rotation_of_logs() {
    let mut moments = Dice::new("POWER_CUTS_SEED");
    let service = Service::builder().env("LOG_LEVEL", "trace").start();
    service.kill();
    let logs = service.log_dir();
    let output = Captured::default();
    let mut longest = Duration::from_millis(60);
    for cut in 0..cuts(9, 60) {
        for day in 1..=9 {
            fs::write(logs.join(format!("loader-2020-01-{day:02}.log")), "time=2020 a line\n").unwrap();
        }
        let bind = format!("127.0.0.1:{}", free_port());
        let env = [("LOG_LEVEL".into(), "trace".into())];
        let started = Instant::now();
        let mut child: Child = spawn(&loader_binary(), service.dir(), &env, &bind, &output);
        thread::sleep(moments.within(longest));
        child.kill().unwrap();
        child.wait().unwrap();
        // A start takes longer on a slow machine, so later moments are tried as well.
        if files(&logs).len() > 8 {
            longest = (longest * 2).min(Duration::from_secs(2)).max(started.elapsed());
        }
        if cut % 3 == 2 {
            service.restart();
            service.kill();
            let left = files(&logs);
            assert!(left.len() <= 7, "cut {cut}: {left:?}");
            for file in left {
                let text = fs::read_to_string(&file).unwrap();
                assert!(text.is_empty() || text.ends_with('\n'), "cut {cut}: {file} ends with half a line");
                assert!(text.lines().all(|line| line.starts_with("time=20")), "cut {cut}: {file}: {text}");
            }
        }
    }
}
