//! Idle connections cost a descriptor each, and are closed when others need the place.

use std::io::{BufReader, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use super::scene::Scene;
use crate::world::process::{memory_kib, raise_descriptor_limit};
use crate::world::raw::{self, Stream};
use crate::world::resource_api::{Fault, ResourceApi};
use crate::world::service::Service;
use crate::world::{eventually, in_ci, skip};

const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n";

/// In KiB.
const MEMORY: u64 = 16 * 1024;

/// How much later than the service's limit an answer may come on a slow machine.
const SLACK: Duration = Duration::from_secs(25);

#[test]
fn idle_connections_cost_no_thread_and_little_memory() {
    let wanted = if in_ci() { 10_000 } else { 1_000 };
    let limit = raise_descriptor_limit();
    if limit < wanted + 1_000 {
        return skip("idle connections", &format!("{limit} descriptors are too few for {wanted} connections"));
    }
    let configure = |builder: crate::world::service::ServiceBuilder| {
        builder.env("MAX_CONNECTIONS", (wanted + 100).to_string()).env("CLIENT_STALL_SECONDS", "600")
    };
    for scene in Scene::both(configure) {
        let service = &scene.service;
        service.get("/metrics");
        let before = (service.threads(), service.descriptors(), memory_kib(service.pid(), "RssAnon"));
        let mut open = Vec::new();
        for number in 0..wanted {
            let mut stream = Stream::connect(service.address()).unwrap_or_else(|error| panic!("{number}: {error}"));
            // Every other one gets an answer.
            if number % 2 == 0 {
                stream.write_all(HEALTH).unwrap();
            }
            open.push(BufReader::new(stream));
        }
        for reader in open.iter_mut().step_by(2) {
            assert_eq!(raw::read_reply(reader, "GET").unwrap().status, 200);
        }
        // `before` may include a connection that has been closed since.
        eventually(SLACK, "all are accepted", || service.descriptors() >= before.1 + wanted - 5);
        let grown = memory_kib(service.pid(), "RssAnon").saturating_sub(before.2);
        println!("{}: {wanted} connections cost {grown} KiB", service.address());
        assert!(service.threads() <= before.0 + 5, "{} threads, {} before", service.threads(), before.0);
        assert!(service.is_emulated() || grown <= MEMORY, "{grown} KiB");
        // All of them still work.
        for reader in open.iter_mut().rev().step_by(97) {
            reader.get_mut().write_all(HEALTH).unwrap();
            assert_eq!(raw::read_reply(reader, "GET").unwrap().status, 200);
        }
        drop(open);
        eventually(SLACK, "descriptors return", || service.descriptors() <= before.1 + 5);
    }
}

fn with_fifty(unix: bool) -> Service {
    let builder = Service::builder().env("MAX_CONNECTIONS", "50").env("CLIENT_STALL_SECONDS", "600");
    let builder = builder.timeout(Duration::from_secs(10));
    if unix { builder.unix().start() } else { builder.start() }
}

#[test]
fn at_the_limit_the_connection_that_was_idle_longest_makes_room() {
    for service in [with_fifty(false), with_fifty(true)] {
        let connect = || {
            let mut reader = BufReader::new(service.connect());
            reader.get_mut().write_all(HEALTH).unwrap();
            assert_eq!(raw::read_reply(&mut reader, "GET").unwrap().status, 200);
            reader
        };
        let mut open: Vec<_> = (0..50).map(|_| connect()).collect();
        // The first one has been used since, so it is not the one idle longest.
        let first = &mut open[0];
        first.get_mut().write_all(HEALTH).unwrap();
        assert_eq!(raw::read_reply(first, "GET").unwrap().status, 200);
        let more: Vec<_> = (0..10).map(|_| connect()).collect();
        for (number, reader) in open.iter_mut().enumerate() {
            if (1..=10).contains(&number) {
                let mut said = Vec::new();
                if let Err(error) = reader.read_to_end(&mut said) {
                    let open = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                    assert!(!open, "{number} has not made room");
                }
                assert!(said.is_empty(), "{number}: {}", String::from_utf8_lossy(&said));
            } else {
                reader.get_mut().write_all(HEALTH).unwrap();
                assert_eq!(raw::read_reply(reader, "GET").unwrap().status, 200, "{number}");
            }
        }
        drop(more);
    }
}

/// Between connecting and sending, a client on a busy machine may have to wait for the processor.
#[test]
fn at_the_limit_unfinished_heads_make_room_before_a_client_that_has_just_connected() {
    for service in [with_fifty(false), with_fifty(true)] {
        let unfinished = || {
            let mut stream = service.connect();
            stream.write_all(b"GET /hea").unwrap();
            stream
        };
        let mut heads: Vec<_> = (0..50).map(|_| unfinished()).collect();
        let mut served = 0;
        for _ in 0..20 {
            let connected = Instant::now();
            let mut newcomer = BufReader::new(service.connect());
            // Each of these needs room, and the last is answered when all have been accepted.
            heads.extend((0..5).map(|_| unfinished()));
            assert_eq!(service.get("/health").status, 200);
            let sent = newcomer.get_mut().write_all(HEALTH);
            let waited = connected.elapsed();
            match sent.and_then(|()| raw::read_reply(&mut newcomer, "GET")) {
                Ok(reply) => assert_eq!(reply.status, 200),
                // The service waits for a second.
                Err(error) => assert!(waited > Duration::from_millis(900), "{error} after {waited:?}"),
            }
            served += u32::from(waited <= Duration::from_millis(900));
        }
        assert!(served > 0, "this machine needs almost a second to connect six times");
    }
}

/// If no connection is idle, a newcomer gets an answer instead of waiting.
#[test]
fn at_the_limit_of_busy_connections_a_new_one_is_answered_503() {
    let api = ResourceApi::start();
    api.fault("/login", Fault::Hang, None);
    for unix in [false, true] {
        // Requests for all handlers and all places in their queue.
        let builder = Service::builder().api(&api).env("MAX_CONNECTIONS", "20").env("HANDLER_THREADS", "4");
        let builder = builder.timeout(Duration::from_secs(10));
        let service = if unix { builder.unix().start() } else { builder.start() };
        let body = r#"{"email":"a","password":"b"}"#;
        let login = format!(
            "POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let busy: Vec<_> = (0..20)
            .map(|_| {
                let mut stream = service.connect();
                stream.write_all(login.as_bytes()).unwrap();
                stream
            })
            .collect();
        let ask = || {
            let mut reader = BufReader::new(service.connect());
            let _ = reader.get_mut().write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            raw::read_reply(&mut reader, "GET").unwrap()
        };
        eventually(SLACK, "a newcomer is refused", || ask().status == 503);
        let reply = ask();
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert!(reply.header("retry-after").is_some() && reply.detail().contains(' '), "{}", reply.text());
        drop(busy);
        api.cut();
        eventually(SLACK, "there is room again", || ask().status == 200);
    }
}
