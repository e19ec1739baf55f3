//! Downloads that break and continue, the cases of Mender's download resumer: the right bytes, or a load that breaks and
//! succeeds once the server is sane again.

use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::world::protocol::{self, Salts};
use crate::world::raw::Reply;
use crate::world::resource_api::Fault as ApiFault;
use crate::world::s3_fault::{Fault, Purpose};
use crate::world::s3_proxy::S3Proxy;
use crate::world::{World, pattern};

const SIZE: usize = 600_000;
/// Where the first transfer of each test breaks off.
const CUT: u64 = 100_000;

/// A world in which the big part of `m.bin` is not cached and its download breaks off once.
fn broken_off() -> (World, S3Proxy, Vec<u8>) {
    let (world, proxy) = World::behind_proxy();
    let bytes = pattern(SIZE, 1);
    world.upload("m.bin", &bytes);
    world.forget("m.bin");
    proxy.clear_requests();
    proxy.fault_on(Purpose::Whole, ".big", Fault::CutResponseAt(CUT), Some(1));
    (world, proxy, bytes)
}

fn load(world: &World) -> Result<Reply, String> {
    world.service.try_load(&world.folder, "m.bin")
}

/// The load succeeds in spite of the fault.
fn still_loads(fault: Fault) {
    let (world, proxy, bytes) = broken_off();
    proxy.fault_on(Purpose::Rest, ".big", fault, None);
    world.loads("m.bin", &bytes);
    let warm = load(&world).unwrap();
    assert!(warm.body == bytes);
    assert_eq!(proxy.count("GET", "m.bin"), 3, "manifest, beginning, rest: {:?}", proxy.requests());
}

/// The client gets a truncated body, which `curl` reports; once the fault is gone, a load gets the right bytes.
fn breaks_the_load(fault: Fault) {
    let (world, proxy, bytes) = broken_off();
    proxy.fault_on(Purpose::Whole, ".big", Fault::CutResponseAt(CUT), None);
    proxy.fault_on(Purpose::Rest, ".big", fault, None);
    let broken = load(&world);
    assert!(broken.is_err(), "status {:?} arrived whole", broken.map(|reply| reply.status));
    assert!(curl(&world) > 0, "curl takes it for a success");
    proxy.clear_faults();
    world.loads("m.bin", &bytes);
    assert_eq!(curl(&world), 0);
}

/// How `curl` ends when it loads the model.
fn curl(world: &World) -> i32 {
    let body = json!({"filename": "m.bin", "folder": world.folder}).to_string();
    let mut command = Command::new("curl");
    command.args(["-s", "--noproxy", "*", "--max-time", "50", "-o", "/dev/null"]).arg("--fail");
    command.args(["-H", "Content-Type: application/json", "-d", &body]).arg(world.service.url("/load/m.bin"));
    command.status().expect("curl is there").code().unwrap()
}

#[test]
fn a_range_that_starts_too_early_is_read_from_the_right_byte() {
    still_loads(Fault::ShiftRange(-7));
}

#[test]
fn a_range_that_starts_too_late_breaks_the_load() {
    breaks_the_load(Fault::ShiftRange(7));
}

#[test]
fn a_range_that_is_labelled_wrongly_breaks_the_load() {
    breaks_the_load(Fault::WrongContentRange);
}

#[test]
fn a_missing_content_range_breaks_the_load() {
    breaks_the_load(Fault::DropContentRange);
}

#[test]
fn a_changed_content_length_breaks_the_load() {
    breaks_the_load(Fault::WrongTotal);
}

#[test]
fn a_cdn_without_partial_content_is_read_again_from_the_beginning() {
    still_loads(Fault::IgnoreRange);
}

