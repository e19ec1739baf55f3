//! The start, and `/health`: alone, and while four loads run.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::commands;
use crate::figure::{Better, Figure, Goal};
use crate::plan::Plan;
use crate::report::Report;
use crate::start::Started;
use crate::world::peer::Peer;
use crate::world::resource_api::ResourceApi;
use crate::world::s3::{Keys, S3};

/// Connections that ask at once.
const CONNECTIONS: usize = 4;

/// Measures both.
pub fn measure(plan: &Plan, python: bool, report: &mut Report) {
    report.says("start and /health");
    let api = ResourceApi::start();
    // The peer needs a CDN configuration for its login, but does not use it.
    let nowhere = S3::at("http://127.0.0.1:9", Keys::new("a", "b"), Keys::new("c", "d"));
    let with_wrk = commands::is_there("wrk", "-v");
    if !with_wrk {
        report.leave_out("/health requests: wrk is not installed");
    }
    let mut start = Figure::new("start to the first /health", "ms", Better::Low).goal(Goal::AtMost(10.0));
    let mut rate = Figure::new("/health requests a second", "1/s", Better::High).goal(Goal::TimesPeer(20.0));
    let mut worst = Figure::new("/health p99", "ms", Better::Low);
    let ask = |address: &str, rate: &mut Vec<f64>, worst: &mut Vec<f64>| {
        if with_wrk {
            let asked = wrk(address, plan.health);
            rate.push(asked.requests_a_second);
            worst.push(asked.p99);
        }
    };
    for _ in 0..plan.rounds {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let loader = Started::in_dir(dir.path(), &[]);
        start.loader.push(loader.until("/health"));
        ask(loader.address(), &mut rate.loader, &mut worst.loader);
        drop(loader);
        if python {
            let peer = Peer::start(&api, &nowhere, &[]);
            start.peer.push(peer.started_in().as_secs_f64() * 1000.0);
            ask(peer.address(), &mut rate.peer, &mut worst.peer);
        }
    }
    report.add(start);
    if with_wrk {
        report.add(rate);
        report.add(worst);
    }
}

/// `/health` while so many threads do `load` again and again.
pub fn under_loads(threads: usize, address: &str, load: impl Fn() + Sync) -> Option<Figure> {
    if !commands::is_there("wrk", "-v") {
        return None;
    }
    let mut figure = Figure::new("/health p99 under four warm loads", "ms", Better::Low).goal(Goal::AtMost(10.0));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    load();
                }
            });
        }
        thread::sleep(Duration::from_millis(300));
        for _ in 0..5 {
            figure.loader.push(wrk(address, Duration::from_secs(2)).p99);
        }
        done.store(true, Ordering::Relaxed);
    });
    Some(figure)
}

struct Asked {
    requests_a_second: f64,
    /// In milliseconds.
    p99: f64,
}

fn wrk(address: &str, duration: Duration) -> Asked {
    let output = Command::new("wrk")
        .args(["--latency", "-t1", &format!("-c{CONNECTIONS}"), &format!("-d{}s", duration.as_secs())])
        .arg(format!("http://{address}/health"))
        .stdin(Stdio::null())
        .output()
        .expect("wrk is there");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let after = |label: &str| {
        let line = said.lines().find_map(|line| line.trim().strip_prefix(label));
        line.unwrap_or_else(|| panic!("wrk does not tell {label}: {said}")).trim().to_owned()
    };
    assert!(!said.contains("Non-2xx"), "{said}");
    Asked { requests_a_second: after("Requests/sec:").parse().expect("a number"), p99: milliseconds(&after("99%")) }
}

/// `12.34us`, `1.20ms` or `3.00s`.
fn milliseconds(text: &str) -> f64 {
    let (number, factor) = text
        .strip_suffix("us")
        .map(|number| (number, 0.001))
        .or_else(|| text.strip_suffix("ms").map(|number| (number, 1.0)))
        .or_else(|| text.strip_suffix('s').map(|number| (number, 1000.0)))
        .unwrap_or_else(|| panic!("no time: {text}"));
    number.parse::<f64>().expect("a number") * factor
}
