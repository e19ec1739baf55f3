//! Models without a manifest, and wrong salts.

use std::fs;

use serde_json::Value;

use super::manifests::SIZE;
use crate::world::protocol::{self, Salts};
use crate::world::{World, pattern};

#[test]
fn old_uploads_load_with_a_warning_unless_they_are_refused() {
    let world = World::new();
    let bytes = pattern(SIZE, 1);
    let (small, big) = protocol::split(&bytes, &Salts::default());
    world.api.put_file(&world.folder, "old.bin.small", small);
    world.s3.put(&world.folder, "old.bin.big", &big, &[]);
    world.loads("old.bin", &bytes);
    assert!(world.service.log_text().contains("is an old upload without a manifest"));
    assert!(world.service.get("/metrics").text().contains("\nloader_old_uploads_total 1\n"));
    // The box has made a manifest for its own use, which is marked so.
    let record = fs::read(format!("{}.json", world.cached("old.bin").display())).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    assert!(record["old"].is_object(), "{record}");
    // A manifest made by a box is refused if it comes from the CDN.
    let manifest = record["manifest"].as_str().unwrap();
    world.s3.put(&world.folder, &world.keys_of(&world.folder, "old.bin").manifest, manifest.as_bytes(), &[]);
    world.forget("old.bin");
    let refused = world.service.load(&world.folder, "old.bin");
    assert!(refused.status == 500 && refused.detail().contains("RESOURCE_KEY_SALT"), "{}", refused.text());
    world.s3.delete(&world.folder, &world.keys_of(&world.folder, "old.bin").manifest);
    world.loads("old.bin", &bytes);
    // This also holds for what is in the cache already.
    world.service.set_env("REQUIRE_MANIFEST", "true");
    world.service.restart();
    world.login();
    let refused = world.service.load(&world.folder, "old.bin");
    assert!(refused.status == 500 && refused.detail().contains("REQUIRE_MANIFEST"), "{}", refused.text());
    world.service.set_env("REQUIRE_MANIFEST", "false");
    world.service.restart();
    world.login();
    world.loads("old.bin", &bytes);
}

/// An old uploader replaces one part after the other. A torn pair that was loaded in between must not stay in the cache.
#[test]
fn a_torn_pair_without_metadata_is_fetched_again() {
    let world = World::new();
    let bytes = pattern(SIZE, 1);
    let (small, big) = protocol::split(&bytes, &Salts::default());
    let mut torn = big.clone();
    // Not in the last blocks, so the padding is still valid.
    torn[1_000_000] ^= 1;
    world.api.put_file(&world.folder, "old.bin.small", small);
    world.s3.put(&world.folder, "old.bin.big", &torn, &[]);
    assert!(world.service.load(&world.folder, "old.bin").body != bytes, "nothing can tell");
    world.s3.put(&world.folder, "old.bin.big", &big, &[]);
    world.loads("old.bin", &bytes);
    world.loads("old.bin", &bytes);
}

/// A bad rollout: the salt is forgotten for a while.
#[test]
fn a_wrong_salt_deletes_nothing() {
    const WRONG: [&str; 3] = ["wrong-1", "wrong-2", "wrong-3"];
    let (world, proxy) = World::behind_proxy();
    let bytes = pattern(SIZE, 1);
    world.upload("m.bin", &bytes);
    let (small, big) = protocol::split_only_for(&bytes, &Salts::default(), &WRONG);
    world.api.put_file(&world.folder, "old.bin.small", small);
    world.s3.put(&world.folder, "old.bin.big", &big, &[("small-sha256", "")]);
    world.s3.put(&world.folder, "old.bin.big", &big, &[]);
    world.loads("old.bin", &bytes);
    world.loads("old.bin", &bytes);
    for salt in WRONG {
        world.service.set_env("RESOURCE_KEY_SALT", salt);
        world.service.restart();
        world.login();
        for name in ["m.bin", "old.bin"] {
            let reply = world.service.load(&world.folder, name);
            assert!(reply.status == 500 && reply.detail().contains("RESOURCE_KEY_SALT"), "{name}: {}", reply.text());
        }
    }
    world.service.set_env("RESOURCE_KEY_SALT", "dev-resource-key-salt");
    world.service.restart();
    world.login();
    proxy.down();
    world.loads("m.bin", &bytes);
    world.loads("old.bin", &bytes);
}
