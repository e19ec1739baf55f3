//! Load and upload: bytes, streaming, cache, resumption and memory.

use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::Duration;

use crate::world::protocol::{self, Salts};
use crate::world::resource_api::Fault as ApiFault;
use crate::world::s3::S3;
use crate::world::s3_fault::{Fault, Purpose};
use crate::world::{PatternReader, World, eventually, pattern, sha256_hex, sha256_hex_of};

const MIB: usize = 1 << 20;

#[test]
fn what_is_uploaded_is_loaded_cold_and_warm() {
    let world = World::new();
    for size in [0, 1, 15, 16, 17, 31, 32, 48, 3072, 10_191, 10_208, 10_224, 65_536, 5 * MIB] {
        let (name, bytes) = (format!("m-{size}.bin"), pattern(size, size as u64));
        world.upload(&name, &bytes);
        world.loads(&name, &bytes);
        world.forget(&name);
        world.loads(&name, &bytes);
        world.loads(&name, &bytes);
        // The parts are what the protocol says, by another implementation.
        let small = world.api.file(&world.folder, &format!("{name}.small")).unwrap();
        let big = world.s3.get(&world.folder, &format!("{name}.big")).unwrap();
        assert_eq!(small.len(), protocol::split_point(small.len() + big.len()), "size {size}");
        assert!(protocol::join(&small, &big, &Salts::default()).unwrap() == bytes, "size {size}");
    }
}

#[test]
fn file_names_of_all_kinds_work() {
    let world = World::new();
    for name in
        ["модель v1.onnx", "a+b&c=d;e,f.bin", "100%.bin", "~tilde'(x)!*.bin", "\"quoted\".bin", ".hidden", "#?x"]
    {
        world.upload(name, name.as_bytes());
        world.forget(name);
        world.loads(name, name.as_bytes());
    }
}

#[test]
fn objects_of_old_uploads_without_metadata_still_load() {
    let world = World::new();
    let bytes = pattern(100_000, 1);
    let (small, big) = protocol::split(&bytes, &Salts::default());
    world.api.put_file(&world.folder, "old.bin.small", small);
    world.s3.put(&world.folder, "old.bin.big", &big, &[]);
    world.loads("old.bin", &bytes);
    world.loads("old.bin", &bytes);
}

#[test]
fn an_upload_records_its_hashes_and_its_generation() {
    let world = World::new();
    world.upload("m.bin", &pattern(50_000, 1));
    let small = world.api.file(&world.folder, "m.bin.small").unwrap();
    let big = world.s3.get(&world.folder, "m.bin.big").unwrap();
    let generation = format!("m.bin.{}.big", &sha256_hex(&small)[..16]);
    assert!(world.s3.get(&world.folder, &generation).unwrap() == big);
    for key in ["m.bin.big", &generation] {
        let metadata = world.s3.head_metadata(&world.folder, key).unwrap();
        assert_eq!(metadata.get("small-sha256"), Some(&sha256_hex(&small)), "{key}");
        assert_eq!(metadata.get("sha256"), Some(&sha256_hex(&big)), "{key}");
    }
}

#[test]
fn generations_older_than_the_previous_one_are_deleted() {
    let world = World::new();
    // A model that is named like a generation of the other is none.
    world.upload("m.bin.0123456789abcdef", b"another model");
    for version in 1..=4_u64 {
        world.upload("m.bin", &pattern(20_000, version));
        // The times of objects may have whole seconds only.
        thread::sleep(Duration::from_millis(1100));
    }
    let generations: Vec<String> = world
        .keys()
        .into_iter()
        .filter(|key| key.starts_with("m.bin.") && key.len() == "m.bin..big".len() + 16)
        .collect();
    let small = world.api.file(&world.folder, "m.bin.small").unwrap();
    assert!(generations.contains(&format!("m.bin.{}.big", &sha256_hex(&small)[..16])), "{generations:?}");
    assert_eq!(generations.len(), 3, "current, previous and the other model: {generations:?}");
    world.forget("m.bin.0123456789abcdef");
    world.loads("m.bin.0123456789abcdef", b"another model");
    world.forget("m.bin");
    world.loads("m.bin", &pattern(20_000, 4));
}

