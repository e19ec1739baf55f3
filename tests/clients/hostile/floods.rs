//! Attacks that silenced an earlier version of the service, or cost it memory, threads and descriptors.

use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use super::scene::{Scene, duration, repeat};
use crate::world::process::write_program;
use crate::world::raw::Stream;
use crate::world::resource_api::{Fault, ResourceApi};
use crate::world::service::Service;
use crate::world::tcp::reset_on_close;
use crate::world::{eventually, loader_binary};

/// A connection, if there is room for it.
fn connect(service: &Service) -> Option<Stream> {
    let stream = Stream::connect(service.address()).ok()?;
    stream.set_timeout(Duration::from_secs(1)).ok()?;
    Some(stream)
}

/// Makes closing a TCP connection a reset.
fn reset(stream: &Stream) {
    if let Stream::Tcp(stream) = stream {
        reset_on_close(stream);
    }
}

/// Sends on one connection until the service ends it or the time is over.
fn without_end(service: &Service, beginning: &str, more: &str) {
    let Some(mut stream) = connect(service) else { return };
    let until = Instant::now() + duration();
    if stream.write_all(beginning.as_bytes()).is_ok() {
        while Instant::now() < until && stream.write_all(more.as_bytes()).is_ok() {}
    }
}

/// `tiny_http` kept a thread and two descriptors for each of these for ever.
#[test]
fn requests_of_another_http_version_leave_nothing() {
    for scene in Scene::both(|builder| builder) {
        scene.withstands("another version", |service| {
            repeat(4, |client| {
                let Some(mut stream) = connect(service) else { return };
                let request = ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET / HTTP/9.9\r\nHost: x\r\n\r\n"][client % 2];
                let _ = stream.write_all(request.as_bytes());
                let _ = stream.read_to_end(&mut Vec::new());
                thread::sleep(Duration::from_millis(5));
            });
        });
    }
}

/// `tiny_http` read the rest of such a body in the accept loop, without a time limit.
#[test]
fn small_bodies_that_trickle_after_an_expectation_silence_nobody() {
    for scene in Scene::both(|builder| builder) {
        scene.withstands("trickling bodies after Expect", |service| {
            repeat(40, |_| {
                let Some(mut stream) = connect(service) else { return };
                let head = "POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n\r\n";
                let until = Instant::now() + duration();
                if stream.write_all(head.as_bytes()).is_ok() {
                    while Instant::now() < until && stream.write_all(b"x").is_ok() {
                        thread::sleep(Duration::from_millis(20));
                    }
                }
            });
        });
    }
}

/// `tiny_http` collected a chunk-size line without a limit: 243 MiB in 4 s, from a client without a token.
#[test]
fn lines_without_end_cost_little_memory() {
    let zeros = "0".repeat(64 * 1024);
    let fields = "a: b\r\n".repeat(10_000);
    let empty = "\r\n".repeat(30_000);
    let ask = |more: &str| {
        format!(
            "POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n{more}"
        )
    };
    let endless = [
        (ask("\r\n"), &zeros),
        (ask("\r\n1;a="), &zeros),
        (ask("\r\n1\r\n{\r\n0\r\n"), &fields),
        (ask("\r\n1\r\n{\r\n0\r\nA: "), &zeros),
        (ask(""), &fields),
        (ask("A: "), &zeros),
        ("GET /health?".to_owned(), &zeros),
        (String::new(), &zeros),
        (String::new(), &empty),
        // Its head is refused, and its body never ends.
        (ask("Content-Type: text/plain\r\n\r\nffffffff\r\n").replacen("application/json", "text/plain", 1), &zeros),
    ];
    for scene in Scene::both(|builder| builder.env("CLIENT_TOKEN", "open-sesame")) {
        scene.withstands("lines without end, no token", |service| {
            repeat(endless.len() * 2, |client| {
                let (beginning, more) = &endless[client % endless.len()];
                without_end(service, beginning, more);
            });
        });
    }
    for scene in Scene::both(|builder| builder) {
        scene.withstands("lines without end", |service| {
            repeat(endless.len() * 2, |client| {
                let (beginning, more) = &endless[client % endless.len()];
                without_end(service, beginning, more);
            });
        });
    }
}

