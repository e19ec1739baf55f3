//! Uploads and loads, for each file size: times of the loader, the peer and the machine's own tools in turns, and memory.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::commands;
use crate::figure::{Better, Figure, Goal, median};
use crate::http;
use crate::plan::{Plan, size};
use crate::report::{Growth, Report};
use crate::world::peer::Peer;
use crate::world::process::{memory_kib, reset_peak};
use crate::world::resource_api::ResourceApi;
use crate::world::service::Service;
use crate::world::weed::Weed;
use crate::world::{PatternReader, sha256_hex_of};

const NAME: &str = "m.bin";

/// The range that is loaded, in bytes: no size is smaller.
const RANGE: u64 = 1 << 20;

/// Loads at once.
const AT_ONCE: usize = 4;

/// Measures all sizes.
pub fn measure(plan: &Plan, weed: &Weed, python: bool, report: &mut Report) {
    for bytes in &plan.sizes {
        // The file, the caches, the encrypted copy, and what the store holds: two objects of the loader, and others.
        let copies = if *bytes > plan.peer_up_to { 6 } else { 9 };
        let room = commands::room(&weed.dir()).unwrap_or(u64::MAX);
        if room < bytes * copies {
            report.leave_out(&format!("{}: there are {} free on the disk", size(*bytes), size(room >> 20 << 20)));
            continue;
        }
        report.says(&format!("loads and uploads of {}", size(*bytes)));
        let scene = Scene::new(weed, *bytes, python && *bytes <= plan.peer_up_to);
        let rounds = if *bytes > plan.rounds_up_to { 1 } else { plan.rounds };
        let measured = scene.rounds(rounds, *bytes == plan.main);
        report.grows(measured.growth(*bytes));
        report.peaks((*bytes, measured.loader_peak));
        if *bytes == plan.main {
            measured.figures(*bytes).into_iter().for_each(|figure| report.add(figure));
        }
    }
    let mut peak = Figure::new(
        format!("peak memory over idle, {AT_ONCE} loads at once, up to {}", size(report.largest())),
        "MiB",
        Better::Low,
    )
    .goal(Goal::AtMost(16.0));
    peak.loader = report.all_peaks();
    // The largest of all sizes, not the median.
    peak.loader = peak.loader.iter().copied().reduce(f64::max).into_iter().collect();
    report.add(peak);
}

/// The contestants for one file size, freshly started.
struct Scene<'a> {
    weed: &'a Weed,
    api: ResourceApi,
    loader: Service,
    /// A loader with `OLD_READERS=false`.
    lean: Service,
    peer: Option<Peer>,
    plain: PathBuf,
    encrypted: PathBuf,
    bytes: u64,
    idle_kib: u64,
    peer_idle_kib: u64,
    _dir: tempfile::TempDir,
}

/// The results, one value per round.
#[derive(Default)]
struct Measured {
    upload: [Vec<f64>; 3],
    lean_upload: Vec<f64>,
    cold_range: Vec<f64>,
    warm_range: Vec<f64>,
    cold: [Vec<f64>; 3],
    first_byte: [Vec<f64>; 2],
    warm: [Vec<f64>; 3],
    at_once: [Vec<f64>; 2],
    loader_peak: f64,
    peer_peak: Option<f64>,
    idle: [Vec<f64>; 2],
    health: Option<Figure>,
}

impl<'a> Scene<'a> {
    fn new(weed: &'a Weed, bytes: u64, with_peer: bool) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (plain, encrypted) = (dir.path().join("plain"), dir.path().join("encrypted"));
        let mut file = File::create(&plain).expect("a new file");
        io::copy(&mut PatternReader::new(bytes, bytes), &mut file).expect("room for the file");
        let api = ResourceApi::start();
        api.put_file("", "cdn.yaml", weed.s3.cdn_yaml());
        let loader = Service::builder().api(&api).timeout(Duration::from_secs(600)).start();
        let lean = Service::builder().api(&api).env("OLD_READERS", "false").timeout(Duration::from_secs(600)).start();
        thread::sleep(Duration::from_secs(1));
        let idle_kib = loader.vm_rss_kib();
        let reply = loader.login();
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(lean.login().status, 200);
        let peer = with_peer.then(|| Peer::start(&api, &weed.s3, &[]));
        let peer_idle_kib = peer.as_ref().map_or(0, |peer| memory_kib(peer.pid(), "VmRSS"));
        loader.reset_hwm();
        if let Some(peer) = &peer {
            reset_peak(peer.pid());
        }
        Self { weed, api, loader, lean, peer, plain, encrypted, bytes, idle_kib, peer_idle_kib, _dir: dir }
    }

