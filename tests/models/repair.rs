//! A cache that decays while it is in use: the right bytes, at the cost of the chunks that are bad.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::models::pairs::flip_byte;
use crate::world::s3_fault::Fault;
use crate::world::service::Service;
use crate::world::small_disk::SmallDisk;
use crate::world::{Dice, PatternReader, World, eventually, pattern, sha256_hex_of};

const MIB: usize = 1 << 20;

fn repaired(service: &Service) -> u64 {
    service.metric("loader_chunks_repaired_total")
}

#[test]
fn flipped_bits_all_over_a_cached_model_cost_their_chunks_and_nothing_else() {
    let (size, flips) = if std::env::var_os("CI").is_some() { (1024 * MIB, 200) } else { (96 * MIB, 20) };
    let (world, proxy) = World::behind_proxy();
    let reply = world.service.upload_reader(&world.folder, "m.bin", size as u64, PatternReader::new(size as u64, 1));
    assert_eq!(reply.status, 200, "{}", reply.text());
    let expected = sha256_hex_of(PatternReader::new(size as u64, 1)).unwrap();
    // An upload in parts does not fill the cache, so this load does.
    assert_eq!(world.service.load_to(&world.folder, "m.bin", &mut std::io::sink()).sha256, expected);
    let path = world.cached("m.bin");
    let (mut dice, mut hit) = (Dice::new("MANIFESTS_SEED"), std::collections::BTreeSet::new());
    while hit.len() < flips {
        let at = dice.below(fs::metadata(&path).unwrap().len() as usize);
        // Two flips of the same bit cancel out.
        if hit.insert(at / MIB) {
            flip_byte(&path, at as u64);
        }
    }
    proxy.clear_requests();
    for (load, repairs) in [("the next load", flips as u64), ("the load after it", 0)] {
        let before = (repaired(&world.service), proxy.bytes_sent("GET", ".big"));
        let mut sink = std::io::sink();
        let download = world.service.load_to(&world.folder, "m.bin", &mut sink);
        assert_eq!(
            (download.status, &download.error, download.sha256.as_str()),
            (200, &None, expected.as_str()),
            "{load}"
        );
        assert_eq!(repaired(&world.service) - before.0, repairs, "{load}");
        assert!(proxy.bytes_sent("GET", ".big") - before.1 <= repairs * MIB as u64, "{load}");
    }
}

/// Loads that join a download read its file, which may have rotted since the bytes arrived.
#[test]
fn a_part_file_that_decays_while_it_is_filled_never_makes_a_wrong_body() {
    let (world, proxy) = World::behind_proxy();
    let bytes = pattern(8 * MIB, 1);
    world.upload("m.bin", &bytes);
    world.forget("m.bin");
    proxy.fault("GET", ".big", Fault::Trickle(400_000), None);
    let part = format!("{}.part", world.service.cache_file(&world.folder, "m.bin").display());
    thread::scope(|scope| {
        let first = scope.spawn(|| world.loads("m.bin", &bytes));
        eventually(Duration::from_secs(20), "three chunks are there", || world.service.downloaded() > 3 * MIB as u64);
        for at in [5, MIB + 7] {
            flip_byte(part.as_ref(), at as u64);
        }
        let follower = scope.spawn(|| world.loads("m.bin", &bytes));
        first.join().unwrap();
        follower.join().unwrap();
    });
    assert!(repaired(&world.service) >= 2, "the follower has not read what decayed");
    proxy.clear_faults();
    world.loads("m.bin", &bytes);
}

#[test]
fn damage_on_a_file_system_that_became_read_only_is_bypassed() {
    let Some(disk) = SmallDisk::mount_or_skip("a read-only cache", 16 * 1024, 100) else { return };
    let (world, proxy) = World::behind_proxy_with(|builder| builder.env("MODEL_CACHE_DIR", disk.path()));
    let bytes = pattern(5 * MIB, 1);
    world.upload("m.bin", &bytes);
    let path = disk.path().join(&world.folder).join("m.bin.big");
    flip_byte(&path, 2 * MIB as u64 + 5);
    disk.make_read_only();
    for _ in 0..2 {
        proxy.clear_requests();
        world.loads("m.bin", &bytes);
        let sent = proxy.bytes_sent("GET", ".big");
        assert!(sent <= MIB as u64, "{sent} bytes were downloaded for one chunk");
    }
}

#[test]
fn the_cache_is_listed_although_part_of_it_cannot_be_read() {
    let world = World::new();
    world.upload("m.bin", b"model");
    // Directories where files belong.
    fs::create_dir_all(world.service.cache_dir().join("aaa/x.big.part")).unwrap();
    fs::create_dir_all(world.service.cache_dir().join("zzz/x.big.part")).unwrap();
    fs::create_dir_all(world.service.cache_dir().join(&world.folder).join("a.big.part")).unwrap();
    world.service.restart();
    assert_eq!(world.service.get("/status").json()["cache"]["files"], 1);
    let log = world.service.log_text();
    assert!(log.contains("is left alone") && !log.contains("models are loaded without it"), "{log}");
}

#[test]
fn a_cold_range_of_a_large_model_costs_its_chunks() {
    let (world, proxy) = World::behind_proxy();
    let size = 64 * MIB;
    let reply = world.service.upload_reader(&world.folder, "m.bin", size as u64, PatternReader::new(size as u64, 1));
    assert_eq!(reply.status, 200, "{}", reply.text());
    world.forget("m.bin");
    proxy.clear_requests();
    let range = [("Range", "bytes=40000000-41048575"), ("Content-Type", "application/json")];
    let body = format!(r#"{{"folder":"{}"}}"#, world.folder);
    let reply = world.service.call("POST", "/load/m.bin", &range, body.as_bytes()).unwrap();
    assert_eq!((reply.status, reply.body.len()), (206, MIB));
    assert!(reply.body == pattern(size, 1)[40_000_000..41_048_576]);
    let sent = proxy.bytes_sent("GET", "m.bin");
    assert!(sent <= 4 * MIB as u64, "{sent} bytes were downloaded for 1 MiB");
}

/// A second loader, started by hand, must not touch what the first one works on.
#[test]
fn a_second_loader_on_the_same_address_or_cache_touches_nothing() {
    let (world, proxy) = World::behind_proxy();
    let bytes = pattern(6 * MIB, 1);
    world.upload("m.bin", &bytes);
    world.forget("m.bin");
    proxy.fault("GET", ".big", Fault::Trickle(300_000), None);
    let part = format!("{}.part", world.service.cache_file(&world.folder, "m.bin").display());
    thread::scope(|scope| {
        let load = scope.spawn(|| world.loads("m.bin", &bytes));
        eventually(Duration::from_secs(20), "a chunk is there", || {
            fs::metadata(&part).is_ok_and(|metadata| metadata.len() >= MIB as u64)
        });
        let cache = world.service.cache_dir();
        let second = Service::builder().api(&world.api).env("MODEL_CACHE_DIR", &cache);
        let output = second.run(&[], b"");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains("which another loader is using"), "{said}");
        let same = Service::builder().api(&world.api).env("MODEL_CACHE_DIR", &cache);
        let output = same.env("BIND_ADDR", world.service.address()).run(&[], b"");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains("cannot be listened on"), "{said}");
        assert!(fs::metadata(&part).is_ok(), "the part file is gone");
        load.join().unwrap();
    });
}
