//! Clients that stall, trickle, flood, reset or never end: each costs little, and nobody else notices.

use std::io::{BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::world::raw::{self, Stream};
use crate::world::resource_api;
use crate::world::s3_fault::{Fault, Purpose};
use crate::world::service::{Service, ServiceBuilder};
use crate::world::tcp::{connect_from, free_port, reset_on_close};
use crate::world::{World, eventually, loader_binary, pattern};

/// In KiB, as the kernel counts.
const MIB: u64 = 1024;

/// How long the machine that runs the tests may take beyond a limit that the service keeps.
const SLACK: Duration = Duration::from_secs(6);

fn with_limit(seconds: u32) -> ServiceBuilder {
    Service::builder().env("CLIENT_STALL_SECONDS", seconds.to_string())
}

/// Descriptors and threads come back to what they were. An idle thread of the library lives 5 s.
fn settles(service: &Service, descriptors: usize, threads: usize) {
    eventually(Duration::from_secs(20), "descriptors and threads return", || {
        service.descriptors() <= descriptors + 2 && service.threads() <= threads + 4
    });
}

/// Reads until the service ends the connection: how long it took, and what it said.
fn end_of(stream: &mut Stream) -> (Duration, String) {
    let (started, mut said) = (Instant::now(), Vec::new());
    if let Err(error) = stream.read_to_end(&mut said) {
        assert!(!matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "the connection stays open");
    }
    (started.elapsed(), String::from_utf8_lossy(&said).into_owned())
}

fn load_head(folder: &str, name: &str) -> String {
    let body = format!(r#"{{"folder":"{folder}"}}"#);
    let length = body.len();
    format!(
        "POST /load/{name} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

const UPLOAD: &str =
    "POST /upload/stalled.bin HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n";
const FILE: &str = "--b\r\nContent-Disposition: form-data; name=data; filename=x\r\n\r\nDATA";

#[test]
fn stalled_clients_give_their_handlers_back_within_the_limit() {
    let world = World::with(|builder| builder.env("CLIENT_STALL_SECONDS", "3"));
    world.upload("small.bin", b"model");
    // More than the sockets on both sides take.
    world.upload("large.bin", &pattern(24_000_000, 1));
    let descriptors = world.service.descriptors();
    let mut stalled = Vec::new();
    for _ in 0..2 {
        let mut upload = world.service.connect();
        write!(upload, "{UPLOAD}Content-Length: 1000000\r\n\r\n{FILE}").unwrap();
        let mut load = world.service.connect();
        write!(load, "{}", load_head(&world.folder, "large.bin")).unwrap();
        stalled.extend([upload, load]);
    }
    // All four handlers are taken.
    eventually(SLACK, "the uploads arrive", || world.service.spooled() == 2);
    let started = Instant::now();
    let health = world.service.usual_health();
    world.loads("small.bin", b"model");
    let took = started.elapsed();
    assert!(health < Duration::from_millis(50), "{health:?}");
    assert!(took < Duration::from_secs(3) + SLACK, "{took:?}");
    // The service has let go of them all, although they are still held here.
    eventually(SLACK, "no handler is busy", || {
        world.service.get("/metrics").text().contains("\nloader_handler_threads_busy 0\n")
    });
    settles(&world.service, descriptors, usize::MAX - 4);
    for stream in &mut stalled {
        let (_, said) = end_of(stream);
        // An upload is told why, a load breaks off.
        assert!(said.starts_with("HTTP/1.1 422 ") || said.len() < 24_000_000);
    }
}

/// The timeouts of a socket begin anew with every byte.
#[test]
fn a_trickling_client_counts_as_a_stalled_one() {
    let world = World::with(|builder| builder.env("CLIENT_STALL_SECONDS", "1").env("HANDLER_THREADS", "1"));
    world.upload("small.bin", b"model");
    let mut upload = world.service.connect();
    write!(upload, "{UPLOAD}Content-Length: 1000000\r\n\r\n{FILE}").unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) && upload.write_all(b"x").is_ok() {
                thread::sleep(Duration::from_millis(100));
            }
        });
        thread::sleep(Duration::from_millis(300));
        let started = Instant::now();
        let reply = world.service.load(&world.folder, "small.bin");
        done.store(true, Ordering::Relaxed);
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert!(started.elapsed() < Duration::from_secs(2) + SLACK, "{:?}", started.elapsed());
    });
}