#[test]
fn garbled_bytes_break_the_load_and_are_not_kept() {
    breaks_the_load(Fault::CorruptByteAt(1000));
    // If the chunk is right the second time, only that chunk is sent again.
    let (world, proxy, bytes) = broken_off();
    proxy.clear_faults();
    proxy.fault_on(Purpose::Whole, ".big", Fault::CorruptByteAt(1000), Some(1));
    world.loads("m.bin", &bytes);
    assert!(world.service.log_text().contains("arrived from the CDN with the wrong hash"));
}

/// Only an old uploader replaces an object under the same key.
#[test]
fn an_object_replaced_between_two_ranges_breaks_the_load() {
    for ignorant in [false, true] {
        let (world, proxy) = World::behind_proxy();
        let (old, new) = (pattern(SIZE, 1), pattern(SIZE, 2));
        let store = |bytes: &[u8]| {
            let (small, big) = protocol::split(bytes, &Salts::default());
            world.s3.put(&world.folder, "m.bin.big", &big, &[]);
            world.api.put_file(&world.folder, "m.bin.small", small);
        };
        store(&old);
        proxy.fault_on(Purpose::Whole, ".big", Fault::CutResponseAt(CUT), Some(1));
        // The 503s give time for the replacement. The second server does not know `If-Match`.
        proxy.fault_on(Purpose::Rest, ".big", Fault::Status(503), Some(2));
        if ignorant {
            proxy.fault("GET", "m.bin", Fault::IgnoreIfMatch, None);
        }
        let broken = thread::scope(|scope| {
            let broken = scope.spawn(|| load(&world));
            while proxy.bytes_sent("GET", "m.bin") < CUT {
                thread::sleep(Duration::from_millis(5));
            }
            store(&new);
            broken.join().unwrap()
        });
        assert!(broken.is_err(), "{:?}", broken.map(|reply| reply.status));
        assert!(world.service.log_text().contains("m.bin.big was replaced in the CDN while it was downloaded"));
        world.loads("m.bin", &new);
        world.loads("m.bin", &new);
    }
}

#[test]
fn a_cdn_that_goes_down_and_up_20_times_costs_time_only() {
    let (world, proxy) = World::behind_proxy();
    let bytes = pattern(4 << 20, 1);
    world.upload("m.bin", &bytes);
    world.forget("m.bin");
    proxy.clear_requests();
    proxy.fault("GET", "m.bin", Fault::Trickle(60_000), None);
    thread::scope(|scope| {
        let loaded = scope.spawn(|| world.loads("m.bin", &bytes));
        let (mut seen, mut times) = (0, 0);
        while times < 20 {
            assert!(!loaded.is_finished(), "the download ended after {times} breaks");
            let sent = proxy.bytes_sent("GET", "m.bin");
            if sent >= seen + 60_000 {
                proxy.down();
                thread::sleep(Duration::from_millis(30));
                proxy.up();
                (seen, times) = (proxy.bytes_sent("GET", "m.bin"), times + 1);
            }
            thread::sleep(Duration::from_millis(5));
        }
        proxy.clear_faults();
        proxy.cut();
    });
    world.loads("m.bin", &bytes);
    let sent = proxy.bytes_sent("GET", "m.bin");
    // Only what was in transit when the connection broke is sent again.
    assert!(sent < bytes.len() as u64 + 22 * 130_000, "{sent} bytes were sent");
}

#[test]
fn a_resource_api_that_goes_down_and_up_20_times_costs_time_only() {
    let world = World::new();
    let bytes = pattern(SIZE, 1);
    world.upload("m.bin", &bytes);
    for time in 0..20 {
        world.api.down();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(60));
                world.api.up();
            });
            let reply = load(&world).unwrap();
            assert_eq!(reply.status, 200, "time {time}: {}", reply.text());
            assert!(reply.body == bytes);
        });
    }
    // The API stays away for all tries: the load fails with a sentence, and the next one succeeds.
    world.api.fault("/resources/get/", ApiFault::Reset, Some(3));
    assert_eq!(load(&world).unwrap().status, 500);
    world.loads("m.bin", &bytes);
}
