//! `DOWNLOAD_RATE`: all downloads together keep to it.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use crate::world::service::Service;
use crate::world::{World, eventually, pattern};

const MIB: usize = 1 << 20;

#[test]
fn downloads_together_keep_to_the_rate() {
    let world = World::with(|builder| builder.env("DOWNLOAD_RATE", "5M"));
    let uploader = world.another_box();
    let models: Vec<(String, Vec<u8>)> = (0..3).map(|seed| (format!("m{seed}"), pattern(8 * MIB, seed))).collect();
    for (name, bytes) in &models {
        assert_eq!(uploader.upload(&world.folder, name, bytes).status, 200);
    }
    let start = Instant::now();
    let took: Vec<Duration> = thread::scope(|scope| {
        let load = |(name, bytes): &(String, Vec<u8>)| {
            world.loads(name, bytes);
            start.elapsed()
        };
        let loads: Vec<_> = models.iter().map(|model| scope.spawn(move || load(model))).collect();
        loads.into_iter().map(|load| load.join().unwrap()).collect()
    });
    let all = *took.iter().max().unwrap();
    let rate = (24 * MIB) as f64 / all.as_secs_f64();
    println!("{:.2} MiB a second; the loads took {took:.1?}", rate / MIB as f64);
    assert!(rate <= 5.5 * MIB as f64, "{rate} bytes a second");
    // A busy machine may be slower, but no load waits for another one to end.
    assert!(rate >= 0.5 * MIB as f64, "{rate} bytes a second");
    let first = *took.iter().min().unwrap();
    assert!(first >= all / 2, "{took:?}");
}

#[test]
fn a_load_overtakes_a_download_in_the_background() {
    let world = World::new();
    let (kept, wanted) = (pattern(24 * MIB, 1), pattern(8 * MIB, 2));
    world.upload("kept", &kept);
    world.upload("wanted", &wanted);
    let keep = format!("{}/kept", world.folder);
    let service = Service::builder().api(&world.api).env("DOWNLOAD_RATE", "4M").env("KEEP", keep).start();
    assert_eq!(service.login().status, 200);
    eventually(Duration::from_secs(20), "the download in the background has begun", || service.downloaded() > 0);
    let before = service.downloaded();
    let reply = service.load(&world.folder, "wanted");
    let during = (service.downloaded() - before).saturating_sub(wanted.len() as u64);
    assert!(reply.status == 200 && reply.body == wanted);
    // With equal shares it would have half of what the load had.
    println!("{during} bytes came in the background meanwhile");
    assert!(during < 4 * MIB as u64, "{during} bytes");
    assert_eq!(service.get("/ready").status, 503);
    eventually(Duration::from_secs(60), "the rest comes afterwards", || service.get("/ready").status == 200);
    assert!(service.load(&world.folder, "kept").body == kept);
}

#[test]
fn a_load_at_a_low_rate_ends_with_its_client() {
    let world = World::with(|builder| builder.env("DOWNLOAD_RATE", "100K"));
    let bytes = pattern(4 * MIB, 1);
    assert_eq!(world.another_box().upload(&world.folder, "m", &bytes).status, 200);
    let mut client = world.service.connect();
    let body = format!(r#"{{"folder":"{}"}}"#, world.folder);
    let length = body.len();
    let head = "POST /load/m HTTP/1.1\r\nHost: x\r\nContent-Type: application/json";
    write!(client, "{head}\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
    thread::sleep(Duration::from_secs(2));
    drop(client);
    eventually(Duration::from_secs(20), "the load ends with its client", || {
        world.service.metric("loader_handler_threads_busy") == 0
    });
}
