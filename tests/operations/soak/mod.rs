//! A soak: good and hostile clients, all at once, on an uplink that comes and goes. What a client receives as complete is
//! right, and when everything is quiet again the process is as it was before.
//!
//! `SOAK_SECONDS` says how long; it is short by default, and half an hour is a good long one. `SOAK_SEED` repeats a run's
//! choices, though not its timing.

mod clients;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::world::process::memory_kib;
use crate::world::raw::Stream;
use crate::world::resource_api::{self};
use crate::world::s3_proxy::S3Proxy;
use crate::world::tcp::lock;
use crate::world::{Dice, World, pattern, s3_fault, sha256_hex};

/// `CLIENT_STALL_SECONDS` of the service.
const STALL: Duration = Duration::from_secs(2);

/// How much more resident memory, in KiB, the process may have at rest after the second half of a run than after the first.
const GROWTH: u64 = 2 * 1024;

/// Models that never change: name, size, seed.
const MODELS: [(&str, usize, u64); 4] =
    [("tiny.bin", 10, 1), ("small.bin", 70_000, 2), ("large.bin", 3_000_000, 3), ("huge.bin", 12_000_000, 4)];

/// The model that one client loads cold.
const COLD: (&str, usize, u64) = ("cold.bin", 2_000_000, 5);

/// What the clients share.
struct Soak {
    world: World,
    proxy: S3Proxy,
    until: Instant,
    stop: AtomicBool,
    /// How often each client had each outcome.
    tally: Mutex<BTreeMap<String, u64>>,
    faults: Mutex<Vec<String>>,
}

type Turn = fn(&Soak, &mut Dice) -> Result<(), String>;

impl Soak {
    fn goes_on(&self) -> bool {
        Instant::now() < self.until && !self.stop.load(Ordering::Relaxed)
    }

