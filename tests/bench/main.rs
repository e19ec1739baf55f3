//! `cargo bench`: the release-built loader, the service that it replaces, and the limits of the machine (`openssl`, `curl`,
//! `docker load`), measured in turns in one run against a real SeaweedFS and a real Docker engine.
//!
//! It prints its tables, and writes `bench.json`, `bench.md` and `bench.svg` into Cargo's target directory.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../world/mod.rs"]
mod world;

mod alternatives;
mod chart;
mod commands;
mod connections;
mod far;
mod figure;
mod health;
mod http;
mod keep;
mod link;
mod mount;
mod plan;
mod report;
mod start;
mod table;
mod transfers;
mod tunnel;
mod unlock;

use std::process::ExitCode;
use std::time::Instant;

use plan::Plan;
use report::Report;
use world::peer;

fn main() -> ExitCode {
    let plan = match Plan::of_arguments(std::env::args().skip(1)) {
        Ok(plan) => plan,
        Err(usage) => {
            eprint!("{usage}");
            return ExitCode::from(2);
        }
    };
    let started = Instant::now();
    let mut report = Report::new(&plan);
    let python = match peer::why_missing() {
        Some(why) => {
            report.leave_out(&format!("all of the peer: {why}"));
            false
        }
        None => true,
    };
    if plan.includes("health") {
        health::measure(&plan, python, &mut report);
    }
    if plan.includes_any(&["transfers", "far", "mount", "keep", "alternatives"]) {
        match world::weed::Weed::start() {
            Ok(weed) => {
                if plan.includes("transfers") {
                    transfers::measure(&plan, &weed, python, &mut report);
                }
                if plan.includes("far") {
                    far::measure(&plan, &weed, &mut report);
                }
                if plan.includes("mount") {
                    mount::measure(&plan, &weed, &mut report);
                }
                if plan.includes("keep") {
                    keep::measure(&plan, &weed, &mut report);
                }
                if plan.includes("alternatives") {
                    alternatives::measure(&plan, &weed, &mut report);
                }
            }
            Err(why) => report.leave_out(&format!("loads and uploads: {why}")),
        }
    }
    if plan.includes("connections") {
        connections::measure(&plan, &mut report);
    }
    if plan.includes("unlock") {
        unlock::measure(&plan, python, &mut report);
    }
    report.finish(started.elapsed(), plan.record);
    ExitCode::SUCCESS
}
