//! Idle connections: the service's memory, and `/health` meanwhile.

use std::io::{BufReader, Write};
use std::thread;
use std::time::{Duration, Instant};

use crate::figure::median;
use crate::plan::Plan;
use crate::report::Report;
use crate::table::number;
use crate::world::process::raise_descriptor_limit;
use crate::world::raw::{Stream, exchange, read_reply};
use crate::world::service::Service;

const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// A request on a connection of its own, as a monitor sends it.
const HEALTH_ONCE: &[u8] = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// The number of requests for `/health`.
const ASKED: usize = 1_000;

/// Descriptors for everything but the idle connections, here and in the service.
const OTHERS: usize = 300;

/// `MAX_CONNECTIONS` unless it is set.
const DEFAULT_LIMIT: usize = 1_024;

/// Measures each number of connections with a service that may keep them all, and the largest with the default limit as well.
pub fn measure(plan: &Plan, report: &mut Report) {
    report.says("idle connections");
    let descriptors = raise_descriptor_limit();
    let head = ["opened", "`MAX_CONNECTIONS`", "still open", "memory", "/health, median", "/health, p99"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let most = plan.connections.iter().copied().max().unwrap_or_default();
    let with_room = plan.connections.iter().map(|wanted| (*wanted, most + OTHERS / 3));
    for (wanted, limit) in with_room.chain([(most, DEFAULT_LIMIT)]) {
        if wanted + OTHERS > descriptors {
            let only = format!("only {descriptors} descriptors are allowed (ulimit -Hn)");
            report.leave_out(&format!("{wanted} idle connections: {only}"));
            continue;
        }
        rows.push(row(wanted, limit));
    }
    let note = format!(
        "Each connection has had an answer before it was idle; memory is resident (`VmRSS`), and {ASKED} requests follow one \
         another, each on a connection of its own."
    );
    report.add_table("connections", rows, note);
}

fn row(wanted: usize, limit: usize) -> Vec<String> {
    // So long that no idle connection is closed.
    let builder = Service::builder().env("MAX_CONNECTIONS", limit.to_string()).env("CLIENT_STALL_SECONDS", "600");
    let service = builder.start();
    service.get("/health");
    // The connection of that request may be about to close.
    thread::sleep(Duration::from_millis(300));
    let before = service.descriptors();
    let idle: Vec<_> = (0..wanted)
        .map(|number| {
            let stream = Stream::connect(service.address()).unwrap_or_else(|error| panic!("{number}: {error}"));
            let mut reader = BufReader::with_capacity(1024, stream);
            reader.get_mut().write_all(HEALTH).expect("the service takes a request");
            assert_eq!(read_reply(&mut reader, "GET").expect("an answer").status, 200);
            reader
        })
        .collect();
    // All have been answered, so all have been accepted.
    let (open, memory) = (service.descriptors().saturating_sub(before), service.vm_rss_kib());
    let took: Vec<f64> = (0..ASKED)
        .map(|_| {
            let started = Instant::now();
            let stream = Stream::connect(service.address()).expect("a connection");
            assert!(exchange(stream, HEALTH_ONCE).starts_with(b"HTTP/1.1 200"), "/health does not answer");
            started.elapsed().as_secs_f64() * 1000.0
        })
        .collect();
    drop(idle);
    let mut sorted = took.clone();
    sorted.sort_by(f64::total_cmp);
    vec![
        wanted.to_string(),
        limit.to_string(),
        open.to_string(),
        number(memory as f64 / 1024.0, "MiB"),
        number(median(&took).expect("requests were made"), "ms"),
        number(sorted[ASKED * 99 / 100], "ms"),
    ]
}
