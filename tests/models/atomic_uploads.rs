//! An upload is atomic for concurrent readers, wherever it is cut: each read is the old version or the new one, whole.
//! Afterwards uploads succeed, and no more than two generations remain.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;

use crate::world::protocol::{self, Salts};
use crate::world::resource_api::Fault as ApiFault;
use crate::world::s3_fault::{Fault, Purpose};
use crate::world::s3_proxy::S3Proxy;
use crate::world::service::Service;
use crate::world::{World, pattern, sha256_hex};

const SIZE: usize = 300_000;
const NAME: &str = "m.bin";

/// One box that uploads, two that read: one with a cache, one whose cache is emptied before every load.
struct Fleet {
    world: World,
    readers_proxy: S3Proxy,
    uploader: Uploader,
    cold: Service,
    /// The last version whose upload succeeded, and the last one that was tried.
    certain: AtomicU64,
    tried: AtomicU64,
    /// Loads that ended without a whole body.
    failed_loads: AtomicUsize,
    whole_loads: AtomicUsize,
    /// Loads that each reader has ended.
    loads: [AtomicUsize; 2],
}

/// A box with its own proxy in front of the CDN.
struct Uploader {
    proxy: S3Proxy,
    service: Service,
    _config: NamedTempFile,
}

impl Uploader {
    fn new(world: &World) -> Self {
        let proxy = S3Proxy::before(&world.s3);
        let config = NamedTempFile::new().unwrap();
        std::fs::write(&config, world.s3.cdn_yaml_at(&proxy.url())).unwrap();
        let service = Service::builder().api(&world.api).env("CDN_CONFIG_PATH", config.path()).start();
        assert_eq!(service.login().status, 200);
        Self { proxy, service, _config: config }
    }
}

/// Where an upload is when something is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    InsideGeneration,
    AfterGeneration,
    BeforeCommit,
    AfterCommit,
    BeforeCopy,
    AfterCopy,
    BeforeList,
    BeforeDelete,
    AfterDelete,
}

const POINTS: [Point; 9] = [
    Point::InsideGeneration,
    Point::AfterGeneration,
    Point::BeforeCommit,
    Point::AfterCommit,
    Point::BeforeCopy,
    Point::AfterCopy,
    Point::BeforeList,
    Point::BeforeDelete,
    Point::AfterDelete,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Uploader,
    Cdn,
    ResourceApi,
}

impl Fleet {
    fn new() -> Self {
        let (world, readers_proxy) = World::behind_proxy();
        let (uploader, cold) = (Uploader::new(&world), world.another_box());
        let fleet = Self {
            world,
            readers_proxy,
            uploader,
            cold,
            certain: AtomicU64::new(0),
            tried: AtomicU64::new(0),
            failed_loads: AtomicUsize::new(0),
            whole_loads: AtomicUsize::new(0),
            loads: Default::default(),
        };
        // Two generations at first, so that the next upload has one to delete.
        for _ in 0..2 {
            fleet.upload_by(&fleet.uploader.service).unwrap();
        }
        fleet
    }

    /// Uploads the next version while nobody else uploads. The error is the answer's sentence, or how the connection broke.
    fn upload_by(&self, service: &Service) -> Result<(), String> {
        let version = self.upload_with_others(service)?;
        self.certain.store(version, Ordering::SeqCst);
        Ok(())
    }

    /// Uploads the next version and returns its number.
    fn upload_with_others(&self, service: &Service) -> Result<u64, String> {
        self.wait_for_the_clock();
        let version = self.tried.fetch_add(1, Ordering::SeqCst) + 1;
        let bytes = pattern(SIZE, version);
        let reply = service.try_upload_reader(&self.world.folder, NAME, SIZE as u64, &bytes[..])?;
        if reply.status == 200 { Ok(version) } else { Err(reply.detail()) }
    }

    /// Objects may have times in whole seconds only, and the order of two generations of one second is unknown.
    fn wait_for_the_clock(&self) {
        if !self.world.s3.is_built_in() {
            thread::sleep(Duration::from_millis(1100));
        }
    }