#[test]
fn a_request_head_that_does_not_come_to_its_end_is_answered_408() {
    let service = with_limit(1).start();
    // One comes byte by byte, one stops, and one stops in its body.
    for (beginning, trickles) in [
        ("GET /health HTTP/1.1\r\nX: ", true),
        ("GET /hea", false),
        ("POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{", false),
    ] {
        let mut stream = service.connect();
        stream.write_all(beginning.as_bytes()).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while trickles && !done.load(Ordering::Relaxed) && writer.write_all(b"x").is_ok() {
                    thread::sleep(Duration::from_millis(50));
                }
            });
            stream.set_timeout(Duration::from_secs(1) + SLACK).unwrap();
            let (took, said) = end_of(&mut stream);
            done.store(true, Ordering::Relaxed);
            assert!(took > Duration::from_millis(700), "{beginning}: {took:?}");
            assert!(said.starts_with("HTTP/1.1 408 "), "{beginning}: {said}");
        });
    }
}

#[test]
fn idle_connections_end_after_the_limit() {
    for builder in [with_limit(1), with_limit(1).unix()] {
        let service = builder.start();
        let mut streams = Vec::new();
        // One has sent nothing, one had an answer from the accept loop, one from a handler.
        for (request, status) in [
            ("", 0),
            ("GET /health HTTP/1.1\r\nHost: x\r\n\r\n", 200),
            ("POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", 422),
        ] {
            let mut reader = BufReader::new(service.connect());
            reader.get_mut().write_all(request.as_bytes()).unwrap();
            if status > 0 {
                assert_eq!(raw::read_reply(&mut reader, "GET").unwrap().status, status);
            }
            streams.push(reader.into_inner());
        }
        for mut stream in streams {
            stream.set_timeout(Duration::from_secs(2) + SLACK).unwrap();
            assert_eq!(end_of(&mut stream).1, "");
        }
    }
}

#[test]
fn a_connection_that_is_used_does_not_end() {
    let world = World::with(|builder| builder.env("CLIENT_STALL_SECONDS", "2"));
    world.upload("m.bin", b"model");
    let mut reader = BufReader::new(world.service.connect());
    let form = format!("{FILE}\r\n--b\r\nContent-Disposition: form-data; name=folder\r\n\r\n{}\r\n--b--", world.folder);
    let started = Instant::now();
    // Longer than the limit in all; the bodies together are far larger than a head may be.
    while started.elapsed() < Duration::from_secs(5) {
        let large = form.replace("DATA", &"D".repeat(300_000));
        let requests = [
            "GET /health HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
            load_head(&world.folder, "m.bin"),
            format!("{UPLOAD}Content-Length: {}\r\n\r\n{large}", large.len()),
        ];
        for request in requests {
            reader.get_mut().write_all(request.as_bytes()).unwrap();
            assert_eq!(raw::read_reply(&mut reader, "POST").unwrap().status, 200);
        }
        thread::sleep(Duration::from_millis(700));
    }
}

