//! The metrics for Prometheus. Counting takes a few atomic operations and never waits.
//!
//! A new counter or gauge is one row of the table.

mod requests;
mod text;
mod transfer;

use std::fs;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use self::requests::microseconds;

pub use self::requests::{ENDPOINTS, NO_ENDPOINT, request};
pub use self::text::Text;
pub use self::transfer::{REPORT_EVERY, Transfer, report_transfer};

/// The stages through which bytes pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// An upload, from its client.
    Receive,
    /// A model, to its client.
    Send,
    /// A call to the Resource API: its request and its response.
    Api,
    /// A big part, from the CDN.
    Download,
    /// A big part, to the CDN.
    Publish,
    /// The archive, to `docker load`.
    Unlock,
}

impl Stage {
    const ALL: [Self; 6] = [Self::Receive, Self::Send, Self::Api, Self::Download, Self::Publish, Self::Unlock];

    /// The name in labels and log lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Receive => "receive",
            Self::Send => "send",
            Self::Api => "api",
            Self::Download => "download",
            Self::Publish => "publish",
            Self::Unlock => "unlock",
        }
    }
}

/// A counter, or a gauge that can also go down.
#[derive(Debug)]
pub struct Count(AtomicU64);

impl Count {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One less, of a gauge.
    pub fn remove(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// So many, of a gauge.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// How many.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts one more until the guard is dropped, even by a panic.
    pub fn during(&'static self) -> During {
        self.add();
        During(self)
    }
}

/// See [`Count::during`].
#[derive(Debug)]
pub struct During(&'static Count);

impl Drop for During {
    fn drop(&mut self) {
        self.0.remove();
    }
}

/// Makes the counts and the function that writes them from one table.
macro_rules! counts {
    ($($count:ident: $kind:literal $metric:literal, $help:literal;)*) => {
        $(#[doc = $help] pub static $count: Count = Count::new();)*

        fn write_counts(text: &mut Text) {
            $(text.single($metric, $kind, $help, $count.get());)*
        }
    };
}

counts! {
    CHUNKS_REPAIRED: "counter" "loader_chunks_repaired_total", "Damaged chunks of the cache that were fetched again.";
    CACHE_EVICTIONS: "counter" "loader_cache_evictions_total", "Models removed from the cache to make room for others.";
    UNCACHED_LOADS: "counter" "loader_uncached_loads_total", "Downloads that were not cached because there was no room.";
    CACHE_LIMIT_BYTES: "gauge" "loader_cache_limit_bytes", "CACHE_MAX_BYTES; 0 for no limit.";
    OLD_UPLOADS: "counter" "loader_old_uploads_total", "Loads of models without a manifest, which nothing proves.";
    LOGINS_REFUSED: "counter" "loader_logins_refused_total", "Logins that the Resource API refused.";
    UPLINK_RETRIES: "counter" "loader_uplink_retries_total", "Calls to Resource API and CDN that were repeated.";
    QUEUE_FULL: "counter" "loader_queue_full_total", "Requests refused because all handlers were busy.";
    CONNECTIONS: "gauge" "loader_connections", "Open connections of clients.";
    HANDLERS: "gauge" "loader_handler_threads", "Handler threads.";
    HANDLERS_BUSY: "gauge" "loader_handler_threads_busy", "Handler threads at work.";
}

/// Loads whose big part was in the cache.
pub static CACHE_HITS: Count = Count::new();
/// Loads whose big part was not in the cache, or only in part.
pub static CACHE_MISSES: Count = Count::new();

static BYTES: [AtomicU64; Stage::ALL.len()] = [const { AtomicU64::new(0) }; Stage::ALL.len()];
static MICROSECONDS: [AtomicU64; Stage::ALL.len()] = [const { AtomicU64::new(0) }; Stage::ALL.len()];

static UNDER_WAY: [Count; Stage::ALL.len()] = [const { Count::new() }; Stage::ALL.len()];

/// The number of transfers in a stage.
pub fn under_way(stage: Stage) -> &'static Count {
    &UNDER_WAY[stage as usize]
}

/// Counts bytes that have moved in a stage, and the time that it took.
pub fn moved(stage: Stage, bytes: u64, time: Duration) {
    BYTES[stage as usize].fetch_add(bytes, Ordering::Relaxed);
    MICROSECONDS[stage as usize].fetch_add(microseconds(time), Ordering::Relaxed);
}

/// The time since the first call, which the service makes at its start.
pub fn uptime() -> Duration {
    static STARTED: OnceLock<Instant> = OnceLock::new();
    STARTED.get_or_init(Instant::now).elapsed()
}

/// Writes all metrics of this module.
pub fn write(text: &mut Text) {
    requests::write(text);

    text.family("loader_transfer_bytes_total", "counter", "Bytes moved, by stage.");
    for stage in Stage::ALL {
        text.sample("", &[("stage", stage.name())], BYTES[stage as usize].load(Ordering::Relaxed));
    }
    text.family("loader_transfer_seconds_total", "counter", "Seconds during which transfers were under way, by stage.");
    for stage in Stage::ALL {
        let time = Duration::from_micros(MICROSECONDS[stage as usize].load(Ordering::Relaxed));
        text.sample("", &[("stage", stage.name())], time.as_secs_f64());
    }
    text.family("loader_transfers", "gauge", "Transfers under way, by stage.");
    for stage in Stage::ALL {
        text.sample("", &[("stage", stage.name())], under_way(stage).get());
    }
    text.family("loader_cache_lookups_total", "counter", "Loads by whether their big part was in the cache.");
    for (result, count) in [("hit", &CACHE_HITS), ("miss", &CACHE_MISSES)] {
        text.sample("", &[("result", result)], count.get());
    }
    write_counts(text);
    text.single("loader_uptime_seconds", "gauge", "Seconds since the start.", uptime().as_secs_f64());
    text.family("loader_build_info", "gauge", "The version, as a label.");
    text.sample("", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    if let Some(bytes) = resident_bytes() {
        text.single("process_resident_memory_bytes", "gauge", "Resident memory.", bytes);
    }
}

/// Reads procfs, so it does not wait for a disk.
fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok())?;
    Some(kib * 1024)
}