    /// Loads once. A complete body must be a version that was in force during the load. Returns whether the body was complete.
    fn read(&self, service: &Service, forget: bool) -> bool {
        if forget {
            let _ = std::fs::remove_dir_all(service.cache_dir().join(&self.world.folder));
        }
        let oldest = self.certain.load(Ordering::SeqCst);
        match service.try_load(&self.world.folder, NAME) {
            Ok(reply) if reply.status == 200 => {
                let newest = self.tried.load(Ordering::SeqCst);
                assert!(
                    (oldest..=newest).any(|version| reply.body == pattern(SIZE, version)),
                    "neither version {oldest} nor a later one up to {newest} was loaded"
                );
                self.whole_loads.fetch_add(1, Ordering::SeqCst);
                return true;
            }
            Ok(reply) => {
                assert!(reply.status == 500 && !reply.detail().is_empty(), "{}: {}", reply.status, reply.text());
                self.failed_loads.fetch_add(1, Ordering::SeqCst);
            }
            Err(_) => drop(self.failed_loads.fetch_add(1, Ordering::SeqCst)),
        }
        false
    }

    /// Runs `act` while both readers load all the time.
    fn while_reading(&self, act: impl FnOnce()) {
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            for (service, forget, loads) in
                [(&self.world.service, false, &self.loads[0]), (&self.cold, true, &self.loads[1])]
            {
                let ended = &ended;
                scope.spawn(move || {
                    while !ended.load(Ordering::SeqCst) {
                        self.read(service, forget);
                        loads.fetch_add(1, Ordering::SeqCst);
                        thread::sleep(Duration::from_millis(10));
                    }
                });
            }
            // The readers must end although `act` panics.
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
            ended.store(true, Ordering::SeqCst);
            if let Err(panic) = result {
                std::panic::resume_unwind(panic);
            }
        });
    }

    /// Waits until no reader is in a load that began before this call. A load can outlive one pair of uploads, but not two: a
    /// generation is kept until the upload after the next.
    fn wait_for_readers(&self) {
        let before = self.loads.each_ref().map(|loads| loads.load(Ordering::SeqCst));
        let deadline = Instant::now() + Duration::from_secs(240);
        while self.loads.iter().zip(before).any(|(loads, before)| loads.load(Ordering::SeqCst) == before) {
            assert!(Instant::now() < deadline, "a load does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn hold_at(&self, point: Point) {
        let Uploader { proxy, .. } = &self.uploader;
        let commit = |fault| self.world.api.fault(&format!("/resources/{}", self.world.folder), fault, Some(1));
        match point {
            Point::InsideGeneration => proxy.fault_on(Purpose::Store, NAME, Fault::HangRequestAt(100_000), Some(1)),
            Point::AfterGeneration => proxy.fault_on(Purpose::Store, NAME, Fault::HangAfterServed, Some(1)),
            Point::BeforeCommit => commit(ApiFault::Hang),
            Point::AfterCommit => commit(ApiFault::HangAfterServed),
            Point::BeforeCopy => proxy.fault_on(Purpose::Copy, NAME, Fault::HangBeforeResponse, Some(1)),
            Point::AfterCopy => proxy.fault_on(Purpose::Copy, NAME, Fault::HangAfterServed, Some(1)),
            Point::BeforeList => proxy.fault("GET", "list-type", Fault::HangBeforeResponse, Some(1)),
            Point::BeforeDelete => proxy.fault("DELETE", NAME, Fault::HangBeforeResponse, Some(1)),
            Point::AfterDelete => proxy.fault("DELETE", NAME, Fault::HangAfterServed, Some(1)),
        }
    }

    /// An upload that is held at `point` while `victim` is killed; then all come back.
    fn cut(&self, point: Point, victim: Victim) {
        let Uploader { proxy, service, .. } = &self.uploader;
        let api = &self.world.api;
        self.hold_at(point);
        thread::scope(|scope| {
            let upload = scope.spawn(|| self.upload_by(service));
            while proxy.awaits_a_request() || api.awaits_a_request() {
                assert!(!upload.is_finished(), "{point:?} was not reached");
                thread::sleep(Duration::from_millis(5));
            }
            // Time for what is served before it hangs.
            thread::sleep(Duration::from_millis(100));
            match victim {
                Victim::Uploader => service.kill(),
                Victim::Cdn => {
                    proxy.down();
                    self.readers_proxy.down();
                    // Ends the requests that hang at the other server; it keeps listening.
                    api.cut();
                }
                Victim::ResourceApi => {
                    api.down();
                    proxy.cut();
                }
            }
            // An uploader waits half a minute for a CDN that is away. Only at one point is the CDN away for longer.
            let is_short = victim == Victim::Cdn && point != Point::AfterGeneration;
            if is_short {
                thread::sleep(Duration::from_millis(700));
                proxy.clear_faults();
                proxy.up();
                self.readers_proxy.up();
            }
            let result = upload.join().unwrap();
            if is_short {
                assert_eq!(result, Ok(()), "{point:?}");
            } else if victim == Victim::Uploader {
                assert!(result.is_err(), "the uploader was not killed");
            } else if let Err(why) = result {
                assert!(why.contains("the CDN cannot be used") || why.contains("the Resource API cannot"), "{why}");
            }
            proxy.clear_faults();
            api.clear_faults();
            proxy.up();
            self.readers_proxy.up();
            api.up();
            if victim == Victim::Uploader {
                service.restart();
                assert_eq!(service.login().status, 200);
            }
        });
        for reader in [&self.world.service, &self.cold] {
            assert!(self.read(reader, false), "no version is loadable after {victim:?} was killed at {point:?}");
        }
    }

    /// Uploads succeed, every reader gets them, old readers too, and no more than two generations remain: the first
    /// one leaves what another box might be about to commit.
    fn heals(&self, after: &str) {
        for _ in 0..2 {
            self.upload_by(&self.uploader.service).unwrap_or_else(|why| panic!("an upload after {after}: {why}"));
        }
        let bytes = pattern(SIZE, self.certain.load(Ordering::SeqCst));
        assert!(self.in_force() == bytes, "after {after}");
        let generations = self.generations();
        assert!(generations.len() <= 2, "after {after}: {generations:?}");
        // Each manifest is removed with its generation.
        let keys = self.world.keys();
        let manifests = keys.iter().filter_map(|key| key.strip_suffix(".manifest")).collect::<Vec<_>>();
        let of: Vec<_> = generations.iter().filter_map(|key| key.strip_suffix(".big")).collect();
        assert_eq!(manifests, of, "after {after}");
    }

    /// What an old reader gets: the small part and the plain key.
    fn in_force(&self) -> Vec<u8> {
        let small = self.world.api.file(&self.world.folder, &format!("{NAME}.small")).unwrap();
        let big = self.world.s3.get(&self.world.folder, &format!("{NAME}.big")).unwrap();
        protocol::join(&small, &big, &Salts::default()).expect("the plain key is of the version in force")
    }

    fn generations(&self) -> Vec<String> {
        let is_generation = |key: &String| key.ends_with(".big") && *key != format!("{NAME}.big");
        self.world.keys().into_iter().filter(is_generation).collect()
    }

    fn cut_everywhere(&self, victim: Victim) {
        for point in POINTS {
            self.while_reading(|| {
                self.cut(point, victim);
                self.heals(&format!("{victim:?} killed at {point:?}"));
            });
        }
        assert!(
            self.whole_loads.load(Ordering::SeqCst) > 2 * POINTS.len(),
            "hardly anything was read during the uploads"
        );
    }
}

#[test]
fn a_killed_uploader_leaves_the_old_version_or_the_new_one() {
    let fleet = Fleet::new();
    fleet.cut_everywhere(Victim::Uploader);
    // No server was away, so no load may have failed.
    assert_eq!(fleet.failed_loads.load(Ordering::SeqCst), 0);
}

#[test]
fn a_killed_cdn_leaves_the_old_version_or_the_new_one() {
    Fleet::new().cut_everywhere(Victim::Cdn);
}

#[test]
fn a_killed_resource_api_leaves_the_old_version_or_the_new_one() {
    Fleet::new().cut_everywhere(Victim::ResourceApi);
}

#[test]
fn two_boxes_that_upload_at_once_leave_one_version_for_new_and_old_readers() {
    let fleet = Fleet::new();
    let other = Uploader::new(&fleet.world);
    fleet.while_reading(|| {
        for _ in 0..4 {
            thread::scope(|scope| {
                for service in [&fleet.uploader.service, &other.service] {
                    scope.spawn(|| fleet.upload_with_others(service).unwrap());
                }
            });
            // Which one won is known when both are done: what is in force is one of the two, in both kinds of places.
            let bytes = fleet.in_force();
            let newest = fleet.tried.load(Ordering::SeqCst);
            let version = [newest - 1, newest].into_iter().find(|version| bytes == pattern(SIZE, *version));
            fleet.certain.store(version.expect("it is one of the two"), Ordering::SeqCst);
            fleet.wait_for_readers();
        }
        // The first upload makes its copy after the second one has done everything.
        fleet.uploader.proxy.fault_on(Purpose::Copy, NAME, Fault::Delay(Duration::from_millis(900)), Some(1));
        thread::scope(|scope| {
            scope.spawn(|| fleet.upload_with_others(&fleet.uploader.service).unwrap());
            while fleet.uploader.proxy.awaits_a_request() {
                thread::sleep(Duration::from_millis(5));
            }
            fleet.upload_with_others(&other.service).unwrap();
        });
        assert!(fleet.in_force() == pattern(SIZE, fleet.tried.load(Ordering::SeqCst)));
        fleet.heals("uploads at once");
    });
    assert_eq!(fleet.failed_loads.load(Ordering::SeqCst), 0);
}

/// The first box stores its generation, the second one uploads, and then the first one commits: the version that was in force
/// before is newer than the one in force.
#[test]
fn an_upload_that_another_box_overtook_is_not_deleted_as_old() {
    let fleet = Fleet::new();
    let other = Uploader::new(&fleet.world);
    // From now on this box refuses versions without a manifest.
    assert!(fleet.read(&fleet.world.service, false));
    fleet.uploader.proxy.fault("PUT", ".manifest", Fault::HangBeforeResponse, Some(1));
    let first = thread::scope(|scope| {
        let first = scope.spawn(|| fleet.upload_with_others(&fleet.uploader.service).unwrap());
        while fleet.uploader.proxy.awaits_a_request() {
            thread::sleep(Duration::from_millis(5));
        }
        fleet.upload_with_others(&other.service).unwrap();
        fleet.uploader.proxy.cut();
        first.join().unwrap()
    });
    assert!(fleet.read(&fleet.world.service, false));
    assert!(fleet.in_force() == pattern(SIZE, first));
}

/// A failed upload left a newer generation, so a second box's generation looks unused.
#[test]
fn a_generation_that_another_box_is_about_to_commit_is_not_deleted() {
    let fleet = Fleet::new();
    let other = Uploader::new(&fleet.world);
    let commit = format!("/resources/{}", fleet.world.folder);
    fleet.while_reading(|| {
        fleet.uploader.proxy.fault("GET", "list-type", Fault::Delay(Duration::from_millis(1500)), Some(1));
        thread::scope(|scope| {
            scope.spawn(|| fleet.upload_with_others(&fleet.uploader.service).unwrap());
            while fleet.uploader.proxy.awaits_a_request() {
                thread::sleep(Duration::from_millis(5));
            }
            fleet.world.api.fault(&commit, ApiFault::Delay(Duration::from_millis(2000)), Some(1));
            scope.spawn(|| fleet.upload_with_others(&other.service).unwrap());
            while fleet.world.api.awaits_a_request() {
                thread::sleep(Duration::from_millis(5));
            }
            fleet.wait_for_the_clock();
            let small_sha256 = sha256_hex(b"a small part that was never stored");
            let key = format!("{NAME}.{}.big", &small_sha256[..16]);
            fleet.world.s3.put(&fleet.world.folder, &key, b"x", &[("small-sha256", &small_sha256)]);
        });
        assert!(fleet.in_force() == pattern(SIZE, fleet.tried.load(Ordering::SeqCst)));
    });
    assert_eq!(fleet.failed_loads.load(Ordering::SeqCst), 0);
}

#[test]
fn a_generation_that_was_deleted_before_its_commit_is_stored_again() {
    let fleet = Fleet::new();
    let commit = format!("/resources/{}", fleet.world.folder);
    fleet.world.api.fault(&commit, ApiFault::Delay(Duration::from_millis(300)), Some(1));
    thread::scope(|scope| {
        scope.spawn(|| fleet.upload_by(&fleet.uploader.service).unwrap());
        while fleet.world.api.awaits_a_request() {
            thread::sleep(Duration::from_millis(5));
        }
        for key in fleet.generations().iter().filter(|key| key.ends_with(".big")) {
            fleet.world.s3.delete(&fleet.world.folder, key);
        }
    });
    assert!(fleet.read(&fleet.cold, true));
    assert!(fleet.in_force() == pattern(SIZE, fleet.tried.load(Ordering::SeqCst)));
}