    fn rounds(&self, rounds: usize, with_health: bool) -> Measured {
        let mut measured = Measured::default();
        let with_limits = self.bytes <= 1 << 30;
        let mib = |kib: u64| kib as f64 / 1024.0;
        for round in 0..rounds {
            let bucket = self.weed.s3.new_bucket("bench");
            let started = Instant::now();
            self.round(round, &bucket, with_limits, &mut measured);
            println!("  round {} of {rounds}: {:.0} s", round + 1, started.elapsed().as_secs_f64());
            if round == 0 {
                self.bytes_are_right(&bucket);
            }
            measured.loader_peak = mib(self.loader.vm_hwm_kib().saturating_sub(self.idle_kib));
            if with_health && round + 1 == rounds {
                measured.health = crate::health::under_loads(AT_ONCE, self.loader.address(), || {
                    http::load(self.loader.address(), &bucket, NAME, self.bytes);
                });
            }
            self.weed.delete_bucket(&bucket);
            let _ = fs::remove_dir_all(self.loader.cache_dir().join(&bucket));
            if let Some(peer) = &self.peer {
                let _ = fs::remove_dir_all(peer.cache_file(&bucket, NAME).parent().expect("a directory"));
            }
        }
        measured.idle[0].push(mib(self.idle_kib));
        if let Some(peer) = &self.peer {
            measured.peer_peak = Some(mib(memory_kib(peer.pid(), "VmHWM").saturating_sub(self.peer_idle_kib)));
            measured.idle[1].push(mib(self.peer_idle_kib));
        }
        measured
    }

    /// Every figure once: the contestants one after the other, in an order that changes from round to round.
    fn round(&self, round: usize, bucket: &str, with_limits: bool, measured: &mut Measured) {
        let in_turns = |contestants: [&mut dyn FnMut(); 3]| {
            for index in 0..3 {
                commands::settle();
                contestants[(index + round) % 3]();
            }
        };
        let loader = self.loader.address();
        let limit_key = "limit.big";

        let [ours, peers, limits] = &mut measured.upload;
        in_turns([
            &mut || {
                ours.push(http::upload(loader, bucket, NAME, &self.plain));
            },
            &mut || {
                if let Some(peer) = &self.peer {
                    // Under another name: otherwise they would replace each other's parts.
                    peers.push(http::upload(peer.address(), bucket, "peer.bin", &self.plain));
                }
            },
            &mut || {
                if with_limits {
                    let address = self.weed.presigned_put(bucket, limit_key);
                    limits.push(commands::encrypt_and_send(&self.plain, &self.encrypted, &address));
                    let _ = fs::remove_file(&self.encrypted);
                }
            },
        ]);

        commands::settle();
        measured.lean_upload.push(http::upload(self.lean.address(), bucket, "lean.bin", &self.plain));
        // Makes room on the disk; nobody loads this copy.
        let _ = fs::remove_dir_all(self.lean.cache_dir().join(bucket));

        // This model was never loaded, not even in part.
        let middle = self.bytes / 2 - RANGE / 2;
        let range = http::load_range(loader, bucket, "lean.bin", middle..middle + RANGE);
        measured.cold_range.push(range.first_byte * 1000.0);

        self.forget(bucket);
        let [ours, peers, limits] = &mut measured.cold;
        let [our_first, peers_first] = &mut measured.first_byte;
        in_turns([
            &mut || {
                let arrival = http::load(loader, bucket, NAME, self.bytes);
                ours.push(arrival.total);
                our_first.push(arrival.first_byte * 1000.0);
                self.loader.cached(bucket, NAME);
            },
            &mut || {
                if let Some(peer) = &self.peer {
                    let arrival = http::load(peer.address(), bucket, "peer.bin", self.bytes);
                    peers.push(arrival.total);
                    peers_first.push(arrival.first_byte * 1000.0);
                }
            },
            &mut || {
                if with_limits {
                    let address = self.weed.presigned_get(self.weed.s3.endpoint(), bucket, &format!("{NAME}.big"));
                    let (seconds, bytes) = commands::curl(&[&address]);
                    assert!(bytes + 4096 > self.bytes, "curl got {bytes} bytes");
                    limits.push(seconds);
                }
            },
        ]);

        let [ours, peers, limits] = &mut measured.warm;
        let small = self.api.file(bucket, &format!("{NAME}.small")).expect("it was uploaded");
        in_turns([
            &mut || ours.push(http::load(loader, bucket, NAME, self.bytes).total),
            &mut || {
                if let Some(peer) = &self.peer {
                    peers.push(http::load(peer.address(), bucket, "peer.bin", self.bytes).total);
                }
            },
            &mut || {
                if with_limits {
                    limits.push(commands::decrypt_into_pipe(&self.loader.cache_file(bucket, NAME), &small));
                }
            },
        ]);

        let range = http::load_range(loader, bucket, NAME, middle..middle + RANGE);
        measured.warm_range.push(range.total * 1000.0);

        let started = Instant::now();
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| http::load(loader, bucket, NAME, self.bytes));
            }
        });
        measured.at_once[0].push(started.elapsed().as_secs_f64());
    }

    /// Empties the caches of all contestants.
    fn forget(&self, bucket: &str) {
        let big = self.loader.cache_file(bucket, NAME);
        for suffix in ["", ".json"] {
            let mut path = big.clone().into_os_string();
            path.push(suffix);
            let _ = fs::remove_file(path);
        }
        if let Some(peer) = &self.peer {
            let _ = fs::remove_file(peer.cache_file(bucket, "peer.bin"));
        }
    }

    /// Compares the bytes once; the rounds only count them.
    fn bytes_are_right(&self, bucket: &str) {
        let expected = sha256_hex_of(File::open(&self.plain).expect("the file is there")).expect("it can be read");
        let got = self.loader.load_to(bucket, NAME, &mut io::sink());
        assert_eq!((got.status, got.sha256, got.error), (200, expected, None), "other bytes were loaded");
        io::stdout().flush().expect("standard output");
    }
}

