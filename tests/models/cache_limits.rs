//! `CACHE_MAX_BYTES` and `CACHE_MIN_FREE_BYTES`: the models used longest ago make room, and what does not fit is loaded without the
//! cache.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::world::service::Service;
use crate::world::small_disk::SmallDisk;
use crate::world::{PatternReader, World, eventually, in_ci, pattern, sha256_hex, sha256_hex_of};

const MIB: usize = 1 << 20;

/// The size of all files below a directory: lengths or blocks, whichever is more.
fn taken(directory: &Path) -> u64 {
    let mut sum = 0;
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => sum += taken(&entry.path()),
            Ok(metadata) => sum += metadata.len().max(metadata.blocks() * 512),
            Err(_) => {}
        }
    }
    sum
}

/// The models that are complete in the cache.
fn cached(service: &Service) -> Vec<String> {
    let status: Value = service.get("/status").json();
    let models = status["cache"]["models"].as_array().unwrap();
    models.iter().map(|model| model["name"].as_str().unwrap().to_owned()).collect()
}

/// Waits until nobody reads a model any more and all files have their names.
fn settle(service: &Service) {
    eventually(Duration::from_secs(20), "all loads have ended", || {
        service.metric("loader_handler_threads_busy") == 0 && !service.has_thread("download")
    });
}

/// Loads models one after the other, whose bytes are the pattern with this seed.
fn load_all(world: &World, size: usize, models: &[(&str, u64)]) {
    for (name, seed) in models {
        world.loads(name, &pattern(size, *seed));
        settle(&world.service);
    }
}

/// A world with models of one size; the byte of each model's name is the seed of its pattern.
fn world_with(names: &str, size: usize, limit: &str) -> World {
    let world = World::with(|builder| builder.env("CACHE_MAX_BYTES", limit));
    let uploader = world.another_box();
    for name in names.chars() {
        assert_eq!(uploader.upload(&world.folder, &name.to_string(), &pattern(size, u64::from(name))).status, 200);
    }
    world
}

fn loads(world: &World, size: usize, names: &str) {
    for name in names.chars() {
        load_all(world, size, &[(&name.to_string(), u64::from(name))]);
    }
}

#[test]
fn the_models_used_longest_ago_go_also_after_a_restart_and_with_a_clock_that_is_behind() {
    let world = world_with("abcdefgh", MIB, "4M");
    let stop_and_start = || {
        assert!(world.service.terminate().success());
        world.service.restart();
        world.login();
    };
    loads(&world, MIB, "abcad");
    assert_eq!(cached(&world.service), ["a", "c", "d"]);
    assert_eq!(world.service.metric("loader_cache_evictions_total"), 1);
    assert_eq!(world.service.metric("loader_cache_limit_bytes"), 4 << 20);
    stop_and_start();
    loads(&world, MIB, "e");
    assert_eq!(cached(&world.service), ["a", "d", "e"]);

    // To a clock that is a year behind, all models were used a year ahead.
    assert!(world.service.terminate().success());
    for name in ["a", "d", "e"] {
        let record = File::open(format!("{}.json", world.service.cache_file(&world.folder, name).display())).unwrap();
        let year = Duration::from_secs(365 * 86_400);
        record.set_modified(record.metadata().unwrap().modified().unwrap() + year).unwrap();
    }
    world.service.restart();
    world.login();
    loads(&world, MIB, "f");
    assert_eq!(cached(&world.service), ["d", "e", "f"]);
    loads(&world, MIB, "d");
    stop_and_start();
    loads(&world, MIB, "g");
    assert_eq!(cached(&world.service), ["d", "f", "g"]);
    let status = world.service.get("/status").json();
    let model = &status["cache"]["models"][0];
    assert_eq!((&model["plainBytes"], &model["kept"]), (&MIB.into(), &false.into()));
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert!(model["lastUsed"].as_u64().unwrap() > now + 364 * 86_400);

    // All files of a removed model go but one: the record that it was verified once.
    let files: Vec<String> = fs::read_dir(world.service.cache_dir().join(&world.folder))
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("a."))
        .collect();
    assert_eq!(files, ["a.big.proven"]);
}

#[test]
fn what_does_not_fit_is_loaded_without_the_cache_and_nothing_goes_for_it() {
    let world = world_with("ab", MIB, "4M");
    let large = pattern(6 * MIB, 1);
    assert_eq!(world.another_box().upload(&world.folder, "large", &large).status, 200);
    loads(&world, MIB, "ab");
    world.loads("large", &large);
    settle(&world.service);
    assert_eq!(cached(&world.service), ["a", "b"]);
    assert_eq!(world.service.metric("loader_uncached_loads_total"), 1);
    assert!(world.service.log_text().contains("large is loaded without the cache: it needs "));
    assert!(world.service.log_text().contains("; raise CACHE_MAX_BYTES"));
    // So must an upload that is spooled in the cache's directory.
    let reply = world.service.upload(&world.folder, "large", &large);
    assert_eq!(reply.status, 500);
    assert!(reply.text().contains("CACHE_MAX_BYTES (4194304) leaves "), "{}", reply.text());
    assert_eq!((cached(&world.service), world.service.spooled()), (vec!["a".into(), "b".into()], 0));
    // A smaller upload makes room as a download does.
    loads(&world, MIB, "a");
    world.upload("upload", &pattern(2 * MIB, 1));
    assert_eq!(cached(&world.service), ["a", "upload"]);
    world.loads("upload", &pattern(2 * MIB, 1));
}