#[test]
fn cache_files_are_for_this_user_only() {
    let world = World::new();
    world.upload("m.bin", b"model");
    let file = world.service.cache_file(&world.folder, "m.bin");
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&file), mode(file.parent().unwrap()), mode(&world.service.cache_dir())), (0o600, 0o700, 0o700));
}

#[test]
fn a_warm_load_asks_the_cdn_for_nothing() {
    let (world, proxy) = World::behind_proxy();
    let bytes = pattern(MIB, 1);
    world.upload("m.bin", &bytes);
    proxy.clear_requests();
    world.loads("m.bin", &bytes);
    assert!(proxy.requests().is_empty(), "{:?}", proxy.requests());
    proxy.down();
    world.loads("m.bin", &bytes);
}

#[test]
fn two_loads_of_one_cold_file_download_it_once() {
    let (world, proxy) = World::behind_proxy();
    let bytes = pattern(4 * MIB, 1);
    world.upload("m.bin", &bytes);
    world.forget("m.bin");
    proxy.clear_requests();
    proxy.fault("GET", "m.bin", Fault::Trickle(400_000), None);
    thread::scope(|scope| {
        for wait in [0, 200, 400] {
            let (world, bytes) = (&world, &bytes);
            scope.spawn(move || {
                thread::sleep(Duration::from_millis(wait));
                world.loads("m.bin", bytes);
            });
        }
    });
    let sent = proxy.bytes_sent("GET", ".big");
    let big = world.s3.get(&world.folder, "m.bin.big").unwrap().len() as u64;
    assert_eq!(sent, big);
}

#[test]
fn a_cold_load_streams_while_it_fills_the_cache() {
    let (world, proxy) = World::behind_proxy();
    let bytes = pattern(4 * MIB, 1);
    world.upload("m.bin", &bytes);
    world.forget("m.bin");
    proxy.fault("GET", "m.bin", Fault::Trickle(400_000), None);
    let mut sink = Vec::new();
    let download = world.service.load_to(&world.folder, "m.bin", &mut sink);
    assert!(sink == bytes);
    assert!(
        download.first_byte < download.total / 2,
        "first byte after {:?} of {:?}",
        download.first_byte,
        download.total
    );
    proxy.down();
    world.loads("m.bin", &bytes);
}

#[test]
fn a_broken_download_continues_where_it_stopped() {
    let (world, proxy) = World::behind_proxy();
    let bytes = pattern(3 * MIB, 1);
    world.upload("m.bin", &bytes);
    for fault in [Fault::CutAtHalf, Fault::CutResponseAt(1_000_000), Fault::Reset, Fault::Status(503), Fault::Garbage] {
        world.forget("m.bin");
        proxy.clear_requests();
        // The first request asks for the tail only; some of these hit it, some the transfer.
        proxy.fault("GET", "m.bin", fault.clone(), Some(2));
        world.loads("m.bin", &bytes);
        proxy.clear_faults();
        let sent = proxy.bytes_sent("GET", "m.bin");
        assert!(sent < bytes.len() as u64 + 300_000, "{fault:?}: {sent} bytes were sent");
        world.loads("m.bin", &bytes);
    }
}

