//! A service under attack and a second one that is left alone: delays that both have come from the machine.

use std::io::{self, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use crate::world::process::memory_kib;
use crate::world::raw::{self, Stream};
use crate::world::service::{Service, ServiceBuilder};
use crate::world::{eventually, in_ci};

/// The limit for answers of `/health`, to which the bystander's slowest answer is added, and over TCP [`FULL_QUEUE`].
const LIMIT: Duration = Duration::from_millis(100);

/// How long this machine needs to accept, answer and close as many connections as a flood can keep in a TCP queue, while
/// nothing else runs. A client may come behind all of them.
static FULL_QUEUE: LazyLock<Duration> = LazyLock::new(|| {
    const QUEUE: usize = 4096;
    // Fits into the queue of a listener of the standard library.
    const AT_ONCE: usize = 64;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let rounds = (0..QUEUE / AT_ONCE).map(|_| {
        for _ in 0..AT_ONCE {
            TcpStream::connect(address).unwrap().write_all(b"nonsense").unwrap();
        }
        let started = Instant::now();
        for _ in 0..AT_ONCE {
            let (mut stream, _) = listener.accept().unwrap();
            assert_eq!(stream.read(&mut [0; 1024]).unwrap(), 8);
            stream.write_all(&[b'x'; 300]).unwrap();
        }
        started.elapsed()
    });
    rounds.sum()
});

/// After how long the kernel tries again to connect to a full TCP queue. In a flood, about one probe in a thousand has to wait for it.
const RETRY: Duration = Duration::from_secs(1);

/// An answer that takes longer is not expected any more.
const HANG: Duration = Duration::from_secs(5);

/// When descriptors and threads must be back, with some slack for a slow machine.
const SETTLE: Duration = Duration::from_secs(5 + 6);

/// How far the numbers of descriptors and threads may differ from before.
const DIFFERENCE: usize = 5;

/// How much more memory there may be at the worst moment.
const MEMORY_KIB: u64 = 8 * 1024;

/// How long an attack lasts.
pub fn duration() -> Duration {
    Duration::from_millis(if in_ci() { 4000 } else { 1500 })
}

/// One service that is attacked, and one that is not.
pub struct Scene {
    pub service: Service,
    bystander: Service,
}

/// The resources of a process.
#[derive(Debug)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    memory: u64,
}

impl Holdings {
    fn of(service: &Service) -> Self {
        let memory = memory_kib(service.pid(), "RssAnon");
        Self { descriptors: service.descriptors(), threads: service.threads(), memory }
    }
}

/// How long `/health` took, of one service.
#[derive(Default)]
struct Probes {
    took: Vec<Duration>,
    failures: Vec<String>,
}

impl Probes {
    /// Asks on a new connection.
    fn take(&mut self, service: &Service) {
        let started = Instant::now();
        let asked = (|| {
            let mut stream = Stream::connect(service.address())?;
            stream.set_timeout(HANG)?;
            stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
            let reply = raw::read_reply(&mut BufReader::new(stream), "GET")?;
            if reply.status == 200 { Ok(()) } else { Err(io::Error::other(format!("status {}", reply.status))) }
        })();
        self.took.push(started.elapsed());
        if let Err(error) = asked {
            self.failures.push(format!("{error} after {:?}", started.elapsed()));
        }
    }

    fn slowest(&self) -> Duration {
        self.took.iter().max().copied().unwrap_or_default()
    }
}

impl Scene {
    /// On TCP and on a Unix socket, with one allocation arena: what glibc keeps for each thread says nothing about the service.
    pub fn both(configure: impl Fn(ServiceBuilder) -> ServiceBuilder) -> impl Iterator<Item = Self> {
        [false, true].into_iter().map(move |unix| {
            let builder = || {
                let builder = Service::builder().env("MALLOC_ARENA_MAX", "1");
                if unix { builder.unix() } else { builder }
            };
            Self { service: configure(builder()).start(), bystander: builder().start() }
        })
    }