#[test]
fn a_model_that_is_being_read_stays() {
    // More than the socket buffers hold.
    const SIZE: usize = 16 * MIB;
    let world = world_with("abc", SIZE, "40M");
    loads(&world, SIZE, "a");
    let mut client = world.service.connect();
    let body = format!(r#"{{"folder":"{}"}}"#, world.folder);
    let length = body.len();
    write!(
        client,
        "POST /load/a HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = vec![0; 1000];
    client.read_exact(&mut answer).unwrap();
    for name in ["b", "c"] {
        world.loads(name, &pattern(SIZE, u64::from(name.as_bytes()[0])));
        eventually(Duration::from_secs(20), "it has its name", || cached(&world.service) == ["a", name]);
        eventually(Duration::from_secs(20), "nobody else reads", || {
            world.service.metric("loader_handler_threads_busy") <= 1 && !world.service.has_thread("download")
        });
    }
    client.read_to_end(&mut answer).unwrap();
    assert!(answer.ends_with(&pattern(SIZE, u64::from(b'a'))));
}

#[test]
fn what_keep_names_stays_although_it_was_used_longest_ago() {
    let world = World::new();
    for name in ["keep", "a", "b", "c", "d"] {
        world.upload(name, &pattern(MIB, u64::from(name.as_bytes()[0])));
    }
    let keep = format!("{}/keep", world.folder);
    let service = Service::builder().api(&world.api).env("CACHE_MAX_BYTES", "4M").env("KEEP", keep).start();
    assert_eq!(service.login().status, 200);
    eventually(Duration::from_secs(20), "it is ready", || service.get("/ready").status == 200);
    for name in ["a", "b", "c", "d"] {
        let reply = service.load(&world.folder, name);
        assert!(reply.status == 200 && reply.body == pattern(MIB, u64::from(name.as_bytes()[0])));
        settle(&service);
    }
    assert_eq!(cached(&service), ["c", "d", "keep"]);
    assert_eq!(service.get("/status").json()["cache"]["models"][2]["kept"], true);
    // There is no room for a new version: the old one is still served, and nothing is removed for the new one.
    let (old, new) = (pattern(MIB, u64::from(b'k')), pattern(3 * MIB, 1));
    world.upload("keep", &new);
    assert!(service.load(&world.folder, "keep").body == old);
    eventually(Duration::from_secs(20), "the warning", || service.log_text().contains("raise CACHE_MAX_BYTES"));
    assert_eq!(cached(&service), ["c", "d", "keep"]);
    assert!(service.load(&world.folder, "keep").body == old);

    let reply = service.call("DELETE", &format!("/models/{}/keep", world.folder), &[], b"").unwrap();
    assert_eq!(reply.status, 409);
    assert!(reply.text().contains("KEEP names the model"), "{}", reply.text());
    assert_eq!(cached(&service), ["c", "d", "keep"]);
}

#[test]
fn a_new_version_replaces_the_old_one_before_it_is_whole_if_there_is_no_room_for_both() {
    let world = world_with("ab", MIB, "4M");
    loads(&world, MIB, "b");
    for seed in [1, 2] {
        let bytes = pattern(2 * MIB, seed);
        assert_eq!(world.another_box().upload(&world.folder, "a", &bytes).status, 200);
        world.loads("a", &bytes);
        settle(&world.service);
        world.loads("a", &bytes);
    }
    assert!(cached(&world.service).contains(&"a".to_owned()));
    assert_eq!(world.service.metric("loader_uncached_loads_total"), 0);
}

#[test]
fn a_cache_over_its_limit_is_trimmed_at_the_start() {
    let world = world_with("abcd", MIB, "0");
    loads(&world, MIB, "abcda");
    assert!(world.service.terminate().success());
    world.service.set_env("CACHE_MAX_BYTES", "lots");
    let refused = world.service.run(&[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("CACHE_MAX_BYTES"));
    assert_eq!(fs::read_dir(world.service.cache_dir().join(&world.folder)).unwrap().count(), 4 * 3);
    world.service.set_env("CACHE_MAX_BYTES", "2500K");
    world.service.restart();
    assert_eq!(cached(&world.service), ["a", "d"]);
    world.login();
    loads(&world, MIB, "ad");
}

#[test]
fn so_much_of_the_file_system_stays_free() {
    const KEPT_FREE: u64 = 8 << 20;
    let Some(disk) = SmallDisk::mount_or_skip("a file system of which some stays free", 16 * 1024, 100) else { return };
    let world = World::new();
    let names = ["a", "b", "c", "d", "e"];
    for (seed, name) in (0..).zip(names) {
        world.upload(name, &pattern(2 * MIB, seed));
    }
    let builder = Service::builder().api(&world.api).env("MODEL_CACHE_DIR", disk.path());
    let service = builder.env("CACHE_MIN_FREE_BYTES", "8M").start();
    assert_eq!(service.login().status, 200);
    let load = |seed: u64| {
        let reply = service.load(&world.folder, names[seed as usize]);
        assert!(reply.status == 200 && reply.body == pattern(2 * MIB, seed));
        settle(&service);
    };
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut most = 0;
            while !ended.load(Ordering::Relaxed) {
                most = most.max(taken(disk.path()));
                thread::sleep(Duration::from_millis(1));
            }
            most
        });
        (0..5).for_each(load);
        ended.store(true, Ordering::Relaxed);
        assert!(watcher.join().unwrap() <= KEPT_FREE);
    });
    assert_eq!(cached(&service), ["c", "d", "e"]);

    // Other files fill the disk, so removing models would not help.
    disk.fill_but(1024);
    load(0);
    assert_eq!(cached(&service), ["c", "d", "e"]);
    assert!(service.log_text().contains("lower CACHE_MIN_FREE_BYTES"));
}

