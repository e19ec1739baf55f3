//! Every kind of call that leaves the box meets every kind of fault: the right bytes or a clean error that names what failed,
//! and the same request succeeds once the fault is gone.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::trouble::{OF_ALL_CALLS, OF_RANGES, Trouble};
use crate::world::resource_api::{EMAIL, PASSWORD};
use crate::world::s3_fault::{Fault as CdnFault, Purpose};
use crate::world::s3_proxy::S3Proxy;
use crate::world::{World, pattern, protocol};
use Trouble::{Garbage, GarbledByte, Hang, Refused, Reset, Status500, Truncated};

const FRAGMENT: &[u8] = b"the key fragment of these tests";

/// The kinds of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Login,
    CdnYaml,
    SmallPart,
    KeyFragment,
    /// The upload of the small part.
    Commit,
    /// The manifest of a big part.
    Manifest,
    /// The `HEAD` of an object without a manifest.
    Describe,
    /// The read of its last bytes.
    Tail,
    Body,
    /// The request that continues a download.
    Rest,
    Put,
    Copy,
}

const API_CALLS: [Call; 5] = [Call::Login, Call::CdnYaml, Call::SmallPart, Call::KeyFragment, Call::Commit];
const CDN_CALLS: [Call; 7] =
    [Call::Manifest, Call::Describe, Call::Tail, Call::Body, Call::Rest, Call::Put, Call::Copy];

impl Call {
    fn is_of_api(self) -> bool {
        API_CALLS.contains(&self)
    }

    /// What the error must name.
    fn named(self) -> &'static str {
        match self {
            Self::Login => "login failed: the Resource API",
            Self::CdnYaml => "logged in, but the CDN configuration cannot be read: the Resource API",
            Self::SmallPart => "the small part of the model cannot be fetched: the Resource API",
            Self::KeyFragment => "the key fragment cannot be fetched: the Resource API",
            Self::Commit => "the Resource API",
            Self::Put => "the model was not uploaded, the previous version remains: the CDN",
            Self::Manifest | Self::Describe | Self::Tail => "the big part of the model cannot be fetched: ",
            Self::Body | Self::Rest => "",
            Self::Copy => "old readers still get the previous version; upload it again: the CDN",
        }
    }

    /// Whether the call is a transfer, which is resumed for half a minute.
    fn is_patient(self) -> bool {
        matches!(self, Self::Body | Self::Rest | Self::Put | Self::Copy)
    }
}

/// An installation, and the call that is tested in it.
struct Line {
    world: World,
    proxy: S3Proxy,
    call: Call,
    bytes: Vec<u8>,
    /// The last version whose upload succeeded, and the last one that was tried.
    versions: (u64, u64),
}

impl Line {
    fn new(call: Call) -> Self {
        let (world, proxy) = World::behind_proxy();
        world.api.set_key_fragment(FRAGMENT);
        let bytes = pattern(400_000, 1);
        world.upload("m.bin", &bytes);
        let (small, big) = protocol::split(&bytes, &protocol::Salts::default());
        world.api.put_file(&world.folder, "old.bin.small", small);
        world.s3.put(&world.folder, "old.bin.big", &big, &[]);
        world.upload("up.bin", &pattern(100_000, 0));
        // One tar header is enough: after the key fragment comes `docker`, which is not on this PATH.
        let mut header = tar::Header::new_ustar();
        header.set_path("x").unwrap();
        header.set_size(0);
        header.set_cksum();
        let archive = protocol::encrypt(&[header.as_bytes().as_slice(), &[0; 1024]].concat(), FRAGMENT);
        std::fs::write(world.service.images_path(), archive).unwrap();
        world.service.set_env("PATH", "/nonexistent");
        world.service.restart();
        world.login();
        Self { world, proxy, call, bytes, versions: (0, 0) }
    }

    fn arm(&self, trouble: Trouble, times: Option<usize>) {
        let Self { world, proxy, .. } = self;
        if trouble == Refused {
            if self.call.is_of_api() {
                world.api.down()
            } else {
                proxy.down()
            }
            return;
        }
        let api = |path: &str| world.api.fault(path, trouble.of_api(), times);
        match self.call {
            Call::Login => api("/login"),
            Call::CdnYaml | Call::SmallPart => api("/resources/get/"),
            Call::KeyFragment => api("/binary-split/"),
            Call::Commit => api(&format!("/resources/{}", world.folder)),
            Call::Manifest => proxy.fault("GET", ".manifest", trouble.of_cdn(), times),
            Call::Describe => proxy.fault_on(Purpose::Describe, "old.bin", trouble.of_cdn(), times),
            Call::Tail => proxy.fault_on(Purpose::Tail, "old.bin", trouble.of_cdn(), times),
            Call::Body => proxy.fault_on(Purpose::Whole, ".big", trouble.of_cdn(), times),
            Call::Rest => {
                proxy.fault_on(Purpose::Whole, ".big", CdnFault::CutResponseAt(100_000), None);
                proxy.fault_on(Purpose::Rest, ".big", trouble.of_cdn(), times);
            }
            Call::Put => proxy.fault_on(Purpose::Store, "up.bin.", trouble.of_cdn(), times),
            Call::Copy => proxy.fault_on(Purpose::Copy, "up.bin.big", trouble.of_cdn(), times),
        }
    }