    /// Runs an attack to its end. During it `/health` is answered all the time and memory stays small; after it nothing is left.
    pub fn withstands(&self, what: &str, attack: impl FnOnce(&Service) + Send) {
        let service = &self.service;
        let over_tcp = !service.address().starts_with("unix:");
        let queue = if over_tcp { *FULL_QUEUE } else { Duration::ZERO };
        // Makes the service allocate what it allocates only once.
        for path in ["/health", "/status", "/metrics", "/nope"] {
            service.get(path);
        }
        let before = Holdings::of(service);
        service.reset_hwm();
        let (mut attacked, mut idle, mut most) = (Probes::default(), Probes::default(), before.memory);
        let began = Instant::now();
        thread::scope(|scope| {
            let attack = scope.spawn(|| attack(service));
            // Three hangs are enough to fail.
            while !attack.is_finished() && attacked.failures.len() < 3 {
                attacked.take(service);
                idle.take(&self.bystander);
                most = most.max(memory_kib(service.pid(), "RssAnon"));
                thread::sleep(Duration::from_millis(5));
            }
        });
        let whole = began.elapsed();
        // The kernel's peak also covers the time between two samples; its file pages are the program itself.
        most = most.max(service.vm_hwm_kib().saturating_sub(memory_kib(service.pid(), "RssFile")));
        let limit = LIMIT + queue + idle.slowest();
        let missed = attacked.took.iter().filter(|took| **took > limit).count();
        let (probes, grown) = (attacked.took.len(), most.saturating_sub(before.memory));
        let said = format!(
            "{what}: {probes} probes, {missed} over {limit:?}, slowest {:?} (bystander {:?}), {grown} KiB more",
            attacked.slowest(),
            idle.slowest()
        );
        println!("{said}");
        assert!(attacked.failures.is_empty(), "{said}: {:?}", attacked.failures);
        assert!(idle.failures.is_empty(), "the bystander: {:?}", idle.failures);
        // Response times can be judged only for the product, alone on the machine: see `.ci/run`. Elsewhere only a hang fails.
        if std::env::var_os("HOSTILE_STRICT").is_some() {
            // The machine may pause during a probe of the one and not of the other.
            assert!(missed <= 1 + probes / 50, "{said}");
            let silent: Duration = attacked.took.iter().filter(|took| **took > limit).sum();
            let allowed = (whole / 4).max(LIMIT * 2) + if over_tcp { RETRY } else { Duration::ZERO };
            assert!(silent <= allowed, "silent for {silent:?} of {whole:?}; {said}");
        }
        assert!(service.is_emulated() || grown <= MEMORY_KIB, "{said}");
        let started = Instant::now();
        let mut after = Holdings::of(service);
        while !(after.descriptors.abs_diff(before.descriptors) <= DIFFERENCE
            && after.threads.abs_diff(before.threads) <= DIFFERENCE)
        {
            assert!(started.elapsed() < SETTLE, "{what} leaves {after:?} where there was {before:?}");
            thread::sleep(Duration::from_millis(50));
            after = Holdings::of(service);
        }
        assert!(service.is_running());
        eventually(Duration::from_secs(10), "no handler is busy", || busy_handlers(service) == 0);
    }
}

/// Handlers at work.
pub fn busy_handlers(service: &Service) -> usize {
    // Ignored by a service without CLIENT_TOKEN.
    let headers = [("Authorization", "Bearer open-sesame")];
    let document = service.call("GET", "/metrics", &headers, b"").expect("an answer").text();
    let line = document.lines().find_map(|line| line.strip_prefix("loader_handler_threads_busy "));
    line.unwrap_or_else(|| panic!("{document}")).parse().unwrap()
}

/// Runs a client again and again, on this many threads at once, as long as an attack lasts.
pub fn repeat(clients: usize, client: impl Fn(usize) + Sync) {
    let until = Instant::now() + duration();
    thread::scope(|scope| {
        for number in 0..clients {
            let client = &client;
            scope.spawn(move || {
                while Instant::now() < until {
                    client(number);
                }
            });
        }
    });
}
