//! Load and upload: bytes, names, generations and memory.

use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::Duration;

use crate::world::protocol::{self, Salts};
use crate::world::resource_api::Fault as ApiFault;
use crate::world::s3::S3;
use crate::world::s3_fault::Fault;
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
        // An independent implementation of the protocol can join the parts.
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
    // This is another model, although its name looks like a generation.
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
    let file = world.cached("m.bin");
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&file), mode(file.parent().unwrap()), mode(&world.service.cache_dir())), (0o600, 0o700, 0o700));
}

#[test]
fn a_large_object_is_uploaded_in_parts_and_damage_on_the_way_is_repaired() {
    let (world, proxy) = World::behind_proxy();
    // Three parts of at most 16 MiB; the second one breaks off once.
    let size = 40 * MIB as u64;
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
    // The arenas of glibc keep a varying amount of freed memory. The product's libc has no arenas.
    let (world, proxy) = World::behind_proxy_with(|builder| {
        let builder = builder.env("MALLOC_ARENA_MAX", "1").env("MALLOC_MMAP_THRESHOLD_", "131072");
        builder.timeout(Duration::from_secs(300))
    });
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
    // On a busy machine the CDN may seem far away. Only then is it asked for 8 MiB at a time, over eight
    // connections, each of which has a chunk of 1 MiB.
    let is_piece = |range: &str| {
        let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some(to.parse::<u64>().ok()? + 1 - from.parse::<u64>().ok()? == 8 << 20)
    };
    let requests = proxy.requests();
    let is_far = requests.iter().any(|request| request.range.as_deref().and_then(is_piece) == Some(true));
    let limit = if is_far { 24 * 1024 } else { 16 * 1024 };
    world.service.peaked_at_most(idle, limit, &format!("one upload and eight loads of {size} bytes"));
}

#[test]
fn loads_continue_when_the_cache_cannot_be_written() {
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
    // The plain key and the small part belong together.
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