#[test]
fn a_download_is_resumed_after_a_restart() {
    let (world, proxy) = World::behind_proxy();
    let bytes = pattern(6 * MIB, 1);
    world.upload("m.bin", &bytes);
    world.forget("m.bin");
    proxy.fault("GET", "m.bin", Fault::Trickle(200_000), None);
    thread::scope(|scope| {
        let load = scope.spawn(|| world.service.try_load(&world.folder, "m.bin"));
        thread::sleep(Duration::from_millis(900));
        assert!(world.service.terminate().success() || !world.service.is_running());
        // The transfer was running: it was finished within the grace period, or cut.
        let _ = load.join().unwrap();
    });
    world.forget("m.bin");
    // A client that goes away stops the download; what was there is kept.
    world.service.restart();
    world.login();
    proxy.clear_requests();
    let mut client = world.service.connect();
    let body = format!(r#"{{"filename":"m.bin","folder":"{}"}}"#, world.folder);
    let request = format!(
        "POST /load/m.bin HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    std::io::Write::write_all(&mut client, request.as_bytes()).unwrap();
    thread::sleep(Duration::from_millis(900));
    drop(client);
    let part = world.service.cache_file(&world.folder, "m.bin.big.part").with_extension("");
    for _ in 0..100 {
        if world.service.log_text().contains("no client is left") {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    assert!(part.exists(), "{part:?}: {}", world.service.log_text());
    proxy.clear_faults();
    world.service.kill();
    world.service.restart();
    world.login();
    proxy.clear_requests();
    world.loads("m.bin", &bytes);
    let sent = proxy.bytes_sent("GET", "m.bin");
    assert!(sent < bytes.len() as u64 - 100_000, "{sent} bytes were sent although some were there");
}

/// What the CDN was asked for besides the end of the object, as `first byte-last byte`.
fn ranges_asked(proxy: &crate::world::s3_proxy::S3Proxy) -> Vec<String> {
    let ranges = proxy.requests().into_iter().filter_map(|request| request.range);
    ranges
        .filter_map(|range| range.strip_prefix("bytes=").map(str::to_owned))
        .filter(|range| {
            let (from, to) = range.split_once('-').unwrap();
            to.parse::<u64>().unwrap() - from.parse::<u64>().unwrap() >= 32
        })
        .collect()
}

#[test]
fn a_cdn_that_is_far_away_is_asked_for_several_ranges_at_once() {
    let (world, proxy) = World::behind_proxy();
    let bytes = pattern(20 * MIB, 1);
    world.upload("m.bin", &bytes);
    for fault in [None, Some(Fault::CutResponseAt(1_000_000)), Some(Fault::Reset)] {
        world.forget("m.bin");
        proxy.clear_requests();
        // The first question shows how far it is.
        proxy.fault("GET", "m.bin", Fault::Delay(Duration::from_millis(60)), Some(1));
        if let Some(fault) = &fault {
            proxy.fault_on(Purpose::Rest, "m.bin", fault.clone(), Some(3));
        }
        world.loads("m.bin", &bytes);
        proxy.clear_faults();
        let ranges = ranges_asked(&proxy);
        assert!(ranges.iter().any(|range| range.starts_with("8388608-")), "{fault:?}: {ranges:?}");
        let sent = proxy.bytes_sent("GET", "m.bin");
        assert!(sent < bytes.len() as u64 + 300_000, "{fault:?}: {sent} bytes were sent");
        world.loads("m.bin", &bytes);
    }
    // One that is near is not; but the machine may take a break just when it answers.
    let near = (0..10).any(|_| {
        world.forget("m.bin");
        proxy.clear_requests();
        world.loads("m.bin", &bytes);
        ranges_asked(&proxy).is_empty()
    });
    assert!(near, "{:?}", ranges_asked(&proxy));
}

#[test]
fn a_model_that_is_replaced_while_its_ranges_are_downloaded_is_no_mixture() {
    let (world, proxy) = World::behind_proxy();
    let (old, new) = (pattern(20 * MIB, 1), pattern(20 * MIB, 2));
    // Without generations, as the peer uploads: both versions have one key.
    let put = |bytes: &[u8]| {
        let (small, big) = protocol::split(bytes, &Salts::default());
        world.api.put_file(&world.folder, "m.bin.small", small);
        world.s3.put(&world.folder, "m.bin.big", &big, &[]);
    };
    put(&old);
    // Two questions, for the generation and for the plain key, and then slow ranges.
    proxy.fault("HEAD", "m.bin", Fault::Delay(Duration::from_millis(60)), Some(2));
    proxy.fault("GET", "m.bin", Fault::Trickle(200_000), Some(3));
    thread::scope(|scope| {
        let load = scope.spawn(|| world.service.try_load(&world.folder, "m.bin"));
        thread::sleep(Duration::from_millis(1500));
        put(&new);
        // What was under way when the object changed may arrive whole; then it is the old one.
        if let Ok(reply) = load.join().unwrap() {
            assert!(reply.status != 200 || reply.body == old, "a mixture was loaded");
        }
    });
    proxy.clear_faults();
    world.loads("m.bin", &new);
}

#[test]
fn a_cdn_that_knows_no_ranges_is_downloaded_whole_first() {
    let (world, proxy) = World::behind_proxy();
    let bytes = pattern(MIB, 1);
    world.upload("m.bin", &bytes);
    world.forget("m.bin");
    proxy.fault("GET", "m.bin", Fault::IgnoreRange, None);
    world.loads("m.bin", &bytes);
    world.loads("m.bin", &bytes);
}

#[test]
fn a_large_object_is_uploaded_in_parts_and_damage_on_the_way_is_repaired() {
    let (world, proxy) = World::behind_proxy();
    // Three parts of at most 64 MiB; the second is broken off once.
    let size = 130 * MIB as u64;
    proxy.fault("PUT", "partNumber=2", Fault::CutRequestAt(10_000_000), Some(1));
    let reply = world.service.upload_reader(&world.folder, "m.bin", size, PatternReader::new(size, 1));
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(proxy.count("PUT", "partNumber=1"), 1);
    assert_eq!(proxy.count("PUT", "partNumber=2"), 2);
    assert_eq!(proxy.count("PUT", "partNumber=3"), 1);
    let expected = sha256_hex_of(PatternReader::new(size, 1)).unwrap();
    world.forget("m.bin");
    for _ in ["cold", "warm"] {
        let download = world.service.load_to(&world.folder, "m.bin", &mut std::io::sink());
        assert_eq!(
            (download.status, download.content_length, download.sha256.as_str()),
            (200, Some(size), expected.as_str())
        );
    }
}

#[test]
fn an_upload_is_refused_as_a_whole_when_the_client_goes_away() {
    let world = World::new();
    world.upload("m.bin", b"version 1");
    let mut client = world.service.connect();
    let head = "POST /upload/m.bin HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 9000000\r\n\r\n\
                --b\r\nContent-Disposition: form-data; name=data; filename=x\r\n\r\n";
    std::io::Write::write_all(&mut client, head.as_bytes()).unwrap();
    std::io::Write::write_all(&mut client, &vec![1; 4_000_000]).unwrap();
    drop(client);
    thread::sleep(Duration::from_millis(300));
    eventually(Duration::from_secs(10), "the upload's spool file goes", || world.service.spooled() == 0);
    world.loads("m.bin", b"version 1");
}

#[test]
fn memory_does_not_grow_with_the_size_of_files() {
    let world = World::with(|builder| builder.timeout(Duration::from_secs(300)));
    world.upload("warm-up.bin", &pattern(MIB, 9));
    world.loads("warm-up.bin", &pattern(MIB, 9));
    let size = if std::env::var_os("CI").is_some() { 1 << 30 } else { 256 << 20 };
    let expected = sha256_hex_of(PatternReader::new(size, 3)).unwrap();
    let idle = world.service.vm_rss_kib();
    world.service.reset_hwm();
    let reply = world.service.upload_reader(&world.folder, "m.bin", size, PatternReader::new(size, 3));
    assert_eq!(reply.status, 200, "{}", reply.text());
    world.forget("m.bin");
    for state in ["cold", "warm"] {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let download = world.service.load_to(&world.folder, "m.bin", &mut std::io::sink());
                    assert_eq!(
                        (download.status, download.received, download.sha256.as_str()),
                        (200, size, expected.as_str()),
                        "{state}"
                    );
                });
            }
        });
    }
    world.service.peaked_at_most(idle, 16 * 1024, &format!("one upload and eight loads of {size} bytes"));
}

