//! Requests by endpoint: how many with which status, and how long they took.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::text::Text;

/// The name for requests that reach no endpoint.
pub const NO_ENDPOINT: &str = "other";

/// More than there are endpoints.
pub const ENDPOINTS: usize = 24;

/// Each status has its own place. The unused pages of the table take no memory.
const STATUSES: usize = 600;

/// The upper bounds of the histogram's buckets, in seconds and in microseconds.
const BUCKETS: [(&str, u64); 6] =
    [("0.001", 1_000), ("0.01", 10_000), ("0.1", 100_000), ("1", 1_000_000), ("10", 10_000_000), ("100", 100_000_000)];

struct Endpoint {
    statuses: [AtomicU64; STATUSES],
    /// Not cumulative. The last is for times beyond all bounds.
    buckets: [AtomicU64; BUCKETS.len() + 1],
    microseconds: AtomicU64,
}

/// Each is set by the first request.
static NAMES: [OnceLock<&'static str>; ENDPOINTS] = [const { OnceLock::new() }; ENDPOINTS];

/// Nothing but zeros, so that it takes no room in the program's file.
static COUNTS: [Endpoint; ENDPOINTS] = [const {
    Endpoint {
        statuses: [const { AtomicU64::new(0) }; STATUSES],
        buckets: [const { AtomicU64::new(0) }; BUCKETS.len() + 1],
        microseconds: AtomicU64::new(0),
    }
}; ENDPOINTS];

/// Counts an answer. `endpoint` is the pattern of the route, or [`NO_ENDPOINT`].
pub fn request(endpoint: &'static str, status: u16, time: Duration) {
    let Some(place) = NAMES.iter().position(|name| *name.get_or_init(|| endpoint) == endpoint) else { return };
    let counts = &COUNTS[place];
    let time = microseconds(time);
    let bucket = BUCKETS.iter().position(|(_, bound)| time <= *bound).unwrap_or(BUCKETS.len());
    counts.statuses[usize::from(status)].fetch_add(1, Ordering::Relaxed);
    counts.buckets[bucket].fetch_add(1, Ordering::Relaxed);
    counts.microseconds.fetch_add(time, Ordering::Relaxed);
}

pub(super) fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn used() -> impl Iterator<Item = (&'static str, &'static Endpoint)> {
    NAMES.iter().zip(&COUNTS).map_while(|(name, counts)| Some((*name.get()?, counts)))
}

pub(super) fn write(text: &mut Text) {
    text.family("loader_http_requests_total", "counter", "Requests answered, by endpoint and status.");
    for (endpoint, counts) in used() {
        for (status, count) in counts.statuses.iter().enumerate() {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                text.sample("", &[("endpoint", endpoint), ("status", &status.to_string())], count);
            }
        }
    }
    text.family(
        "loader_http_request_duration_seconds",
        "histogram",
        "Seconds from the request head to the end of the answer.",
    );
    for (endpoint, counts) in used() {
        let mut count = 0;
        let bounds = BUCKETS.iter().map(|(bound, _)| *bound).chain(["+Inf"]);
        for (bound, bucket) in bounds.zip(&counts.buckets) {
            count += bucket.load(Ordering::Relaxed);
            text.sample("_bucket", &[("endpoint", endpoint), ("le", bound)], count);
        }
        let sum = Duration::from_micros(counts.microseconds.load(Ordering::Relaxed)).as_secs_f64();
        text.sample("_sum", &[("endpoint", endpoint)], sum);
        text.sample("_count", &[("endpoint", endpoint)], count);
    }
}
