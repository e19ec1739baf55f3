//! The service that this one replaces reads what this one uploads, and the other way round.
//!
//! It runs as it does today: `tests/peer/seed_loader.py` under uvicorn, with its own HTTP, AES and S3 clients.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::time::Duration;

use crate::world::client::Download;
use crate::world::peer::{Peer, why_missing};
use crate::world::{PatternReader, World, pattern, sha256_hex_of};

const MIB: u64 = 1 << 20;
/// The longest time for a call: the peer serves one call at a time, and other tests run beside this one.
const CALL: Duration = Duration::from_secs(300);

#[test]
fn files_of_all_sizes_go_from_the_loader_to_the_peer_and_back() {
    if is_missing() {
        return;
    }
    let world = World::with(|builder| builder.timeout(CALL));
    let peer = start(&world);
    for size in [0, 1, 10 << 10, 5 * MIB, largest()] {
        let (from_loader, from_peer) = (format!("from-loader-{size}.bin"), format!("from-peer-{size}.bin"));
        let (seed, other) = (size + 1, size + 2);

        let reply = world.service.upload_reader(&world.folder, &from_loader, size, PatternReader::new(size, seed));
        assert_eq!((reply.status, reply.text().as_str()), (200, r#"{"status":"ok"}"#));
        is_pattern(&peer.load(&world.folder, &from_loader), size, seed, "the peer");

        upload(&peer, &world, &from_peer, size, other);
        for state in ["the loader, cold", "the loader, warm"] {
            let download = world.service.load_to(&world.folder, &from_peer, &mut io::sink());
            is_pattern(&download, size, other, state);
        }
    }
}

#[test]
fn objects_of_the_peer_have_no_metadata_and_are_cached_all_the_same() {
    if is_missing() {
        return;
    }
    let (world, proxy) = World::behind_proxy();
    let peer = start(&world);
    let size = 200_000;
    upload(&peer, &world, "m.bin", size, 1);
    let metadata = world.s3.head_metadata(&world.folder, "m.bin.big").unwrap();
    assert!(metadata.is_empty(), "{metadata:?}");
    assert_eq!(world.keys(), ["m.bin.big"]);

    let bytes = pattern(200_000, 1);
    world.loads("m.bin", &bytes);
    assert!(proxy.bytes_sent("GET", "m.bin.big") > size / 2, "{:?}", proxy.requests());
    world.cached("m.bin");
    proxy.down();
    world.loads("m.bin", &bytes);
}

/// Both versions have the same length: an old big part after a new small part would decrypt without an error.
#[test]
fn version_two_of_the_peer_replaces_version_one_of_the_loader() {
    if is_missing() {
        return;
    }
    let world = World::new();
    let peer = start(&world);
    let (old, new) = (pattern(200_000, 1), pattern(200_000, 2));
    world.upload("m.bin", &old);
    world.loads("m.bin", &old);
    upload(&peer, &world, "m.bin", 200_000, 2);
    // A box that has had a verified version refuses this one; another box does not.
    let refused = world.service.load(&world.folder, "m.bin");
    assert!(refused.status == 500 && refused.detail().contains("a version of it with one"), "{}", refused.text());
    world.forget("m.bin");
    world.loads("m.bin", &new);
    world.loads("m.bin", &new);
    assert!(world.another_box().load(&world.folder, "m.bin").body == new, "another box loaded other bytes");
    is_pattern(&peer.load(&world.folder, "m.bin"), 200_000, 2, "the peer");
}

#[test]
fn version_two_of_the_loader_replaces_version_one_of_the_peer() {
    if is_missing() {
        return;
    }
    let world = World::new();
    let peer = start(&world);
    upload(&peer, &world, "m.bin", 200_000, 1);
    world.loads("m.bin", &pattern(200_000, 1));
    let new = pattern(200_000, 2);
    world.upload("m.bin", &new);
    world.loads("m.bin", &new);
    assert!(world.another_box().load(&world.folder, "m.bin").body == new, "another box loaded other bytes");
    // The first peer never gives up its stale copy, so a second one checks what was stored.
    drop(peer);
    is_pattern(&start(&world).load(&world.folder, "m.bin"), 200_000, 2, "a peer without a copy");
}

fn start(world: &World) -> Peer {
    Peer::start(&world.api, &world.s3, &[])
}

/// Uploads the pattern of this seed.
fn upload(peer: &Peer, world: &World, name: &str, size: u64, seed: u64) {
    peer.upload(&world.folder, name, size, PatternReader::new(size, seed));
}

/// Whether this machine cannot run the peer. Says so once; in CI it fails.
fn is_missing() -> bool {
    static WHY: OnceLock<Option<String>> = OnceLock::new();
    let Some(why) = WHY.get_or_init(|| {
        let why = why_missing()?;
        say(&format!("SKIPPED: interoperation with the Python service: {why}"));
        Some(why)
    }) else {
        return false;
    };
    assert!(std::env::var_os("CI").is_none(), "the peer is missing: {why}");
    true
}

/// Size of the largest file.
fn largest() -> u64 {
    if ["CI", "TEST_S3_URL"].iter().any(|name| std::env::var_os(name).is_some()) {
        return 300 * MIB;
    }
    say("peer: the largest file is 20 MiB; with CI or TEST_S3_URL set it is 300 MiB");
    20 * MIB
}

/// Prints a line even if the test passes: libtest does not capture this.
#[allow(clippy::explicit_write)]
fn say(line: &str) {
    writeln!(io::stderr(), "{line}").unwrap();
}

fn is_pattern(download: &Download, size: u64, seed: u64, by: &str) {
    let expected = sha256_hex_of(PatternReader::new(size, seed)).unwrap();
    assert_eq!(
        (download.status, download.content_length, download.received, download.sha256.as_str(), &download.error),
        (200, Some(size), size, expected.as_str(), &None),
        "{size} bytes, loaded by {by}"
    );
}
