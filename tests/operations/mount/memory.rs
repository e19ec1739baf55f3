//! The memory and time that models in the mount cost.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::{drop_caches, run, text};
use crate::world::mount::{Mount, can_mount};
use crate::world::{World, in_ci, pattern, sha256_hex, skip};

/// Maps a file, prints its hash, and waits.
const MAP: &str = "import hashlib, mmap, sys
with open(sys.argv[1], 'rb') as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as m:
    print(hashlib.sha256(m).hexdigest(), flush=True)
    sys.stdin.read()
";

/// The sum of a field of `smaps` over all mappings of a file, in KiB.
fn mapped_kib(child: &Child, path: &Path, field: &str) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{}/smaps", child.id())).unwrap();
    let mut is_of_file = false;
    let mut sum = 0;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap();
        if first.contains('-') {
            is_of_file = line.ends_with(text(path));
        } else if is_of_file && first == format!("{field}:") {
            sum += words.next().unwrap().parse::<u64>().unwrap();
        }
    }
    sum
}

#[test]
fn four_programs_that_map_a_model_have_it_in_memory_once() {
    if !can_mount("one copy for all programs") {
        return;
    }
    let world = World::new();
    let plain = pattern(64 << 20, 31);
    world.upload("model.bin", &plain);
    let mount = Mount::of(&world.service, &[]);
    let path = mount.path().join(&world.folder).join("model.bin");
    let sum = sha256_hex(&plain);
    let mut programs: Vec<Child> = (0..4)
        .map(|_| {
            let mut command = Command::new("python3");
            command.args(["-c", MAP]).arg(&path).stdin(Stdio::piped()).stdout(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    for program in &mut programs {
        let mut line = String::new();
        BufReader::new(program.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), sum);
    }
    let size = (plain.len() >> 10) as u64;
    for program in &programs {
        assert_eq!(mapped_kib(program, &path, "Rss"), size);
    }
    // `Pss` counts each program's share, so this is what all of them take together.
    let shared: u64 = programs.iter().map(|program| mapped_kib(program, &path, "Pss")).sum();
    assert!((size * 99 / 100..=size * 101 / 100).contains(&shared), "{shared} KiB in all for {size} KiB");
    let cached: u64 =
        String::from_utf8(run("fincore", &["-b", "-n", "-o", "RES", text(&path)])).unwrap().trim().parse().unwrap();
    assert_eq!(cached, plain.len() as u64);
    for mut program in programs {
        drop(program.stdin.take());
        assert!(program.wait().unwrap().success());
    }
}

/// A control group whose processes may use this much memory.
struct Limited(PathBuf);

impl Limited {
    fn new(bytes: u64) -> Option<Self> {
        let name = format!("loader-test-{}", std::process::id());
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = own.lines().find_map(|line| line.split_once(":memory:")).map_or("", |(_, path)| path);
        [format!("/sys/fs/cgroup/memory{own}"), "/sys/fs/cgroup".to_owned()].into_iter().find_map(|parent| {
            let group = Path::new(&parent).join(&name);
            let limit = |file: &str| fs::write(group.join(file), bytes.to_string());
            fs::create_dir(&group).ok()?;
            if limit("memory.max").or_else(|_| limit("memory.limit_in_bytes")).is_ok() {
                return Some(Self(group));
            }
            let _ = fs::remove_dir(group);
            None
        })
    }

    /// Runs Python code on a file.
    fn python(&self, script: &str, path: &Path) -> (ExitStatus, String) {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ >\"$0/cgroup.procs\" && exec python3 -c \"$1\" \"$2\""]);
        command.arg(&self.0).arg(script).arg(path).stdin(Stdio::null());
        let output = command.output().unwrap();
        (output.status, String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_program_maps_a_model_that_is_larger_than_its_memory_may_be() {
    const TEST: &str = "a model that is larger than the memory";
    if !can_mount(TEST) {
        return;
    }
    let Some(limited) = Limited::new(64 << 20) else { return skip(TEST, "no control group can be created") };
    let world = World::new();
    let plain = pattern(160 << 20, 32);
    world.upload("model.bin", &plain);
    let mount = Mount::of(&world.service, &[]);
    let path = mount.path().join(&world.folder).join("model.bin");
    drop_caches();
    let (status, said) = limited.python(MAP, &path);
    assert!(status.success(), "{status}");
    assert_eq!(said, sha256_hex(&plain));
    // A copy of the model would not fit.
    let (status, _) = limited.python("import sys; print(len(open(sys.argv[1], 'rb').read()))", &path);
    assert!(!status.success());
}

/// What the mount may take while nothing is read, in KiB. Most of it is the program itself, which is larger as Cargo builds it.
const IDLE: u64 = 12 << 10;

/// The same for the product.
const IDLE_PRODUCT: u64 = 5 << 10;

/// What mount and service together may take over that, in KiB.
const READING: u64 = 24 << 10;

fn time_of(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

#[test]
fn a_large_model_costs_little_memory_and_not_much_time() {
    if !can_mount("figures of the mount") {
        return;
    }
    // A single heap, as with the product's libc.
    let world = World::with(|builder| builder.env("MALLOC_ARENA_MAX", "1").env("MALLOC_MMAP_THRESHOLD_", "65536"));
    let size: usize = if in_ci() { 1 << 30 } else { 64 << 20 };
    let plain = pattern(size, 7);
    world.upload("model.bin", &plain);
    world.service.restart();
    world.login();
    let mut mount = Mount::of(&world.service, &[]);
    let (idle_mount, idle_service) = (mount.memory_kib("VmRSS"), world.service.vm_rss_kib());
    world.service.reset_hwm();
    let path = mount.path().join(&world.folder).join("model.bin");

    // Each is read three times, in turns; the quickest counts.
    let turns = (0..3).map(|_| {
        let load = || world.service.load_to(&world.folder, "model.bin", &mut io::sink()).received;
        let by_http = time_of(|| assert_eq!(load(), size as u64));
        let cat = || Command::new("cat").arg(&path).stdout(Stdio::null()).status().unwrap();
        let by_cat = time_of(|| assert!(cat().success()));
        // The kernel forgets the mounted file, but not the one in the service's cache.
        rustix::fs::fadvise(File::open(&path).unwrap(), 0, None, rustix::fs::Advice::DontNeed).unwrap();
        (by_http, by_cat)
    });
    let (by_http, by_cat): (Vec<Duration>, Vec<Duration>) = turns.unzip();
    let (by_http, by_cat) = (by_http.into_iter().min().unwrap(), by_cat.into_iter().min().unwrap());

    drop_caches();
    fs::read(world.cached("model.bin")).unwrap();
    let file = File::open(&path).unwrap();
    let mut bytes = vec![0; 64 << 10];
    let form = format!(r#"{{"folder":"{}"}}"#, world.folder);
    // In turns with the same bytes over HTTP.
    let turns = (0..101).map(|index| {
        let offset = index * 37 % 101 * (size / 101);
        let took = time_of(|| file.read_exact_at(&mut bytes, offset as u64).unwrap());
        assert!(bytes == plain[offset..offset + bytes.len()]);
        let range = format!("bytes={offset}-{}", offset + bytes.len() - 1);
        let headers = [("Range", &*range), ("Content-Type", "application/json")];
        let by_http = time_of(|| {
            let reply = world.service.call("POST", "/load/model.bin", &headers, form.as_bytes()).unwrap();
            assert_eq!((reply.status, reply.body.len()), (206, bytes.len()));
        });
        (took, by_http)
    });
    let (mut took, mut range_by_http): (Vec<Duration>, Vec<Duration>) = turns.unzip();
    took.sort();
    range_by_http.sort();
    let grown = (world.service.vm_hwm_kib() + mount.memory_kib("VmHWM")).saturating_sub(idle_mount + idle_service);
    println!(
        "{size} bytes: /load {by_http:?}, cat {by_cat:?}; 64 KiB anywhere {:?} (median), {:?} (worst), by HTTP {:?} (median); idle \
         {idle_mount} KiB and the service's {idle_service} KiB, {grown} KiB more while it is read",
        took[50], took[100], range_by_http[50]
    );
    assert!(idle_mount <= IDLE, "{idle_mount} KiB");
    assert!(grown <= READING, "{grown} KiB over idle");
    // The product, without other work on the machine.
    if std::env::var_os("MOUNT_STRICT").is_some() {
        assert!(idle_mount <= IDLE_PRODUCT, "{idle_mount} KiB");
        assert!(by_http.as_secs_f64() >= 0.3 * by_cat.as_secs_f64(), "cat {by_cat:?}, /load {by_http:?}");
        // By HTTP each request asks the Resource API; an open file does so every 10 s.
        assert!(took[50] <= range_by_http[50], "64 KiB: {:?}, by HTTP {:?}", took[50], range_by_http[50]);
    }
    mount.kill();
}