    fn disarm(&self) {
        self.world.api.clear_faults();
        self.proxy.clear_faults();
        self.world.api.up();
        self.proxy.up();
    }

    /// Makes the request. The error is the answer's sentence, or how the body broke off.
    fn make(&mut self) -> Result<(), String> {
        let (world, call) = (&self.world, self.call);
        let answer = |status: u16, reply: crate::world::raw::Reply| match reply.status {
            200 => Ok(()),
            other => {
                assert_eq!(other, status, "{call:?}: {}", reply.text());
                Err(reply.detail())
            }
        };
        match call {
            Call::Login | Call::CdnYaml => answer(401, world.service.login()),
            Call::SmallPart | Call::Manifest | Call::Describe | Call::Tail | Call::Body | Call::Rest => {
                let name = if matches!(call, Call::Describe | Call::Tail) { "old.bin" } else { "m.bin" };
                if call != Call::SmallPart {
                    world.forget(name);
                }
                let reply = world.service.try_load(&world.folder, name)?;
                assert!(reply.status != 200 || reply.body == self.bytes, "{call:?}: wrong bytes were loaded");
                answer(500, reply)
            }
            Call::KeyFragment => {
                let reply = world.service.post_json("/unlock", json!({"email": EMAIL, "password": PASSWORD}));
                assert_eq!(reply.status, 200, "{}", reply.text());
                let error = loop {
                    let status = world.service.get("/unlock/status").json();
                    if let Value::String(error) = &status["error"] {
                        break error.clone();
                    }
                    thread::sleep(Duration::from_millis(10));
                };
                if error.contains("the docker command is not installed") { Ok(()) } else { Err(error) }
            }
            Call::Commit | Call::Put | Call::Copy => {
                self.versions.1 += 1;
                let bytes = pattern(100_000, self.versions.1);
                let result = answer(500, world.service.upload(&world.folder, "up.bin", &bytes));
                if result.is_ok() {
                    self.versions.0 = self.versions.1;
                }
                result
            }
        }
    }

    /// After a failed upload the previous version is in force, whole; or the new one, if only the answer was lost.
    fn check_versions(&mut self) {
        let (certain, tried) = self.versions;
        if certain != tried {
            for state in ["warm", "cold"] {
                let reply = self.world.service.load(&self.world.folder, "up.bin");
                assert_eq!(reply.status, 200, "{state}: {}", reply.text());
                let found = [certain, tried].into_iter().find(|version| reply.body == pattern(100_000, *version));
                assert!(found.is_some(), "{state}: neither version was loaded");
                self.world.forget("up.bin");
            }
        }
    }

    fn meets(&mut self, trouble: Trouble) {
        let call = self.call;
        if trouble.passes() && trouble != Refused {
            self.arm(trouble, Some(if call.is_patient() { 3 } else { 1 }));
            self.make().unwrap_or_else(|why| panic!("{call:?} met {trouble:?} once: {why}"));
            self.disarm();
        }
        if trouble.passes() && call.is_patient() {
            // This would take half a minute: see `a_hang_ends_after_the_stall_timeout_and_too_many_failures_break_the_load`.
            return;
        }
        self.arm(trouble, None);
        let result = self.make();
        if trouble.is_harmless() {
            result.unwrap_or_else(|why| panic!("{call:?} under {trouble:?}: {why}"));
        } else if let Err(why) = result {
            let named = match trouble {
                // The server is down, so the error names the first call to it.
                Refused => "is unreachable",
                GarbledByte if call == Call::Manifest => "the manifest of the model",
                GarbledByte if call == Call::Tail => "the model cannot be decrypted",
                _ => call.named(),
            };
            assert!(why.contains(named), "{call:?} under {trouble:?}: {why:?}");
        } else {
            // An answer without a body cannot be truncated.
            let bodiless = matches!(call, Call::Commit | Call::Describe | Call::Put | Call::Copy);
            assert!(trouble == Truncated && bodiless, "{call:?} under {trouble:?} succeeded");
        }
        self.disarm();
        self.check_versions();
        self.make().unwrap_or_else(|why| panic!("{call:?} after {trouble:?}: {why}"));
    }
}

/// Runs all at the same time, because they mostly wait.
fn at_once<T: Send>(all: impl IntoIterator<Item = T>, run: impl Fn(T) + Sync) {
    thread::scope(|scope| {
        for one in all {
            scope.spawn(|| run(one));
        }
    });
}

