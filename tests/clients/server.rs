//! The server itself: listeners, threads, and clients that do not behave.

use std::io::{BufReader, Read, Write};
use std::net::Shutdown;
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
        let took = service.usual_health();
        assert!(took < Duration::from_millis(50), "{took:?}");
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
        // One is worked on, sixteen wait; one more is refused if the handler had not taken the first one yet.
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
    // The socket of the killed process is in nobody's way.
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
    assert!(world.service.usual_health() < Duration::from_millis(50));
    let statuses: Vec<u16> =
        ["POST", "GET", "GET"].iter().map(|method| raw::read_reply(&mut reader, method).unwrap().status).collect();
    assert_eq!(statuses, [200, 200, 404]);
}

#[test]
fn a_declared_length_costs_nothing() {
    let (service, _api) = (Service::builder().start(), ());
    service.get("/health");
    let (descriptors, rss) = (service.descriptors(), service.vm_rss_kib());
    for round in 0..1000 {
        let (path, extra) = [
            ("/login", "Content-Type: application/json\r\n"),
            ("/upload/m", "Content-Type: multipart/form-data; boundary=b\r\n"),
            ("/nope", ""),
            ("/health", ""),
        ][round % 4];
        let mut stream = service.connect();
        write!(stream, "POST {path} HTTP/1.1\r\nHost: x\r\n{extra}Content-Length: 1000000000000000\r\n\r\n").unwrap();
        let mut reader = BufReader::new(stream);
        let status = raw::read_reply(&mut reader, "POST").unwrap().status;
        assert!(matches!(status, 404 | 405 | 413 | 500 | 422), "{path}: {status}");
    }
    // A body that ends early is the same hazard by another way.
    for _ in 0..20 {
        let mut stream = service.connect();
        write!(
            stream,
            "POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n{{"
        )
        .unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(raw::read_reply(&mut BufReader::new(stream), "POST").unwrap().status, 422);
    }
    assert!(service.is_running());
    let deadline = Instant::now() + Duration::from_secs(8);
    while service.descriptors() > descriptors + 2 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(50));
    }
    assert!(service.descriptors() <= descriptors + 2, "{} descriptors, {descriptors} before", service.descriptors());
    let grown = service.vm_rss_kib().saturating_sub(rss);
    assert!(grown < 24 * 1024, "{grown} KiB");
}

#[test]
fn requests_with_contradictory_framing_are_refused_and_their_connection_ends() {
    let service = Service::builder().start();
    for head in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: five\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 99999999999999999999999\r\n",
        "Transfer-Encoding: gzip\r\n",
    ] {
        let mut stream = service.connect();
        write!(stream, "POST /login HTTP/1.1\r\nHost: x\r\n{head}\r\nhelloGET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap();
        let mut reader = BufReader::new(stream);
        assert_eq!(raw::read_reply(&mut reader, "POST").unwrap().status, 400, "{head}");
        let mut rest = Vec::new();
        let _ = reader.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{head}: {}", String::from_utf8_lossy(&rest));
    }
    assert!(service.is_running());
}

