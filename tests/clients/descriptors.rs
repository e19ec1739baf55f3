//! Many connections, and connections that are reset: descriptors and threads are not used up, and come back.

use std::io::{BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::pieces::{FILE, SLACK, UPLOAD, load_head, settles, with_limit};
use crate::world::process::write_program;
use crate::world::raw::{self, Stream};
use crate::world::resource_api;
use crate::world::service::Service;
use crate::world::tcp::{connect_from, free_port, reset_on_close};
use crate::world::{World, eventually, loader_binary, pattern};

/// In KiB, as the kernel counts.
const MIB: u64 = 1024;

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
    // `descriptors` may include a connection of the start that has been closed since.
    eventually(Duration::from_secs(60), "all are held", || service.descriptors() >= descriptors + 995);
    service.is_prompt();
    assert!(service.threads() <= threads, "{} threads, {threads} before", service.threads());
    let grown = service.vm_rss_kib().saturating_sub(rss);
    eprintln!("1,000 connections cost {grown} KiB");
    assert!(grown < 4 * MIB, "{grown} KiB");
    drop(open);
    settles(&service, descriptors, threads);
}

/// A script that starts the loader with this limit of descriptors.
fn limited(directory: &TempDir, descriptors: usize) -> PathBuf {
    let limited = directory.path().join(format!("loader-{descriptors}"));
    let script = format!("#!/bin/sh\nulimit -n {descriptors}\nexec {} \"$@\"\n", loader_binary().display());
    write_program(&limited, &script);
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
            // While these connections stay open.
            let started = Instant::now();
            eventually(Duration::from_secs(9), "somebody else gets an answer", || {
                world.service.call("GET", "/health", &[], b"").is_ok_and(|reply| reply.status == 200)
            });
            took.push(started.elapsed());
            drop(open);
            eventually(SLACK, "descriptors return", || world.service.descriptors() <= descriptors + 4);
            // The process has not been restarted: it is still logged in.
            assert!(world.service.is_running());
            world.loads("m.bin", b"model");
        }
        took.sort();
        eprintln!("with {limit} descriptors an answer after {took:?}");
        assert!(took[took.len() / 2] < Duration::from_secs(1), "{took:?}");
        assert!(*took.last().unwrap() < Duration::from_secs(1) + SLACK, "{took:?}");
    }
}

/// With all descriptors taken, with all but one, and with more connections than descriptors.
#[test]
fn somebody_is_served_while_every_descriptor_is_taken() {
    let directory = tempfile::tempdir().unwrap();
    let limit = 64;
    let service = Service::builder().binary(limited(&directory, limit)).timeout(Duration::from_secs(10)).start();
    // Until the connections of the start are closed.
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

/// Ports are reused quickly on the loopback interface. Work for a client that has gone must not affect
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
    assert!(first < Duration::from_secs(1), "it waited {first:?} for the request of another connection");
    // The answer to the client that left cannot be sent. That ends its connection, not this one.
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