/// While a handler was busy with a request, the accept loop waited for it to write the answer to the next request on that
/// connection.
#[test]
fn pipelined_requests_of_clients_that_have_gone_silence_nobody() {
    let api = ResourceApi::start();
    api.fault("/login", Fault::Hang, None);
    let body = r#"{"email":"a","password":"b"}"#;
    let length = body.len();
    let login = format!(
        "POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    let health = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    for scene in Scene::both(|builder| builder.api(&api)) {
        scene.withstands("pipelining after a hung login", |service| {
            let mut open = Vec::new();
            repeat(1, |_| {
                for requests in [format!("{login}{health}"), format!("{health}{login}{}", health.repeat(20))] {
                    let Some(mut stream) = connect(service) else { continue };
                    let _ = stream.write_all(requests.as_bytes());
                    thread::sleep(Duration::from_millis(20));
                    reset(&stream);
                }
                thread::sleep(Duration::from_millis(20));
            });
            // Some connections stay open until others have been served.
            for _ in 0..8 {
                if let Some(mut stream) = connect(service) {
                    let _ = stream.write_all(format!("{login}{health}{health}").as_bytes());
                    open.push(stream);
                }
            }
            thread::sleep(duration());
            drop(open);
            // The handlers need not wait for an API that hangs.
            api.cut();
        });
    }
}

/// Connections without a peer address were not counted, and the accepting thread died: 24 s without an answer.
#[test]
fn two_kinds_of_flood_at_1024_descriptors_silence_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let limited = directory.path().join("loader-1024");
    let script = format!("#!/bin/sh\nulimit -n 1024\nexec {} \"$@\"\n", loader_binary().display());
    write_program(&limited, &script);
    for scene in Scene::both(|builder| builder.binary(&limited)) {
        scene.withstands("resets and unfinished heads", |service| {
            let held = std::sync::Mutex::new(std::collections::VecDeque::new());
            repeat(4, |client| {
                let Some(mut stream) = connect(service) else { return };
                let _ = stream.write_all(if client % 2 == 0 {
                    b"GET /hea"
                } else {
                    b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
                });
                reset(&stream);
                if client < 2 {
                    let mut held = held.lock().unwrap();
                    held.push_back(stream);
                    // Keeps more connections than there are descriptors.
                    if held.len() > 1100 {
                        held.pop_front();
                    }
                }
            });
        });
        eventually(Duration::from_secs(10), "it still serves", || scene.service.get("/health").status == 200);
    }
}

/// The accept loop writes such answers itself, as far as the socket takes them.
#[test]
fn clients_that_pipeline_without_reading_silence_nobody() {
    let requests = "GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(500);
    for scene in Scene::both(|builder| builder.env("CLIENT_STALL_SECONDS", "2")) {
        scene.withstands("pipelining without reading", |service| {
            repeat(20, |_| without_end(service, "", &requests));
        });
    }
}

#[test]
fn a_thousand_heads_that_trickle_silence_nobody() {
    for scene in Scene::both(|builder| builder) {
        scene.withstands("trickling heads", |service| {
            let mut open: Vec<_> = (0..1000).filter_map(|_| connect(service)).collect();
            for stream in &mut open {
                let _ = stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nA: ");
            }
            let until = Instant::now() + duration();
            while Instant::now() < until {
                for stream in &mut open {
                    let _ = stream.write_all(b"x");
                }
                thread::sleep(Duration::from_millis(100));
            }
        });
    }
}

/// Each of them is refused, logged and counted.
#[test]
fn nonsense_at_full_speed_silences_nobody() {
    for scene in Scene::both(|builder| builder) {
        scene.withstands("nonsense", |service| {
            repeat(4, |client| {
                let Some(mut stream) = connect(service) else { return };
                let nonsense = [
                    "\0\0\0\0\r\n\r\n",
                    "GET /health HTTP/1.1\r\n\r\n",
                    "\x16\x03\x01\x02\0\x01",
                    "GET / HTTP/1.1\r\n \r\n\r\n",
                ];
                let _ = stream.write_all(nonsense[client % 4].as_bytes());
                if client < 2 {
                    let _ = stream.read_to_end(&mut Vec::new());
                }
            });
        });
    }
}