#[test]
fn a_head_of_more_than_16_kib_is_answered_431_or_414_for_its_target() {
    let service = Service::builder().start();
    for head in [
        format!("GET /health?{} HTTP/1.1\r\nHost: x\r\n\r\n", "q".repeat(20_000)),
        format!("GET /health HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "v".repeat(20_000)),
        format!("GET /health HTTP/1.1\r\nHost: x\r\n{}\r\n", "a: b\r\n".repeat(4_000)),
        // Not at its end: nobody waits for more of it. Ten seconds are far below the limit of time.
        format!("GET /health HTTP/1.1\r\nHost: x\r\nX: {}", "v".repeat(20_000)),
        format!("GET /health?{}", "q".repeat(20_000)),
        // A megabyte is either stopped on its way or refused when it has come.
        format!("GET /health?{} HTTP/1.1\r\nHost: x\r\n\r\n", "q".repeat(1 << 20)),
        format!("GET /health HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "v".repeat(1 << 20)),
    ] {
        let mut stream = service.connect();
        stream.set_timeout(Duration::from_secs(10)).unwrap();
        // The connection may end under it.
        let _ = stream.write_all(head.as_bytes());
        let mut said = [0; 13];
        match stream.read_exact(&mut said) {
            Ok(()) => {
                let too_long = if head.starts_with("GET /health?") { b"HTTP/1.1 414 " } else { b"HTTP/1.1 431 " };
                assert_eq!(&said, too_long, "{head:.40}");
            }
            // Its last words are lost where more was on the way.
            Err(error) => assert!(!matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{head:.40}"),
        }
    }
    let head = format!("GET /health HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "v".repeat(15_000));
    let mut reader = BufReader::new(service.connect());
    reader.get_mut().write_all(head.as_bytes()).unwrap();
    assert_eq!(raw::read_reply(&mut reader, "GET").unwrap().status, 200);
}

#[test]
fn a_thousand_idle_connections_cost_a_descriptor_each_and_no_thread() {
    let service = with_limit(600).start();
    service.get("/health");
    let (descriptors, threads, rss) = (service.descriptors(), service.threads(), service.vm_rss_kib());
    let mut open = Vec::new();
    for number in 0..1000 {
        let mut stream = Stream::connect(service.address()).unwrap();
        let beginning = ["", "GET /health HTTP/1.1\r\nHost: x\r\n\r\n"][number % 2];
        stream.write_all(beginning.as_bytes()).unwrap();
        open.push(stream);
    }
    // The first request's connection may have been counted before it was closed.
    eventually(Duration::from_secs(60), "all are held", || service.descriptors() >= descriptors + 995);
    let health = service.usual_health();
    assert!(health < Duration::from_millis(50), "{health:?}");
    assert!(service.threads() <= threads, "{} threads, {threads} before", service.threads());
    let grown = service.vm_rss_kib().saturating_sub(rss);
    eprintln!("1,000 connections cost {grown} KiB");
    assert!(grown < 4 * MIB, "{grown} KiB");
    drop(open);
    settles(&service, descriptors, threads);
}

/// The loader with so few descriptors.
fn limited(directory: &TempDir, descriptors: usize) -> PathBuf {
    let limited = directory.path().join(format!("loader-{descriptors}"));
    let script = format!("#!/bin/sh\nulimit -n {descriptors}\nexec {} \"$@\"\n", loader_binary().display());
    std::fs::write(&limited, script).unwrap();
    std::fs::set_permissions(&limited, std::fs::Permissions::from_mode(0o755)).unwrap();
    limited
}

fn take_descriptors(service: &Service, connections: usize) -> Vec<Stream> {
    let mut open = Vec::new();
    for _ in 0..connections {
        if let Ok(mut stream) = Stream::connect(service.address()) {
            let _ = stream.write_all(b"GET /hea");
            open.push(stream);
        }
    }
    open
}

#[test]
fn it_recovers_when_descriptors_run_out() {
    let directory = tempfile::tempdir().unwrap();
    for limit in [64, 65] {
        let binary = limited(&directory, limit);
        let world = World::with(|builder| builder.binary(&binary).timeout(Duration::from_secs(10)));
        world.upload("m.bin", b"model");
        let descriptors = world.service.descriptors();
        let mut took = Vec::new();
        for connections in [120, 24, 25, 26, 27, 28, 40] {
            let open = take_descriptors(&world.service, connections);
            // While they hold what they got.
            let started = Instant::now();
            eventually(Duration::from_secs(9), "somebody else gets an answer", || {
                world.service.call("GET", "/health", &[], b"").is_ok_and(|reply| reply.status == 200)
            });
            took.push(started.elapsed());
            drop(open);
            eventually(SLACK, "descriptors return", || world.service.descriptors() <= descriptors + 4);
            // It is the same process, still logged in.
            assert!(world.service.is_running());
            world.loads("m.bin", b"model");
        }
        took.sort();
        eprintln!("with {limit} descriptors an answer after {took:?}");
        assert!(took[took.len() / 2] < Duration::from_secs(1), "{took:?}");
        assert!(*took.last().unwrap() < Duration::from_secs(1) + SLACK, "{took:?}");
    }
}

/// To the very last one, to the one before it, and to more than there are.
#[test]
fn somebody_is_served_while_every_descriptor_is_taken() {
    let directory = tempfile::tempdir().unwrap();
    let limit = 64;
    let service = Service::builder().binary(limited(&directory, limit)).timeout(Duration::from_secs(10)).start();
    // Without the connections of the start.
    thread::sleep(Duration::from_secs(1));
    let descriptors = service.descriptors();
    let mut took = Vec::new();
    for connections in limit - descriptors - 8..limit - descriptors + 4 {
        let open = take_descriptors(&service, connections);
        let started = Instant::now();
        eventually(Duration::from_secs(9), "somebody else gets an answer", || {
            service.call("GET", "/health", &[], b"").is_ok_and(|reply| reply.status == 200)
        });
        took.push(started.elapsed());
        drop(open);
        eventually(SLACK, "descriptors return", || service.descriptors() <= descriptors);
    }
    took.sort();
    eprintln!("{limit} descriptors, {descriptors} its own: an answer after {took:?}");
    assert!(took[took.len() / 2] < Duration::from_secs(1), "{took:?}");
    assert!(*took.last().unwrap() < Duration::from_secs(1) + SLACK, "{took:?}");
}

#[test]
fn a_unix_socket_is_still_there_after_descriptors_ran_out() {
    let directory = tempfile::tempdir().unwrap();
    let service = Service::builder().binary(limited(&directory, 64)).unix().timeout(Duration::from_secs(10)).start();
    for _ in 0..3 {
        let open = take_descriptors(&service, 60);
        eventually(Duration::from_secs(9), "somebody else gets an answer", || {
            service.call("GET", "/health", &[], b"").is_ok_and(|reply| reply.status == 200)
        });
        drop(open);
    }
    let path = service.address().strip_prefix("unix:").unwrap().to_owned();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    assert!(service.terminate().success());
    assert!(!std::path::Path::new(&path).exists());
}

/// Ports come round quickly on the loopback interface. What the service still does for a client that has gone is nothing to
/// the next connection from the same port.
#[test]
fn a_connection_is_not_taken_for_the_one_before_it_from_the_same_port() {
    let world = World::new();
    world.upload("m.bin", b"model");
    let small = format!("/resources/get/{}", world.folder);
    world.api.fault(&small, resource_api::Fault::Delay(Duration::from_secs(2)), Some(1));
    world.api.clear_requests();
    let port = free_port();
    let connect = || {
        let stream = connect_from(port, world.service.address()).expect("the port is free again");
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    };

    let mut gone = connect();
    write!(gone, "{}", load_head(&world.folder, "m.bin")).unwrap();
    eventually(Duration::from_secs(10), "the handler waits for the API", || world.api.count(&small) > 0);
    reset_on_close(&gone);
    drop(gone);

    let mut next = BufReader::new(connect());
    let started = Instant::now();
    let mut ask = || {
        next.get_ref().write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").expect("the connection is open");
        raw::read_reply(&mut next, "GET").expect("an answer").status
    };
    assert_eq!(ask(), 200);
    let first = started.elapsed();
    assert!(first < Duration::from_secs(1), "it waited {first:?} behind the request of another connection");
    // The answer to the client that has gone cannot be sent, which ends its connection, and not this one.
    while started.elapsed() < Duration::from_secs(3) {
        assert_eq!(ask(), 200);
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn resets_in_the_middle_leave_nothing_behind() {
    let world = World::new();
    let bytes = pattern(3_000_000, 1);
    world.upload("m.bin", &bytes);
    let (descriptors, threads) = (world.service.descriptors(), world.service.threads());
    for _ in 0..20 {
        let mut upload = world.service.connect();
        write!(upload, "{UPLOAD}Content-Length: 1000000\r\n\r\n{FILE}").unwrap();
        let mut load = world.service.connect();
        write!(load, "{}", load_head(&world.folder, "m.bin")).unwrap();
        load.read_exact(&mut [0; 20_000]).unwrap();
        for stream in [upload, load] {
            if let Stream::Tcp(stream) = &stream {
                reset_on_close(stream);
            }
        }
    }
    world.loads("m.bin", &bytes);
    settles(&world.service, descriptors, threads);
    assert_eq!(world.service.spooled(), 0);
    assert!(!world.keys().iter().any(|key| key.starts_with("stalled")));
}

/// The accept loop writes the answers itself. After a handler has been at the connection, too, it must not wait for long.
#[test]
fn a_client_that_pipelines_without_reading_holds_up_nobody() {
    let service = Service::builder().start();
    let mut reader = BufReader::new(service.connect());
    write!(reader.get_mut(), "POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}").unwrap();
    assert_eq!(raw::read_reply(&mut reader, "POST").unwrap().status, 422);
    let mut stream = reader.into_inner();
    stream.set_timeout(Duration::from_secs(5)).unwrap();
    let requests = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    thread::scope(|scope| {
        let flood = scope.spawn(move || {
            let mut sent = 0;
            // The answers fill what the sockets take; then the connection ends.
            while sent < 400 && stream.write_all(requests.as_bytes()).is_ok() {
                sent += 1;
            }
            sent
        });
        let started = Instant::now();
        while !flood.is_finished() {
            let asked = Instant::now();
            assert_eq!(service.get("/health").status, 200);
            // A handler would be kept waiting longer.
            assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
            thread::sleep(Duration::from_millis(20));
        }
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
        assert!(flood.join().unwrap() < 400, "the client never filled its sockets");
    });
    let health = service.usual_health();
    assert!(health < Duration::from_millis(50), "{health:?}");
}

fn chunked(body: &str, trailers: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for chunk in body.as_bytes().chunks(7001) {
        write!(bytes, "{:x};extension=1\r\n", chunk.len()).unwrap();
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    write!(bytes, "0\r\n{trailers}\r\n").unwrap();
    bytes
}

#[test]
fn chunked_uploads_work_with_trailers_and_end_at_the_limit() {
    let world = World::with(|builder| builder.env("MAX_UPLOAD_BYTES", "200000"));
    let form = |size: usize| {
        let field = format!("--b\r\nContent-Disposition: form-data; name=folder\r\n\r\n{}\r\n", world.folder);
        format!("{field}{}\r\n--b--\r\n", FILE.replace("DATA", &"D".repeat(size)))
    };
    let trailers = "X-Checksum: 1\r\nGET /status HTTP/1.1\r\n";
    for (size, trailers, status) in [(100_000, "", 200), (100_000, trailers, 200), (200_001, trailers, 413)] {
        let mut stream = world.service.connect();
        write!(stream, "{}Transfer-Encoding: chunked\r\n\r\n", UPLOAD.replace("stalled", "chunked")).unwrap();
        stream.write_all(&chunked(&form(size), trailers)).unwrap();
        let mut reader = BufReader::new(stream);
        let reply = raw::read_reply(&mut reader, "POST").unwrap();
        assert_eq!(reply.status, status, "{}", reply.text());
        // Trailers are no requests.
        let mut rest = Vec::new();
        let _ = reader.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    }
    world.loads("chunked.bin", &[b'D'; 100_000]);
}

/// What a person sees who uses the README's commands.
#[test]
fn curl_fails_at_once_when_a_transfer_breaks_off() {
    if Command::new("curl").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "curl is not installed");
        let _ = writeln!(std::io::stderr(), "SKIPPED: transfers that break off need curl");
        return;
    }
    let (world, proxy) = World::behind_proxy();
    world.upload("m.bin", &pattern(3_000_000, 1));
    let curl = |version: &str| {
        world.forget("m.bin");
        let started = Instant::now();
        let output = Command::new("curl")
            .args(["--silent", "--noproxy", "*", "--max-time", "60", version, "-H", "Content-Type: application/json"])
            .args(["-o", "/dev/null", "-w", "%{http_code} %{size_download}"])
            .args(["-d", &format!(r#"{{"folder":"{}"}}"#, world.folder), &world.service.url("/load/m.bin")])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code().unwrap(), said, started.elapsed())
    };
    for version in ["--http1.1", "--http1.0"] {
        proxy.clear_faults();
        assert_eq!((curl(version).0, curl(version).1.as_str()), (0, "200 3000000"));
        // A byte of the second chunk, and then of whatever is asked for in its place.
        proxy.fault_on(Purpose::Whole, ".big", Fault::CorruptByteAt(1_500_000), None);
        proxy.fault_on(Purpose::Rest, ".big", Fault::CorruptByteAt(100), None);
        let (status, said, took) = curl(version);
        // 18: the transfer ended early; 56: it was reset.
        assert!(matches!(status, 18 | 56) && said.starts_with("200 "), "{status}: {said}");
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
}
