//! The cold load from a CDN that is far away.

use std::fs;
use std::time::Duration;

use crate::commands;
use crate::figure::{Better, Figure, Goal, median};
use crate::http;
use crate::link::{Link, Properties};
use crate::plan::{Plan, size};
use crate::report::Report;
use crate::world::PatternReader;
use crate::world::resource_api::ResourceApi;
use crate::world::service::Service;
use crate::world::weed::Weed;

const NAME: &str = "far.bin";

/// A good line to another country: 800 Mbit/s, of which a window of 1 MiB gives one connection a fifth.
const LINK: Properties =
    Properties { round_trip: Duration::from_millis(50), bandwidth: 100.0 * 1024.0 * 1024.0, window: 1 << 20 };

/// In how many ranges `curl` is tried.
const RANGES: [u64; 4] = [1, 4, 8, 16];

/// Measures it.
pub fn measure(plan: &Plan, weed: &Weed, report: &mut Report) {
    report.says("cold load over a far link");
    let link = Link::to(weed.s3.host_port(), LINK);
    let bucket = weed.s3.new_bucket("bench");
    let api = ResourceApi::start();
    // The upload goes the short way.
    api.put_file("", "cdn.yaml", weed.s3.cdn_yaml());
    let near = Service::builder().api(&api).timeout(Duration::from_secs(600)).start();
    assert_eq!(near.login().status, 200);
    let reply = near.upload_reader(&bucket, NAME, plan.far, PatternReader::new(plan.far, 7));
    assert_eq!(reply.status, 200, "{}", reply.text());
    drop(near);

    api.put_file("", "cdn.yaml", weed.s3.cdn_yaml_at(&link.url()));
    let mut loads = Vec::new();
    let mut curls = vec![Vec::new(); RANGES.len()];
    let key = format!("{NAME}.big");
    for _ in 0..plan.rounds.min(3) {
        // Every load is the first of a process: no connection is open yet, as for curl.
        let far = Service::builder().api(&api).timeout(Duration::from_secs(600)).start();
        assert_eq!(far.login().status, 200);
        loads.push(http::load(far.address(), &bucket, NAME, plan.far).total);
        let length = fs::metadata(far.cache_file(&bucket, NAME)).map_or(plan.far - 4096, |file| file.len());
        drop(far);
        let address = weed.presigned_get(&link.url(), &bucket, &key);
        for (index, ranges) in RANGES.iter().enumerate() {
            let ranges: Vec<String> = (0..*ranges)
                .map(|range| format!("{}-{}", length * range / ranges, length * (range + 1) / ranges - 1))
                .collect();
            let all: Vec<Vec<&str>> = ranges.iter().map(|range| vec!["-r", range, address.as_str()]).collect();
            let (seconds, bytes) = commands::curls(&all);
            assert_eq!(bytes, length, "curl got other bytes");
            curls[index].push(seconds);
        }
    }
    let best = |of: &[Vec<f64>]| {
        let medians = of.iter().map(|seconds| median(seconds).unwrap_or(f64::INFINITY)).enumerate();
        medians.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(index, _)| index)
    };
    let best = best(&curls);
    let name = format!("cold load at 50 ms round trip, {}", size(plan.far));
    let mut figure = Figure::new(name, "s", Better::Low)
        .limited_by(format!("curl in {} ranges at once, the best of {RANGES:?}", RANGES[best]))
        .goal(Goal::TimesLimit(1.0 / 1.3));
    figure.loader = loads;
    figure.limit.clone_from(&curls[best]);
    report.add(figure);
    weed.delete_bucket(&bucket);
}
