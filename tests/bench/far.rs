//! Cold loads from a CDN that is far away: over a link that loses nothing, and over one that loses packets.

use std::fs;
use std::time::Duration;

use crate::commands;
use crate::figure::{Better, Figure, Goal, median};
use crate::http;
use crate::link::{self, Link};
use crate::plan::{Plan, size};
use crate::report::Report;
use crate::tunnel::{self, Tunnel};
use crate::world::PatternReader;
use crate::world::resource_api::ResourceApi;
use crate::world::service::Service;
use crate::world::weed::Weed;

const NAME: &str = "far.bin";

const ROUND_TRIP: Duration = Duration::from_millis(50);

/// A good line to another country: 800 Mbit/s. A window of 1 MiB limits one connection to a fifth of it.
const GOOD: link::Properties =
    link::Properties { round_trip: ROUND_TRIP, bandwidth: 100.0 * 1024.0 * 1024.0, window: 1 << 20 };

/// A bad line without a set bandwidth: the loss limits each connection to some hundred kilobytes a second.
const LOSSY: tunnel::Properties = tunnel::Properties { round_trip: ROUND_TRIP, loss: 0.01 };

/// In how many ranges `curl` is tried.
const RANGES: [u64; 4] = [1, 4, 8, 16];

/// The same over the bad line, where more connections are always faster.
const LOSSY_RANGES: [u64; 1] = [16];

/// Measures both.
pub fn measure(plan: &Plan, weed: &Weed, report: &mut Report) {
    let rounds = plan.rounds.min(3);
    report.says("cold load over a far link");
    let link = Link::to(weed.s3.host_port(), GOOD);
    let name = format!("cold load at 50 ms round trip, {}", size(plan.far));
    let figure = Figure::new(name, "s", Better::Low).goal(Goal::TimesLimit(1.0 / 1.3));
    report.add(Scene { weed, url: link.url(), bytes: plan.far, ranges: &RANGES, rounds }.loads(figure));

    report.says("cold load over a far link that loses packets");
    match Tunnel::to(weed.s3.host_port(), LOSSY) {
        Ok(tunnel) => {
            let name = format!("cold load at 50 ms round trip and 1 % loss, {}", size(plan.lossy));
            let figure = Figure::new(name, "s", Better::Low);
            // Each round has thousands of packets, so two rounds are enough.
            let rounds = plan.rounds.min(2);
            let scene = Scene { weed, url: tunnel.url(), bytes: plan.lossy, ranges: &LOSSY_RANGES, rounds };
            report.add(scene.loads(figure));
            println!("  {:.2} % of the packets were lost", tunnel.loss() * 100.0);
        }
        Err(why) => report.leave_out(&format!("cold load with loss: {why}")),
    }
}

/// A file in the store, and a link to it.
struct Scene<'a> {
    weed: &'a Weed,
    /// The far end of the link.
    url: String,
    bytes: u64,
    ranges: &'a [u64],
    rounds: usize,
}

impl Scene<'_> {
    /// Adds the times of the loader, and of `curl` with the number of ranges that is fastest on this link.
    fn loads(self, figure: Figure) -> Figure {
        let bucket = self.weed.s3.new_bucket("bench");
        let api = ResourceApi::start();
        // The upload does not use the link.
        api.put_file("", "cdn.yaml", self.weed.s3.cdn_yaml());
        let near = Service::builder().api(&api).timeout(Duration::from_secs(600)).start();
        assert_eq!(near.login().status, 200);
        let reply = near.upload_reader(&bucket, NAME, self.bytes, PatternReader::new(self.bytes, 7));
        assert_eq!(reply.status, 200, "{}", reply.text());
        drop(near);

        api.put_file("", "cdn.yaml", self.weed.s3.cdn_yaml_at(&self.url));
        let mut loads = Vec::new();
        let mut curls = vec![Vec::new(); self.ranges.len()];
        let address = self.weed.presigned_get(&self.url, &bucket, &format!("{NAME}.big"));
        for _ in 0..self.rounds {
            // Every load is the first of a process: no connection is open yet, as for curl.
            let far = Service::builder().api(&api).timeout(Duration::from_secs(600)).start();
            assert_eq!(far.login().status, 200);
            loads.push(http::load(far.address(), &bucket, NAME, self.bytes).total);
            let length = fs::metadata(far.cache_file(&bucket, NAME)).map_or(self.bytes - 4096, |file| file.len());
            drop(far);
            for (index, ranges) in self.ranges.iter().enumerate() {
                curls[index].push(curl_in_ranges(&address, length, *ranges));
            }
        }
        self.weed.delete_bucket(&bucket);

        let medians = curls.iter().map(|seconds| median(seconds).unwrap_or(f64::INFINITY)).enumerate();
        let best = medians.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(index, _)| index);
        let tried = if curls.len() > 1 { format!(", the best of {:?}", self.ranges) } else { String::new() };
        let limit_is = format!("curl in {} ranges at once{tried}", self.ranges[best]);
        Figure { loader: loads, limit: curls.swap_remove(best), ..figure.limited_by(limit_is) }
    }
}

/// Seconds that as many `curl`s as there are ranges need for an object of this length.
fn curl_in_ranges(address: &str, length: u64, ranges: u64) -> f64 {
    let ranges: Vec<String> =
        (0..ranges).map(|range| format!("{}-{}", length * range / ranges, length * (range + 1) / ranges - 1)).collect();
    let all: Vec<Vec<&str>> = ranges.iter().map(|range| vec!["-r", range, address]).collect();
    let (seconds, bytes) = commands::curls(&all);
    assert_eq!(bytes, length, "curl got other bytes");
    seconds
}