#[test]
fn loads_go_on_when_the_cache_cannot_be_written() {
    let world = World::with(|builder| builder.env("MODEL_CACHE_DIR", "/proc/no-such-place"));
    let bytes = pattern(200_000, 1);
    let (small, big) = protocol::split(&bytes, &Salts::default());
    world.api.put_file(&world.folder, "m.bin.small", small);
    world.s3.put(&world.folder, "m.bin.big", &big, &[]);
    world.loads("m.bin", &bytes);
    let detail = world.service.upload(&world.folder, "m.bin", &bytes).detail();
    assert!(detail.contains("MODEL_CACHE_DIR"), "{detail}");
}

#[test]
fn an_upload_in_the_middle_of_others_stays_whole() {
    let world = World::new();
    thread::scope(|scope| {
        for version in 0..4_u64 {
            let world = &world;
            scope.spawn(move || world.upload("m.bin", &pattern(100_000, version)));
        }
    });
    let reply = world.service.load(&world.folder, "m.bin");
    assert!((0..4).any(|version| reply.body == pattern(100_000, version)));
    world.forget("m.bin");
    assert!(world.service.load(&world.folder, "m.bin").body == reply.body);
    // The plain key and the small part are of the same upload.
    let small = world.api.file(&world.folder, "m.bin.small").unwrap();
    let big = world.s3.get(&world.folder, "m.bin.big").unwrap();
    assert!(protocol::join(&small, &big, &Salts::default()).unwrap() == reply.body);
}