    /// Takes turns until the end, or until a client finds a fault.
    fn run(&self, name: &str, turn: Turn, dice: &mut Dice) {
        while self.goes_on() {
            match turn(self, dice) {
                Ok(()) => self.count(name),
                Err(fault) => {
                    lock(&self.faults).push(format!("{name}: {fault}"));
                    self.stop.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    /// Waits, but not past the end of the soak.
    fn hold(&self, time: Duration) {
        let end = Instant::now() + time;
        while self.goes_on() && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn count(&self, what: &str) {
        *lock(&self.tally).entry(what.to_owned()).or_default() += 1;
    }

    fn counted(&self, what: &str) -> u64 {
        lock(&self.tally).get(what).copied().unwrap_or(0)
    }

    fn connect(&self) -> Option<Stream> {
        let stream = Stream::connect(self.world.service.address()).ok()?;
        stream.set_timeout(Duration::from_secs(10)).ok()?;
        Some(stream)
    }

    /// Loads; what arrives whole has one of these hashes. A broken uplink may fail a load, but never falsify it.
    fn load(&self, name: &str, admissible: &[String]) -> Result<bool, String> {
        let download = self.world.service.try_load(&self.world.folder, name);
        match download {
            Err(_) => self.count("load broken off"),
            Ok(reply) if reply.status == 200 && admissible.contains(&sha256_hex(&reply.body)) => {
                self.count("load right");
                return Ok(true);
            }
            Ok(reply) if reply.status == 200 => return Err(format!("{name}: {} wrong bytes", reply.body.len())),
            Ok(reply) if matches!(reply.status, 500 | 503) => self.count(&format!("load {}", reply.status)),
            Ok(reply) => return Err(format!("{name}: {} {}", reply.status, reply.text())),
        }
        Ok(false)
    }
}

/// Breaks the uplink now and then.
fn flap(soak: &Soak, dice: &mut Dice) -> Result<(), String> {
    use resource_api::Fault as Api;
    use s3_fault::Fault as S3;
    let (api, proxy) = (&soak.world.api, &soak.proxy);
    thread::sleep(dice.millis(300, 1200));
    let bytes = dice.below(2_000_000) as u64;
    let cdn = [
        S3::CutAtHalf,
        S3::CutResponseAt(bytes),
        S3::CutRequestAt(bytes),
        S3::HangAt(bytes),
        S3::HangBeforeResponse,
        S3::Status(503),
        S3::Reset,
        S3::ResetAfterServed,
        S3::Garbage,
        S3::IgnoreRange,
        S3::CorruptByteAt(bytes),
        S3::Delay(Duration::from_millis(300)),
    ];
    let own = [
        Api::Hang,
        Api::HangAfterServed,
        Api::Status(500, "no".into()),
        Api::StatusWithRetryAfter(429, 1),
        Api::Reset,
        Api::ResetAfterServed,
        Api::Truncate,
        Api::Garbage,
        Api::Delay(Duration::from_millis(300)),
    ];
    let times = Some(1 + dice.below(3));
    match dice.below(8) {
        0 => api.down(),
        1 => proxy.down(),
        2 => api.revoke_tokens(),
        3 | 4 => api.fault("/", own[dice.below(own.len())].clone(), times),
        _ => proxy.fault("", "", cdn[dice.below(cdn.len())].clone(), times),
    }
    thread::sleep(dice.millis(100, 800));
    mend(soak);
    Ok(())
}

fn mend(soak: &Soak) {
    let (api, proxy) = (&soak.world.api, &soak.proxy);
    api.clear_faults();
    proxy.clear_faults();
    // This ends requests that hang.
    api.cut();
    proxy.cut();
    api.up();
    proxy.up();
    api.clear_requests();
    proxy.clear_requests();
}

/// The least memory of the process during a second without requests. Pages of the program's file do not count: they are
/// read when code runs for the first time.
fn memory_at_rest(soak: &Soak) -> u64 {
    let rest = || {
        thread::sleep(Duration::from_millis(50));
        memory_kib(soak.world.service.pid(), "RssAnon")
    };
    (0..20).map(|_| rest()).min().unwrap_or(u64::MAX)
}

#[test]
fn mixed_clients_on_a_flapping_uplink_leave_nothing_behind() {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().expect(name));
    let short = if std::env::var_os("CI").is_some() { 120 } else { 8 };
    let length = Duration::from_secs(number("SOAK_SECONDS").unwrap_or(short));
    let mut dice = Dice::new("SOAK_SEED");
    say(&format!("soak of {length:?}"));

    let (world, proxy) = World::behind_proxy_with(|builder| {
        // The product's libc has one heap and returns buffers to the kernel. glibc has many heaps, and raises the size from
        // which it returns memory: what it keeps would hide a leak.
        let builder = builder.env("MALLOC_ARENA_MAX", "1").env("MALLOC_MMAP_THRESHOLD_", "65536");
        let builder = builder.env("MALLOC_TRIM_THRESHOLD_", "65536").env("HANDLER_THREADS", "6");
        builder.env("CLIENT_STALL_SECONDS", STALL.as_secs().to_string())
    });
    for (name, size, seed) in MODELS.into_iter().chain([COLD]) {
        world.upload(name, &pattern(size, seed));
    }
    let pid = world.service.pid();
    let before = (world.service.descriptors(), world.service.threads(), world.service.vm_rss_kib());
    let until = Instant::now();
    let stop = AtomicBool::new(false);
    let mut soak = Soak { world, proxy, until, stop, tally: Mutex::default(), faults: Mutex::default() };
    let clients: [(&str, Turn); 17] = [
        ("flap", flap),
        ("load warm", clients::load_warm),
        ("load warm too", clients::load_warm),
        ("load cold", clients::load_cold),
        ("upload", clients::upload),
        ("log in", clients::log_in),
        ("poll", clients::poll),
        ("declare a length", clients::declare_a_length),
        ("stall a body", clients::stall_a_body),
        ("leave answers unread", clients::leave_answers_unread),
        ("reset", clients::reset),
        ("head byte by byte", clients::send_a_head_byte_by_byte),
        ("header lines without end", clients::send_header_lines_without_end),
        ("garbage", clients::send_garbage),
        ("pipeline", clients::pipeline),
        ("idle connections", clients::open_idle_connections),
        ("poll too", clients::poll),
    ];
    // An idle thread of a library lives 5 s, and an abandoned connection ends after the stall limit.
    let settled = |(descriptors, threads)| descriptors <= before.0 + 4 && threads <= before.1 + 4;
    let settle = |soak: &Soak| {
        let now = || (soak.world.service.descriptors(), soak.world.service.threads());
        let deadline = Instant::now() + Duration::from_secs(30);
        while !settled(now()) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(50));
        }
        now()
    };
    let mut at_rest = [0; 2];
    for at_rest in &mut at_rest {
        soak.until = Instant::now() + length / 2;
        thread::scope(|scope| {
            for (name, turn) in &clients {
                let (soak, mut dice) = (&soak, dice.split());
                scope.spawn(move || soak.run(name, *turn, &mut dice));
            }
        });
        mend(&soak);
        settle(&soak);
        *at_rest = memory_at_rest(&soak);
    }
    let [first, second] = at_rest;
    for (what, times) in lock(&soak.tally).iter() {
        say(&format!("{times:8} {what}"));
    }
    assert!(lock(&soak.faults).is_empty(), "{:#?}", lock(&soak.faults));
    assert!(soak.world.service.is_running() && soak.world.service.pid() == pid, "it is another process");
    for what in ["load right", "cold load right", "upload right", "login 200"] {
        assert!(soak.counted(what) > 0, "not one {what} in {length:?}");
    }

    // With the uplink mended, everything works at once.
    mend(&soak);
    let started = Instant::now();
    soak.world.login();
    for (name, size, seed) in MODELS.into_iter().chain([COLD]) {
        soak.world.forget(name);
        soak.world.loads(name, &pattern(size, seed));
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(20), "cold loads after the soak took {took:?}");

    let after = settle(&soak);
    let rss = soak.world.service.vm_rss_kib();
    say(&format!(
        "descriptors {} then {}, threads {} then {}, resident {} KiB before, {first} and {second} KiB at rest \
         after each half, {rss} KiB at the end; cold loads of {} models in {took:?}",
        before.0,
        after.0,
        before.1,
        after.1,
        before.2,
        MODELS.len() + 1
    ));
    assert!(settled(after), "descriptors and threads were {before:?} and are {after:?}");
    let grown = second.saturating_sub(first);
    assert!(grown <= GROWTH, "{grown} KiB more are in use after the second half than after the first");
    assert_eq!(soak.world.service.spooled(), 0, "spool files are left");
    // No thread has panicked, neither one of the program nor one of a library.
    let said = soak.world.service.log_text();
    let panics: Vec<_> = said.lines().filter(|line| line.contains("panicked at")).take(5).collect();
    assert!(panics.is_empty(), "{panics:#?}");
}

/// Prints past the harness, which would capture it: the numbers are the point of a soak.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
