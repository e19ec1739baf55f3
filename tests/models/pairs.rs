//! Parts that do not belong together, or are not what they were: the right bytes or a clean error, never anything else.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::time::SystemTime;

use crate::world::protocol::{self, Salts};
use crate::world::s3_fault::Fault;
use crate::world::{World, pattern, sha256_hex};

#[test]
fn a_stale_cached_big_part_is_never_joined_with_a_new_small_part() {
    let world = World::new();
    let (old, new) = (pattern(500_000, 1), pattern(500_000, 2));
    world.upload("m.bin", &old);
    world.loads("m.bin", &old);
    let elsewhere = world.another_box();
    assert_eq!(elsewhere.upload(&world.folder, "m.bin", &new).status, 200);
    world.loads("m.bin", &new);
    world.loads("m.bin", &new);
    assert!(elsewhere.load(&world.folder, "m.bin").body == new);
}

#[test]
fn version_two_of_an_old_uploader_replaces_the_generation_of_a_new_one() {
    let world = World::new();
    world.upload("m.bin", &pattern(50_000, 1));
    let new = pattern(60_000, 2);
    let (small, big) = protocol::split(&new, &Salts::default());
    world.s3.put(&world.folder, "m.bin.big", &big, &[]);
    world.api.put_file(&world.folder, "m.bin.small", small);
    // A box that has loaded a verified version accepts none without a manifest.
    let refused = world.service.load(&world.folder, "m.bin");
    assert_eq!(refused.status, 500);
    assert!(refused.detail().contains("this box has had a version of it with one"), "{}", refused.detail());
    world.forget("m.bin");
    world.loads("m.bin", &new);
}

#[test]
fn a_torn_pair_is_refused() {
    let world = World::new();
    world.upload("m.bin", &pattern(50_000, 1));
    // The small part of another upload arrives, but not its generation.
    let (small, _) = protocol::split(&pattern(50_000, 2), &Salts::default());
    world.api.put_file(&world.folder, "m.bin.small", small);
    let reply = world.service.load(&world.folder, "m.bin");
    assert_eq!(reply.status, 500);
    assert!(reply.detail().contains("different uploads"), "{}", reply.detail());
}

#[test]
fn a_response_that_is_cut_at_half_is_no_success() {
    let (world, proxy) = World::behind_proxy();
    let bytes = pattern(1_000_000, 1);
    world.upload("m.bin", &bytes);
    world.forget("m.bin");
    // One hits the read of the object's end, the others the transfer.
    proxy.fault("GET", "m.bin", Fault::CutAtHalf, Some(1));
    world.loads("m.bin", &bytes);
    world.forget("m.bin");
    proxy.fault("GET", "m.bin", Fault::CutResponseAt(500_000), Some(3));
    world.loads("m.bin", &bytes);
}

#[test]
fn big_parts_that_were_swapped_in_the_cache_are_noticed() {
    let world = World::new();
    let (a, b) = (pattern(300_000, 1), pattern(300_000, 2));
    world.upload("a.bin", &a);
    world.upload("b.bin", &b);
    let (path_a, path_b) = (world.cached("a.bin"), world.cached("b.bin"));
    let swap = |a: &std::path::Path, b: &std::path::Path| {
        let aside = a.with_extension("aside");
        fs::rename(a, &aside).unwrap();
        fs::rename(b, a).unwrap();
        fs::rename(&aside, b).unwrap();
    };
    swap(&path_a, &path_b);
    world.loads("a.bin", &a);
    world.loads("b.bin", &b);
    // Their records are swapped as well.
    swap(&path_a, &path_b);
    let record = |path: &std::path::Path| path.with_extension("big.json");
    swap(&record(&path_a), &record(&path_b));
    world.loads("a.bin", &a);
    world.loads("b.bin", &b);
}

/// As decaying storage does: the file's time does not change.
pub fn flip_byte(path: &std::path::Path, offset: u64) {
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    let mut file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
    file.set_modified(modified).unwrap();
}