#[test]
fn an_upload_whose_commit_is_repeated_is_one() {
    let world = World::new();
    world.api.fault(&format!("/resources/{}", world.folder), ApiFault::Reset, Some(1));
    world.upload("m.bin", b"model");
    world.loads("m.bin", b"model");
}

/// The limits of the service are gigabytes, so the CDN manager is asked directly, with small ones.
#[test]
fn objects_beyond_the_limits_are_stored_and_copied_in_parts() {
    use loader::cdn_manager::{BigPart, CdnConfig, CdnManager, Limits};
    use loader::names::ModelName;
    use loader::security::{Sha256Hash, SmallHash};
    use std::io::Write;

    let s3 = S3::start();
    let bucket = s3.new_bucket("models");
    let config = CdnConfig::from_yaml(s3.cdn_yaml().as_bytes()).unwrap();
    let limits = Limits { part: 5 * MIB as u64, copy: 6 * MIB as u64 };
    let cdn = CdnManager::new(loader::http_client::HttpClient::new(None).unwrap(), &config).with_limits(limits);
    let bytes = pattern(13 * MIB, 1);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    let (sha256, small) = (Sha256Hash::of(&bytes), SmallHash::of(b"small"));
    let (model, part) = (
        ModelName::new(&*bucket, "m.bin").unwrap(),
        BigPart { file: &file, length: bytes.len() as u64, sha256, small },
    );
    cdn.put_generation(&model, part).unwrap();
    cdn.set_plain(&model, small).unwrap();
    for key in ["m.bin.big".to_owned(), loader::cdn_manager::generation_key("m.bin", small)] {
        assert!(s3.get(&bucket, &key).unwrap() == bytes, "{key}");
        let metadata = s3.head_metadata(&bucket, &key).unwrap();
        assert_eq!(
            (metadata.get("sha256"), metadata.get("small-sha256")),
            (Some(&sha256_hex(&bytes)), Some(&sha256_hex(b"small"))),
            "{key}"
        );
    }
}
