//! The server itself: listeners, handlers, the queue, and connections that serve many requests.

use std::io::{BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

use crate::world::raw::{self, Stream};
use crate::world::resource_api::{Fault, ResourceApi};
use crate::world::s3::S3;
use crate::world::service::Service;
use crate::world::{World, pattern};

#[test]
fn health_answers_while_every_handler_waits_for_a_hung_api() {
    let api = ResourceApi::start();
    api.fault("/login", Fault::Hang, None);
    let service = Service::builder().api(&api).timeout(Duration::from_secs(3)).start();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                service.call(
                    "POST",
                    "/login",
                    &[("Content-Type", "application/json")],
                    br#"{"email":"a","password":"b"}"#,
                )
            });
        }
        while api.count("/login") < 4 {
            thread::sleep(Duration::from_millis(5));
        }
        service.is_prompt();
        let started = Instant::now();
        service.get("/status");
        service.get("/unlock/status");
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    });
}

#[test]
fn a_full_queue_answers_503_with_retry_after() {
    let api = ResourceApi::start();
    api.fault("/login", Fault::Hang, None);
    let service = Service::builder().api(&api).env("HANDLER_THREADS", "1").timeout(Duration::from_secs(5)).start();
    thread::scope(|scope| {
        let calls: Vec<_> = (0..22)
            .map(|_| {
                scope.spawn(|| {
                    service.call(
                        "POST",
                        "/login",
                        &[("Content-Type", "application/json")],
                        br#"{"email":"a","password":"b"}"#,
                    )
                })
            })
            .collect();
        let results: Vec<_> = calls.into_iter().map(|call| call.join().unwrap()).collect();
        let refused: Vec<_> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
        // The handler works on one and sixteen wait; a further one is refused if the handler has not yet taken the first.
        assert!((5..=6).contains(&refused.len()), "{results:?}");
        for reply in refused {
            assert_eq!((reply.status, reply.header("retry-after")), (503, Some("2")));
        }
    });
}

#[test]
fn it_serves_on_a_unix_socket() {
    let s3 = S3::start();
    let api = ResourceApi::start();
    api.put_file("", "cdn.yaml", s3.cdn_yaml());
    let folder = s3.new_bucket("models");
    let service = Service::builder().api(&api).unix().start();
    let path = service.dir().join("loader.sock");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    assert_eq!(service.login().status, 200);
    let bytes = pattern(3_000_000, 1);
    assert_eq!(service.upload(&folder, "m.bin", &bytes).status, 200);
    assert!(service.load(&folder, "m.bin").body == bytes);
    service.kill();
    // A socket that a killed process left does not prevent the start.
    service.restart();
    assert_eq!(service.get("/health").status, 200);
    assert!(service.terminate().success());
    assert!(!path.exists());
}

#[test]
fn one_connection_serves_many_requests() {
    let world = World::new();
    let mut reader = BufReader::new(world.service.connect());
    let body = r#"{"email":"operator@example.com","password":"correct-horse"}"#;
    for _ in 0..3 {
        write!(reader.get_mut(), "GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_eq!(raw::read_reply(&mut reader, "GET").unwrap().status, 200);
        write!(
            reader.get_mut(),
            "POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        assert_eq!(raw::read_reply(&mut reader, "POST").unwrap().status, 200);
        let padded = format!("{body}{}", " ".repeat(5000));
        write!(
            reader.get_mut(),
            "POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{padded}",
            padded.len()
        )
        .unwrap();
        assert_eq!(raw::read_reply(&mut reader, "POST").unwrap().status, 200);
    }
}

#[test]
fn pipelined_requests_are_answered_in_order_and_hold_up_nobody_else() {
    let world = World::new();
    world.api.fault("/login", Fault::Delay(Duration::from_millis(700)), None);
    let mut reader = BufReader::new(world.service.connect());
    let body = r#"{"email":"operator@example.com","password":"correct-horse"}"#;
    write!(
        reader.get_mut(),
        "POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}\
         GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /nope HTTP/1.1\r\nHost: x\r\n\r\n",
        body.len()
    )
    .unwrap();
    thread::sleep(Duration::from_millis(100));
    world.service.is_prompt();
    let statuses: Vec<u16> =
        ["POST", "GET", "GET"].iter().map(|method| raw::read_reply(&mut reader, method).unwrap().status).collect();
    assert_eq!(statuses, [200, 200, 404]);
}

/// `tiny_http` queues a burst of connections for its first four threads, although it would start more.
#[test]
fn a_burst_of_connections_that_stay_open_keeps_nobody_waiting() {
    for service in [Service::builder().start(), Service::builder().unix().start()] {
        for _ in 0..3 {
            let mut open = Vec::new();
            for _ in 0..40 {
                let mut stream = Stream::connect(service.address()).unwrap();
                stream.set_timeout(Duration::from_secs(5)).unwrap();
                stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
                open.push(BufReader::new(stream));
            }
            for reader in &mut open {
                assert_eq!(raw::read_reply(reader, "GET").unwrap().status, 200);
            }
        }
    }
}