#[test]
fn a_flipped_byte_in_the_cache_is_repaired_while_the_client_waits() {
    let world = World::new();
    for size in [100, 20_000, 1_000_000] {
        let (name, bytes) = (format!("m-{size}"), pattern(size, 1));
        world.upload(&name, &bytes);
        let length = fs::metadata(world.cached(&name)).unwrap().len();
        for offset in [0, length / 2, length - 20, length - 1] {
            world.loads(&name, &bytes);
            flip_byte(&world.cached(&name), offset);
            // It is fetched again while the client waits.
            world.loads(&name, &bytes);
            world.loads(&name, &bytes);
        }
    }
}

#[test]
fn a_flipped_byte_with_a_new_time_is_just_another_file() {
    let world = World::new();
    let bytes = pattern(100_000, 1);
    world.upload("m.bin", &bytes);
    let path = world.cached("m.bin");
    flip_byte(&path, 5000);
    fs::File::open(&path).unwrap().set_modified(SystemTime::now()).unwrap();
    world.loads("m.bin", &bytes);
}

#[test]
fn a_byte_that_the_cdn_damaged_never_makes_a_complete_body() {
    let (world, proxy) = World::behind_proxy();
    let bytes = pattern(1_000_000, 1);
    world.upload("m.bin", &bytes);
    for offset in [0, 500_000, 996_940] {
        world.forget("m.bin");
        let generation = format!("{}.big", &sha256_hex(&world.api.file(&world.folder, "m.bin.small").unwrap())[..16]);
        proxy.fault("GET", &generation, Fault::CorruptByteAt(offset), Some(2));
        let failed = world.service.try_load(&world.folder, "m.bin");
        assert!(failed.as_ref().map_or(true, |reply| reply.status == 500 || reply.body == bytes), "offset {offset}");
        proxy.clear_faults();
        world.loads("m.bin", &bytes);
    }
}

#[test]
fn an_object_that_is_replaced_while_it_is_read_is_not_mixed() {
    let (world, proxy) = World::behind_proxy();
    let (old, new) = (pattern(1_000_000, 1), pattern(1_000_000, 2));
    let (old_small, old_big) = protocol::split(&old, &Salts::default());
    let (new_small, new_big) = protocol::split(&new, &Salts::default());
    world.api.put_file(&world.folder, "m.bin.small", old_small);
    world.s3.put(&world.folder, "m.bin.big", &old_big, &[]);
    // The response is cut half-way, and the object is replaced while the loader waits to continue.
    proxy.fault("GET", "m.bin.big", Fault::CutResponseAt(400_000), Some(2));
    std::thread::scope(|scope| {
        let load = scope.spawn(|| world.service.try_load(&world.folder, "m.bin"));
        while proxy.count("GET", "m.bin.big") < 2 {
            std::thread::yield_now();
        }
        world.s3.put(&world.folder, "m.bin.big", &new_big, &[]);
        world.api.put_file(&world.folder, "m.bin.small", new_small);
        if let Ok(reply) = load.join().unwrap() {
            assert!(reply.status == 500 || reply.body == old || reply.body == new, "a mixture was complete");
        }
    });
    proxy.clear_faults();
    world.loads("m.bin", &new);
}

#[test]
fn a_wrong_resource_key_is_a_clean_error() {
    let world = World::with(|builder| builder.env("RESOURCE_KEY_SALT", "another-salt"));
    let (small, big) = protocol::split_only_for(&pattern(100_000, 7), &Salts::default(), &["another-salt"]);
    world.api.put_file(&world.folder, "m.bin.small", small);
    world.s3.put(&world.folder, "m.bin.big", &big, &[]);
    let reply = world.service.load(&world.folder, "m.bin");
    assert_eq!(reply.status, 500);
    assert!(reply.detail().contains("RESOURCE_KEY_SALT"), "{}", reply.detail());
}