#[test]
fn every_call_meets_every_fault() {
    at_once(API_CALLS.into_iter().chain(CDN_CALLS), |call| {
        let mut line = Line::new(call);
        for trouble in OF_ALL_CALLS {
            line.meets(trouble);
        }
        if call == Call::Manifest {
            line.meets(GarbledByte);
        }
        if matches!(call, Call::Tail | Call::Rest) {
            for trouble in OF_RANGES {
                line.meets(trouble);
            }
        }
    });
}

/// These wait for the stall limit of 30 s, or as long as a download is taken up again.
#[test]
fn a_hang_ends_after_the_stall_timeout_and_too_many_failures_break_the_load() {
    if std::env::var_os("CI").is_none() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: hanging servers take half a minute; set CI to run it");
        return;
    }
    let hangs = API_CALLS.into_iter().chain(CDN_CALLS).map(|call| (call, Hang));
    let downs = [Status500, Reset, Garbage].into_iter();
    let downs = downs.flat_map(|trouble| [(Call::Body, trouble), (Call::Rest, trouble)]);
    at_once(hangs.chain(downs), |(call, trouble)| {
        let mut line = Line::new(call);
        line.arm(trouble, (trouble == Hang).then_some(1));
        let started = Instant::now();
        let result = line.make();
        let took = started.elapsed();
        if trouble == Hang {
            result.unwrap_or_else(|why| panic!("{call:?} met {trouble:?} once: {why}"));
            assert!((29..58).contains(&took.as_secs()), "{call:?} took {took:?}");
            return;
        }
        assert!(result.is_err(), "{call:?} under {trouble:?} succeeded");
        line.disarm();
        line.make().unwrap_or_else(|why| panic!("{call:?} after {trouble:?}: {why}"));
    });
}

/// An upload in parts has calls of its own. The CDN manager is called directly, whose parts may be small.
#[test]
fn every_call_of_an_upload_in_parts_meets_every_fault() {
    use loader::cdn_manager::{BigPart, CdnConfig, CdnManager, Limits};
    use loader::names::ModelName;
    use loader::security::{Sha256Hash, SmallHash};

    use crate::world::s3::S3;

    // S3 accepts no shorter part but the last one.
    const PART: usize = 5 << 20;
    let bytes = pattern(PART + 100_000, 1);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    let small = SmallHash::of(b"small");
    let part = BigPart { file: &file, length: bytes.len() as u64, sha256: Sha256Hash::of(&bytes), small };
    let key = loader::cdn_manager::generation_key("m.bin", small);
    // The beginning, the second part and the end, of an upload and of a copy in ranges.
    let calls = [("POST", "uploads="), ("PUT", "partNumber=2"), ("POST", "uploadId=")];
    let lines = calls.into_iter().flat_map(|call| [(call, false), (call, true)]);
    at_once(lines, |((method, query), copying)| {
        let s3 = S3::start();
        let bucket = s3.new_bucket("models");
        let model = ModelName::new(&*bucket, "m.bin").unwrap();
        let proxy = S3Proxy::before(&s3);
        let config = CdnConfig::from_yaml(s3.cdn_yaml_at(&proxy.url()).as_bytes()).unwrap();
        let limits = Limits { part: PART as u64, copy: PART as u64 };
        let cdn = CdnManager::new(loader::http_client::HttpClient::new(None).unwrap(), &config).with_limits(limits);
        if copying {
            cdn.put_generation(&model, part).unwrap();
        }
        for trouble in OF_ALL_CALLS.into_iter().filter(|trouble| *trouble != Refused) {
            // To outlast the half minute of retries with each of them would take too long.
            for times in if trouble.passes() { [Some(1), Some(3)] } else { [Some(1), None] } {
                let what = format!("{method} {query} under {trouble:?} ({times:?}), copying: {copying}");
                let target = if copying { "m.bin.big" } else { &key };
                s3.delete(&bucket, target);
                proxy.fault(method, query, trouble.of_cdn(), times);
                let store = || {
                    if copying { cdn.set_plain(&model, small) } else { cdn.put_generation(&model, part) }
                };
                let result = store();
                let stored = s3.get(&bucket, target);
                assert!(stored.as_ref().is_none_or(|stored| *stored == bytes), "{what}: half an object is there");
                if trouble.is_harmless() || (times.is_some() && trouble.passes()) {
                    result.unwrap_or_else(|why| panic!("{what}: {why}"));
                } else if let Err(why) = result {
                    let why = why.to_string();
                    assert!(why.contains("CDN"), "{what}: {why}");
                }
                proxy.clear_faults();
                store().unwrap_or_else(|why| panic!("after {what}: {why}"));
                assert!(s3.get(&bucket, target).is_some_and(|stored| stored == bytes), "after {what}");
            }
        }
    });
}
