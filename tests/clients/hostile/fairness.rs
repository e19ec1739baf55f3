//! Stalled clients hold up nobody else, and are not cut off as long as there is another place.

use std::io::{BufReader, Read, Write};
use std::time::{Duration, Instant};

use super::scene::busy_handlers;
use crate::world::raw::{self, Reply, Stream};
use crate::world::s3_fault::Fault;
use crate::world::service::{Service, ServiceBuilder};
use crate::world::tcp::reset_on_close;
use crate::world::{World, eventually, pattern, resource_api};

/// How late a busy machine may be. It is less than what the client would wait without these rules: a stall timeout, which is
/// 300 s for a client and 30 s for a server.
const SLACK: Duration = Duration::from_secs(25);

/// A world whose stall timeout is far beyond all limits here.
fn world() -> World {
    World::with(patient)
}

fn patient(builder: ServiceBuilder) -> ServiceBuilder {
    builder.env("CLIENT_STALL_SECONDS", "300")
}

fn form(folder: &str) -> String {
    format!(
        "--b\r\nContent-Disposition: form-data; name=folder\r\n\r\n{folder}\r\n\
         --b\r\nContent-Disposition: form-data; name=data; filename=x\r\n\r\n{}\r\n--b--\r\n",
        // More than the service reads ahead.
        "D".repeat(5_000)
    )
}

/// The head of an upload of [`form`].
fn upload(world: &World, name: usize) -> Stream {
    let mut stream = world.service.connect();
    write!(
        stream,
        "POST /upload/u{name} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: {}\r\n\r\n",
        form(&world.folder).len()
    )
    .unwrap();
    stream
}

/// Sends the rest of an upload; it must be taken.
fn finish(world: &World, mut stream: Stream, sent: usize) {
    stream.write_all(&form(&world.folder).as_bytes()[sent..]).unwrap();
    let reply = raw::read_reply(&mut BufReader::new(stream), "POST").expect("it was not cut off");
    assert_eq!(reply.status, 200, "{}", reply.text());
}