/// Parallel loads, uploads and kills, while the size is measured all the time.
#[test]
fn the_limit_holds_to_the_byte_whatever_happens() {
    let (unit, limit, rounds) = if in_ci() { (10 * MIB, "1G", 200) } else { (640 * 1024, "64M", 60) };
    let bytes = if in_ci() { 1 << 30 } else { 64 << 20 };
    let world = World::with(|builder| {
        builder.env("CACHE_MAX_BYTES", limit).env("OFFLINE_HOURS", "1").timeout(Duration::from_secs(600))
    });
    let uploader = world.another_box();
    let size = |model: u64| unit * (1 + model as usize * 3 / 2);
    let models: Vec<(String, u64, String)> = (0..20)
        .map(|model| {
            let reader = || PatternReader::new(size(model) as u64, model);
            let reply = uploader.upload_reader(&world.folder, &format!("m{model}"), size(model) as u64, reader());
            assert_eq!(reply.status, 200, "{}", reply.text());
            (format!("m{model}"), size(model) as u64, sha256_hex_of(reader()).unwrap())
        })
        .collect();
    let (ended, next) = (AtomicBool::new(false), AtomicU64::new(0));
    let restart = Mutex::new(());
    let (world, models) = (&world, &models);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let (mut most, mut counts) = (0, 0_u64);
            while !ended.load(Ordering::Relaxed) {
                most = most.max(taken(&world.service.cache_dir()));
                counts += 1;
                thread::sleep(Duration::from_millis(2));
            }
            (most, counts)
        });
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let round = next.fetch_add(1, Ordering::Relaxed);
                        if round >= rounds {
                            return;
                        }
                        let random = u64::from_le_bytes(pattern(8, 1000 + round).try_into().unwrap());
                        let (name, length, hash) = &models[(random % 20) as usize];
                        match round % 20 {
                            7 => {
                                let bytes = pattern(size(random % 8), round);
                                let name = format!("u{}", random % 3);
                                let length = bytes.len() as u64;
                                let _ = world.service.try_upload_reader(&world.folder, &name, length, &bytes[..]);
                            }
                            13 => {
                                let _one_at_a_time = restart.lock().unwrap();
                                world.service.restart();
                                world.login();
                            }
                            _ => {
                                // A kill cuts loads off, and somebody has to log in again.
                                let load = || {
                                    let reply = world.service.try_load(&world.folder, name);
                                    let reply = reply.ok().filter(|reply| reply.status == 200);
                                    if reply.is_none() {
                                        let _one_at_a_time = restart.lock().unwrap();
                                        world.login();
                                    }
                                    reply
                                };
                                let reply = (0..20).find_map(|_| load()).expect("a load succeeds at last");
                                assert_eq!(reply.body.len() as u64, *length);
                                assert_eq!(sha256_hex(&reply.body), *hash, "{name}");
                            }
                        }
                    }
                })
            })
            .collect();
        let failures = workers.into_iter().filter_map(|worker| worker.join().err()).count();
        ended.store(true, Ordering::Relaxed);
        let (most, counts) = watcher.join().unwrap();
        println!("at most {most} of {bytes} bytes in {counts} counts");
        assert_eq!(failures, 0);
        assert!(most <= bytes && most > bytes / 2, "{most} of {bytes} bytes were taken");
        assert!(counts > 50, "{counts} counts");
    });
}
