//! Clients that stall, trickle or never end a request: each costs little, and nobody else notices.

use std::io::{BufReader, ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::pieces::{FILE, SLACK, UPLOAD, end_of, load_head, settles, with_limit};
use crate::world::raw::{self};
use crate::world::service::Service;
use crate::world::{World, eventually, pattern};

#[test]
fn stalled_clients_give_their_handlers_back_within_the_limit() {
    let world = World::with(|builder| builder.env("CLIENT_STALL_SECONDS", "3"));
    world.upload("small.bin", b"model");
    // More than the socket buffers on both sides hold.
    let large = pattern(24_000_000, 1);
    world.upload("large.bin", &large);
    // Warm, because a cold load leaves idle connections to the CDN, which count as descriptors.
    world.loads("large.bin", &large);
    let descriptors = world.service.descriptors();
    let mut stalled = Vec::new();
    for _ in 0..2 {
        let mut upload = world.service.connect();
        write!(upload, "{UPLOAD}Content-Length: 1000000\r\n\r\n{FILE}").unwrap();
        let mut load = world.service.connect();
        write!(load, "{}", load_head(&world.folder, "large.bin")).unwrap();
        stalled.extend([upload, load]);
    }
    // All four handlers are busy.
    eventually(SLACK, "the uploads arrive", || world.service.spooled() == 2);
    let started = Instant::now();
    world.service.is_prompt();
    world.loads("small.bin", b"model");
    let took = started.elapsed();
    assert!(took < Duration::from_secs(3) + SLACK, "{took:?}");
    // The service has given all of them up, although this end still holds them open.
    eventually(SLACK, "no handler is busy", || world.service.metric("loader_handler_threads_busy") == 0);
    settles(&world.service, descriptors, usize::MAX - 4);
    for stream in &mut stalled {
        let (_, said) = end_of(stream);
        // An upload gets an answer with the reason; a load ends early.
        assert!(said.starts_with("HTTP/1.1 422 ") || said.len() < 24_000_000);
    }
}

/// A socket timeout would start again with every byte.
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
    // For longer than the time limit of one request, with more bytes than a head may have.
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
        // Unfinished: the service answers without waiting for the rest, long before its time limit.
        format!("GET /health HTTP/1.1\r\nHost: x\r\nX: {}", "v".repeat(20_000)),
        format!("GET /health?{}", "q".repeat(20_000)),
        // The connection may end while a megabyte is still being sent, or the answer comes after it.
        format!("GET /health?{} HTTP/1.1\r\nHost: x\r\n\r\n", "q".repeat(1 << 20)),
        format!("GET /health HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "v".repeat(1 << 20)),
    ] {
        let mut stream = service.connect();
        stream.set_timeout(Duration::from_secs(10)).unwrap();
        // The service may close the connection during the write.
        let _ = stream.write_all(head.as_bytes());
        let mut said = [0; 13];
        match stream.read_exact(&mut said) {
            Ok(()) => {
                let too_long = if head.starts_with("GET /health?") { b"HTTP/1.1 414 " } else { b"HTTP/1.1 431 " };
                assert_eq!(&said, too_long, "{head:.40}");
            }
            // The answer is lost if more data was in transit when the connection closed.
            Err(error) => assert!(!matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{head:.40}"),
        }
    }
    let head = format!("GET /health HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "v".repeat(15_000));
    let mut reader = BufReader::new(service.connect());
    reader.get_mut().write_all(head.as_bytes()).unwrap();
    assert_eq!(raw::read_reply(&mut reader, "GET").unwrap().status, 200);
}

/// The accept loop writes these answers itself, and must not wait long for a client, also on a connection that a handler has used.
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
            // The answers fill the socket buffers; then the connection ends.
            while sent < 400 && stream.write_all(requests.as_bytes()).is_ok() {
                sent += 1;
            }
            sent
        });
        let started = Instant::now();
        while !flood.is_finished() {
            let asked = Instant::now();
            assert_eq!(service.get("/health").status, 200);
            // A stalled answer would take longer.
            assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
            thread::sleep(Duration::from_millis(20));
        }
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
        assert!(flood.join().unwrap() < 400, "the client never filled its sockets");
    });
    service.is_prompt();
}