#[test]
fn a_chunked_upload_works() {
    let world = World::new();
    let form = format!(
        "--b\r\nContent-Disposition: form-data; name=folder\r\n\r\n{}\r\n--b\r\nContent-Disposition: form-data; name=data; filename=x\r\n\r\n{}\r\n--b--\r\n",
        world.folder,
        "D".repeat(100_000)
    );
    let mut stream = world.service.connect();
    write!(stream, "POST /upload/m.bin HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    for chunk in form.as_bytes().chunks(7001) {
        write!(stream, "{:x}\r\n", chunk.len()).unwrap();
        stream.write_all(chunk).unwrap();
        stream.write_all(b"\r\n").unwrap();
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    let reply = raw::read_reply(&mut BufReader::new(stream), "POST").unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    world.loads("m.bin", "D".repeat(100_000).as_bytes());
}

#[test]
fn expect_100_continue_is_answered_when_the_body_is_wanted_and_only_then() {
    let world = World::with(|builder| builder.env("MAX_UPLOAD_BYTES", "200000"));
    let form = format!(
        "--b\r\nContent-Disposition: form-data; name=folder\r\n\r\n{}\r\n--b\r\nContent-Disposition: form-data; name=data; filename=x\r\n\r\nDATA\r\n--b--\r\n",
        world.folder
    );
    let head = |length: usize| {
        format!(
            "POST /upload/m.bin HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let mut reader = BufReader::new(world.service.connect());
    reader.get_mut().write_all(head(form.len()).as_bytes()).unwrap();
    let mut interim = [0; 25];
    reader.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    reader.get_mut().write_all(form.as_bytes()).unwrap();
    assert_eq!(raw::read_reply(&mut reader, "POST").unwrap().status, 200);

    let mut reader = BufReader::new(world.service.connect());
    reader.get_mut().write_all(head(10_000_000).as_bytes()).unwrap();
    let mut answer = String::new();
    reader.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

/// Loads `m.bin`, of `size` bytes, and expects the connection to end at once before all of them have come.
fn fails_half_way(mut stream: Stream, folder: &str, size: usize) {
    stream.set_timeout(Duration::from_secs(20)).unwrap();
    let body = format!(r#"{{"filename":"m.bin","folder":"{folder}"}}"#);
    write!(
        stream,
        "POST /load/m.bin HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let started = Instant::now();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    let head_end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    assert!(answer.starts_with(b"HTTP/1.1 200 ") && answer.len() - head_end < size);
}

/// Damages a byte of the second chunk, and then of whatever is asked for in its place.
fn damage_half_way(proxy: &crate::world::s3_proxy::S3Proxy) {
    use crate::world::s3_fault::{Fault, Purpose};
    proxy.fault_on(Purpose::Whole, ".big", Fault::CorruptByteAt(1_500_000), None);
    proxy.fault_on(Purpose::Rest, ".big", Fault::CorruptByteAt(100), None);
}

#[test]
fn a_load_that_fails_half_way_is_noticed_by_the_client_at_once() {
    let (world, proxy) = World::behind_proxy();
    let bytes = pattern(3_000_000, 1);
    world.upload("m.bin", &bytes);
    world.forget("m.bin");
    damage_half_way(&proxy);
    fails_half_way(world.service.connect(), &world.folder, bytes.len());
}

#[test]
fn a_load_that_fails_half_way_ends_the_connection_on_a_unix_socket_too() {
    let s3 = S3::start();
    let api = ResourceApi::start();
    let proxy = crate::world::s3_proxy::S3Proxy::before(&s3);
    api.put_file("", "cdn.yaml", s3.cdn_yaml_at(&proxy.url()));
    let folder = s3.new_bucket("models");
    let service = Service::builder().api(&api).unix().start();
    assert_eq!(service.login().status, 200);
    assert_eq!(service.upload(&folder, "m.bin", &pattern(3_000_000, 1)).status, 200);
    let big = service.cache_file(&folder, "m.bin");
    std::fs::remove_file(&big).unwrap();
    damage_half_way(&proxy);
    fails_half_way(Stream::connect(service.address()).unwrap(), &folder, 3_000_000);
    assert_eq!(service.get("/health").status, 200);
}

#[test]
fn http_1_0_clients_get_their_length_and_their_end() {
    let world = World::new();
    let bytes = pattern(200_000, 1);
    world.upload("m.bin", &bytes);
    let body = format!(r#"{{"filename":"m.bin","folder":"{}"}}"#, world.folder);
    let mut stream = world.service.connect();
    write!(
        stream,
        "POST /load/m.bin HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.ends_with(&bytes) && String::from_utf8_lossy(&answer[..400]).contains("Content-Length: 200000\r\n"));
}

/// `tiny_http` queues connections that come in a burst behind its four first threads, although it would start more.
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
