//! Downloads from the CDN: once for all who wait, streamed, resumed, in several ranges from a far CDN.

use std::thread;
use std::time::Duration;

use crate::world::protocol::{self, Salts};
use crate::world::s3_fault::{Fault, Purpose};
use crate::world::{World, eventually, pattern};

const MIB: usize = 1 << 20;

/// Only a hang takes longer.
const HANG: Duration = Duration::from_secs(60);

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
        // The faults hit the request for the object's last bytes, the transfer, or both.
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
        eventually(HANG, "the download begins", || proxy.bytes_sent("GET", ".big") > 0);
        assert!(world.service.terminate().success() || !world.service.is_running());
        // The load was either finished within the grace period or cut off.
        let _ = load.join().unwrap();
    });
    world.forget("m.bin");
    // A client that goes away stops the download; what was there is kept.
    world.service.restart();
    world.login();
    proxy.clear_faults();
    proxy.fault("GET", "m.bin", Fault::Trickle(100_000), None);
    proxy.clear_requests();
    let mut client = world.service.connect();
    let body = format!(r#"{{"filename":"m.bin","folder":"{}"}}"#, world.folder);
    let request = format!(
        "POST /load/m.bin HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    std::io::Write::write_all(&mut client, request.as_bytes()).unwrap();
    // Bytes of the first chunk reach the client after it is stored.
    std::io::Read::read_exact(&mut client, &mut vec![0; 500_000]).unwrap();
    drop(client);
    let part = world.service.cache_file(&world.folder, "m.bin.big.part").with_extension("");
    eventually(HANG, "the download stops", || !world.service.has_thread("download"));
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

/// The ranges that the CDN was asked for, except the end of the object, as `first byte-last byte`.
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
        // The delay of the first answer tells the loader that the CDN is far away.
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
    // A near CDN gets one request. A slow machine may delay an answer, hence ten tries.
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
    // As the peer uploads, without generations: both versions have the same key.
    let put = |bytes: &[u8]| {
        let (small, big) = protocol::split(bytes, &Salts::default());
        world.api.put_file(&world.folder, "m.bin.small", small);
        world.s3.put(&world.folder, "m.bin.big", &big, &[]);
    };
    put(&old);
    // Delays both `HEAD`s, for the generation and for the plain key; then slow ranges.
    proxy.fault("HEAD", "m.bin", Fault::Delay(Duration::from_millis(60)), Some(2));
    proxy.fault("GET", "m.bin", Fault::Trickle(200_000), Some(3));
    thread::scope(|scope| {
        let load = scope.spawn(|| world.service.try_load(&world.folder, "m.bin"));
        thread::sleep(Duration::from_millis(1500));
        put(&new);
        // Ranges that were under way when the object changed may all arrive; then the load is the old version.
        if let Ok(reply) = load.join().unwrap() {
            assert!(reply.status != 200 || reply.body == old, "a mixture was loaded");
        }
    });
    proxy.clear_faults();
    world.loads("m.bin", &new);
}

#[test]
fn a_cdn_without_ranges_is_downloaded_whole_first() {
    let (world, proxy) = World::behind_proxy();
    let bytes = pattern(MIB, 1);
    world.upload("m.bin", &bytes);
    world.forget("m.bin");
    proxy.fault("GET", "m.bin", Fault::IgnoreRange, None);
    world.loads("m.bin", &bytes);
    world.loads("m.bin", &bytes);
}