impl Measured {
    fn growth(&self, bytes: u64) -> Growth {
        Growth {
            bytes,
            upload: [median(&self.upload[0]), median(&self.upload[1])],
            cold: [median(&self.cold[0]), median(&self.cold[1])],
            warm: [median(&self.warm[0]), median(&self.warm[1])],
            memory: [Some(self.loader_peak), self.peer_peak],
        }
    }

    fn figures(self, bytes: u64) -> Vec<Figure> {
        let of = |what: &str| format!("{what}, {}", size(bytes));
        let three = |figure: Figure, values: [Vec<f64>; 3]| {
            let [loader, peer, limit] = values;
            Figure { loader, peer, limit, ..figure }
        };
        let two = |figure: Figure, values: [Vec<f64>; 2]| {
            let [loader, peer] = values;
            Figure { loader, peer, ..figure }
        };
        let time = |what: &str| Figure::new(of(what), "s", Better::Low);
        let without_old_readers = three(
            time("upload, OLD_READERS=false").limited_by("openssl enc, then curl -T").goal(Goal::TimesPeer(3.0)),
            [self.lean_upload, self.upload[1].clone(), self.upload[2].clone()],
        );
        let mut figures = vec![
            three(
                time("warm load")
                    .limited_by("openssl enc -d into a pipe")
                    .goal(Goal::TimesPeer(9.0))
                    .goal(Goal::TimesLimit(1.3)),
                self.warm,
            ),
            two(time("four warm loads at once"), self.at_once),
            three(
                time("cold load")
                    .limited_by("curl of the object")
                    .goal(Goal::TimesPeer(5.5))
                    .goal(Goal::TimesLimit(0.55)),
                self.cold,
            ),
            two(Figure::new(of("cold load, first byte"), "ms", Better::Low).goal(Goal::AtMost(15.0)), self.first_byte),
            two(
                Figure::new(of("1 MiB of a cold model, first byte"), "ms", Better::Low).goal(Goal::AtMost(30.0)),
                [self.cold_range, Vec::new()],
            ),
            two(Figure::new(of("1 MiB of a warm model, all of it"), "ms", Better::Low), [self.warm_range, Vec::new()]),
            three(time("upload").limited_by("openssl enc, then curl -T").goal(Goal::TimesPeer(2.0)), self.upload),
            without_old_readers,
            two(Figure::new("idle memory", "MiB", Better::Low).goal(Goal::AtMost(5.0)), self.idle),
        ];
        figures.extend(self.health);
        figures
    }
}
