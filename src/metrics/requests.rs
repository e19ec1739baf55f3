//! Requests by endpoint: how many with which status, and how long they took.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Text, microseconds};

/// Every status that the service answers; the last place counts what should not be there.
const STATUSES: [u16; 21] =
    [200, 204, 206, 304, 400, 401, 403, 404, 405, 408, 413, 414, 416, 417, 422, 431, 500, 501, 503, 505, 0];

/// Upper bounds of the histogram's buckets in microseconds: an answer from memory, a call, a transfer, a long one.
const BUCKETS: [(&str, u64); 6] =
    [("0.001", 1_000), ("0.01", 10_000), ("0.1", 100_000), ("1", 1_000_000), ("10", 10_000_000), ("100", 100_000_000)];

/// More than there are endpoints.
const PLACES: usize = 24;

struct Endpoint {
    /// Set by the first request.
    name: OnceLock<&'static str>,
    statuses: [AtomicU64; STATUSES.len()],
    /// Not cumulative; the last is beyond all bounds.
    buckets: [AtomicU64; BUCKETS.len() + 1],
    microseconds: AtomicU64,
}

static ENDPOINTS: [Endpoint; PLACES] = [const {
    Endpoint {
        name: OnceLock::new(),
        statuses: [const { AtomicU64::new(0) }; STATUSES.len()],
        buckets: [const { AtomicU64::new(0) }; BUCKETS.len() + 1],
        microseconds: AtomicU64::new(0),
    }
}; PLACES];

/// A request to `endpoint`, the pattern of its path, has been answered.
pub fn request(endpoint: &'static str, status: u16, time: Duration) {
    let mine = |place: &&Endpoint| *place.name.get_or_init(|| endpoint) == endpoint;
    let Some(place) = ENDPOINTS.iter().find(mine) else { return };
    let known = STATUSES.iter().position(|known| *known == status).unwrap_or(STATUSES.len() - 1);
    let time = microseconds(time);
    let bucket = BUCKETS.iter().position(|(_, bound)| time <= *bound).unwrap_or(BUCKETS.len());
    place.statuses[known].fetch_add(1, Ordering::Relaxed);
    place.buckets[bucket].fetch_add(1, Ordering::Relaxed);
    place.microseconds.fetch_add(time, Ordering::Relaxed);
}

fn used() -> impl Iterator<Item = (&'static str, &'static Endpoint)> {
    ENDPOINTS.iter().map_while(|place| Some((*place.name.get()?, place)))
}

pub(super) fn write(text: &mut Text) {
    text.family("loader_http_requests_total", "counter", "Requests answered, by endpoint and status.");
    for (endpoint, place) in used() {
        for (status, count) in STATUSES.iter().zip(&place.statuses) {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                text.sample("", &[("endpoint", endpoint), ("status", &status.to_string())], count);
            }
        }
    }
    text.family(
        "loader_http_request_duration_seconds",
        "histogram",
        "Seconds from a request to the end of its answer.",
    );
    for (endpoint, place) in used() {
        let mut count = 0;
        let bounds = BUCKETS.iter().map(|(bound, _)| *bound).chain(["+Inf"]);
        for (bound, bucket) in bounds.zip(&place.buckets) {
            count += bucket.load(Ordering::Relaxed);
            text.sample("_bucket", &[("endpoint", endpoint), ("le", bound)], count);
        }
        let sum = Duration::from_micros(place.microseconds.load(Ordering::Relaxed)).as_secs_f64();
        text.sample("_sum", &[("endpoint", endpoint)], sum);
        text.sample("_count", &[("endpoint", endpoint)], count);
    }
}
