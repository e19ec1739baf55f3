//! Models as files: reads through `loader mount` against `/load` of the same model, both from a warm cache.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};

use crate::commands;
use crate::figure::{Better, Figure, Goal, median};
use crate::http;
use crate::plan::{Plan, size};
use crate::report::Report;
use crate::world::mount::{Mount, mount_binary};
use crate::world::resource_api::ResourceApi;
use crate::world::service::Service;
use crate::world::weed::Weed;
use crate::world::{PatternReader, sha256_hex_of};

const NAME: &str = "mounted.bin";

/// The size of a random read, in bytes.
const READ: usize = 64 * 1024;

/// Random reads per round.
const READS: usize = 200;

/// Measures both kinds of reads.
pub fn measure(plan: &Plan, weed: &Weed, report: &mut Report) {
    if let Err(why) = can_mount() {
        return report.leave_out(&format!("reads of the mount: {why}"));
    }
    report.says("reads of the mount");
    let bucket = weed.s3.new_bucket("bench");
    let api = ResourceApi::start();
    api.put_file("", "cdn.yaml", weed.s3.cdn_yaml());
    let service = Service::builder().api(&api).timeout(Duration::from_secs(600)).start();
    assert_eq!(service.login().status, 200);
    let reply = service.upload_reader(&bucket, NAME, plan.main, PatternReader::new(plan.main, 17));
    assert_eq!(reply.status, 200, "{}", reply.text());
    // The upload has left the model in the cache. A read of it is not the first.
    http::load(service.address(), &bucket, NAME, plan.main);
    let mount = Mount::of(&service, &[]);
    let path = mount.path().join(&bucket).join(NAME);

    let of = |what: &str| format!("{what}, {}", size(plan.main));
    let mut all =
        Figure::new(of("cat of a mounted model"), "s", Better::Low).limited_by("warm load").goal(Goal::TimesLimit(0.6));
    let mut random = Figure::new(of("a random 64 KiB of a mounted model"), "ms", Better::Low).goal(Goal::AtMost(3.0));
    for round in 0..plan.rounds {
        for turn in 0..2 {
            commands::settle();
            if (turn + round).is_multiple_of(2) {
                forget_plaintext(&path);
                all.loader.push(cat(&path));
            } else {
                all.limit.push(http::load(service.address(), &bucket, NAME, plan.main).total);
            }
        }
        forget_plaintext(&path);
        random.loader.extend(median(&random_reads(&path, plan.main, round as u64)));
    }
    let right = sha256_hex_of(PatternReader::new(plan.main, 17)).expect("a pattern can be read");
    let read = sha256_hex_of(File::open(&path).expect("the model is there")).expect("the model can be read");
    assert_eq!(read, right, "the mount shows other bytes");
    report.add(all);
    report.add(random);
    weed.delete_bucket(&bucket);
}

/// The error says why not.
fn can_mount() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() || File::options().read(true).write(true).open("/dev/fuse").is_err() {
        return Err("only root can mount, with /dev/fuse".to_owned());
    }
    let help = Command::new(mount_binary()).args(["mount", "--help"]).output();
    if help.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    Err("the program has no mount: name one that has in LOADER_MOUNT_BINARY".to_owned())
}

/// Makes the kernel forget what it has cached of the mounted file. The ciphertext in the model cache stays where it is.
fn forget_plaintext(path: &Path) {
    let file = File::open(path).expect("the model is there");
    fadvise(&file, 0, None, Advice::DontNeed).expect("the kernel takes advice");
}

fn cat(path: &Path) -> f64 {
    let started = Instant::now();
    let status = Command::new("cat").arg(path).stdin(Stdio::null()).stdout(Stdio::null()).status();
    assert!(status.expect("cat is there").success(), "cat failed");
    started.elapsed().as_secs_f64()
}

/// How many milliseconds each of some reads took, at places all over the file.
fn random_reads(path: &Path, length: u64, seed: u64) -> Vec<f64> {
    let file = File::open(path).expect("the model is there");
    let mut place = seed;
    let mut buffer = vec![0; READ];
    (0..READS)
        .map(|_| {
            place = place.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let offset = (place >> 20) % (length / READ as u64) * READ as u64;
            let started = Instant::now();
            file.read_exact_at(&mut buffer, offset).expect("the model can be read");
            started.elapsed().as_secs_f64() * 1000.0
        })
        .collect()
}