/// Loads, and tries again as `Retry-After` asks; returns how long it took until the answer began.
fn begins(world: &World, within: Duration) -> Duration {
    let started = Instant::now();
    loop {
        let reply: Reply = world.service.load(&world.folder, "small.bin");
        let took = started.elapsed();
        if reply.status == 200 {
            assert_eq!(reply.body, b"model");
            assert!(took < within + SLACK, "{took:?}, where it should be {within:?}");
            return took;
        }
        assert_eq!(reply.status, 503, "{}", reply.text());
        assert!(took < within + SLACK, "still refused after {took:?}, where it should be {within:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn uploads_whose_body_has_not_begun_hold_no_handler() {
    let world = world();
    world.upload("small.bin", b"model");
    let open: Vec<_> = (0..64).map(|number| upload(&world, number)).collect();
    let took = begins(&world, Duration::from_secs(1));
    println!("with 64 uploads without a byte a load takes {took:?}");
    // The load's own handler becomes free a moment after the client has the whole body.
    eventually(Duration::from_secs(60), "a handler is held", || busy_handlers(&world.service) == 0);
    // None of them was cut off.
    for stream in open.into_iter().step_by(9) {
        finish(&world, stream, 0);
    }
}

#[test]
fn stalled_transfers_hold_up_nobody_and_continue_later() {
    let world = world();
    world.upload("small.bin", b"model");
    // More than the socket buffers on both sides hold.
    let large = pattern(24_000_000, 1);
    world.upload("large.bin", &large);
    let sent = form(&world.folder).len() - 20;
    let mut uploads = Vec::new();
    let mut loads = Vec::new();
    for number in 0..6 {
        let mut stream = upload(&world, number);
        stream.write_all(&form(&world.folder).as_bytes()[..sent]).unwrap();
        uploads.push(stream);
        let body = format!(r#"{{"folder":"{}"}}"#, world.folder);
        let mut load = world.service.connect();
        write!(
            load,
            "POST /load/large.bin HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        loads.push(load);
    }
    let took = begins(&world, Duration::from_secs(3));
    println!("with 12 stalled transfers a load takes {took:?}");
    for stream in uploads {
        finish(&world, stream, sent);
    }
    for load in loads {
        let reply = raw::read_reply(&mut BufReader::new(load), "POST").expect("it was not cut off");
        assert!(reply.status == 200 && reply.body == large);
    }
}

#[test]
fn if_all_are_stalled_the_one_stalled_longest_makes_room() {
    let world = world();
    world.upload("small.bin", b"model");
    let sent = form(&world.folder).len() - 20;
    let open: Vec<_> = (0..64)
        .map(|number| {
            let mut stream = upload(&world, number);
            let _ = stream.write_all(&form(&world.folder).as_bytes()[..sent]);
            stream
        })
        .collect();
    for _ in 0..2 {
        let took = begins(&world, Duration::from_secs(10));
        println!("with 64 stalled transfers a load takes {took:?}");
    }
    // Once nobody waits any more, the others continue.
    let mut goes_on = 0;
    for mut stream in open {
        stream.set_timeout(SLACK).unwrap();
        let _ = stream.write_all(&form(&world.folder).as_bytes()[sent..]);
        let reply = raw::read_reply(&mut BufReader::new(stream), "POST");
        goes_on += usize::from(reply.is_ok_and(|reply| reply.status == 200));
    }
    println!("{goes_on} of 64 went on");
    assert!(goes_on >= 4, "{goes_on}");
}

/// A slow body is received in the end.
#[test]
fn clients_that_are_slow_and_alive_keep_their_handler() {
    let world = World::with(|builder| patient(builder).env("HANDLER_THREADS", "1"));
    world.upload("small.bin", b"model");
    let bytes = form(&world.folder);
    let mut slow = upload(&world, 0);
    // This upload has begun and never stalls for as long as two seconds.
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            for piece in bytes.as_bytes().chunks(bytes.len() / 8 + 1) {
                slow.write_all(piece).unwrap();
                std::thread::sleep(Duration::from_millis(300));
            }
        });
        while !sender.is_finished() {
            begins(&world, Duration::from_secs(5));
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    let reply = raw::read_reply(&mut BufReader::new(slow), "POST").expect("it was not cut off");
    assert_eq!(reply.status, 200, "{}", reply.text());
}

/// Asks for a model and leaves before the answer comes.
fn ask_and_go(service: &Service, folder: &str, name: &str, range: &str, how: usize) -> Stream {
    let body = format!(r#"{{"folder":"{folder}"}}"#);
    let mut stream = service.connect();
    write!(
        stream,
        "POST /load/{name} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{range}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    if let (1, Stream::Tcp(tcp)) = (how, &stream) {
        reset_on_close(tcp);
    }
    stream
}

#[test]
fn a_client_that_has_gone_frees_its_handler_although_the_download_hangs() {
    let (world, proxy) = World::behind_proxy_with(patient);
    world.upload("m.bin", &pattern(3_000_000, 1));
    world.upload("small.bin", b"model");
    for how in 0..2 {
        for range in ["", "Range: bytes=2900000-2900010\r\n"] {
            proxy.clear_faults();
            // The next load would join the download of the previous round, which still hangs.
            proxy.cut();
            world.forget("m.bin");
            proxy.fault("GET", "m.bin", Fault::HangAt(1_000_000), None);
            let open: Vec<_> = (0..4).map(|_| ask_and_go(&world.service, &world.folder, "m.bin", range, how)).collect();
            eventually(SLACK, "all handlers are taken", || busy_handlers(&world.service) == 4);
            let started = Instant::now();
            drop(open);
            eventually(Duration::from_secs(1) + SLACK, "handlers are free", || busy_handlers(&world.service) == 0);
            println!("handlers are free {:?} after their clients went", started.elapsed());
            begins(&world, Duration::from_secs(1));
        }
    }
    proxy.clear_faults();
}

#[test]
fn a_client_that_has_gone_frees_its_handler_although_the_api_hangs() {
    let world = world();
    world.upload("m.bin", &pattern(100_000, 1));
    world.upload("small.bin", b"model");
    world.forget("m.bin");
    let small = format!("/resources/get/{}", world.folder);
    world.api.fault(&small, resource_api::Fault::Hang, Some(4));
    let open: Vec<_> = (0..4).map(|_| ask_and_go(&world.service, &world.folder, "m.bin", "", 0)).collect();
    eventually(SLACK, "all handlers are taken", || busy_handlers(&world.service) == 4);
    drop(open);
    eventually(Duration::from_secs(1) + SLACK, "handlers are free", || busy_handlers(&world.service) == 0);
    world.loads("small.bin", b"model");
}

/// A client that stops reading its load and then leaves.
#[test]
fn a_client_that_goes_in_the_middle_of_a_load_frees_its_handler() {
    let world = world();
    world.upload("large.bin", &pattern(24_000_000, 1));
    let mut open: Vec<_> =
        (0..4).map(|how| ask_and_go(&world.service, &world.folder, "large.bin", "", how % 2)).collect();
    for stream in &mut open {
        stream.read_exact(&mut [0; 20_000]).unwrap();
    }
    drop(open);
    eventually(Duration::from_secs(1) + SLACK, "handlers are free", || busy_handlers(&world.service) == 0);
}
