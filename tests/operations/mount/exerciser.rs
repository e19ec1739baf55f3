//! Random reads in the manner of `fsx`, while everything happens that can. `MOUNT_SECONDS` says for how long, `MOUNT_SEED`
//! repeats the choices of a run.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::{HANG, drop_caches};
use crate::world::mount::{Mount, can_mount};
use crate::world::tcp::lock;
use crate::world::{Dice, World, eventually, pattern};

/// No call may take this long.
const LIMIT: Duration = Duration::from_secs(30);

/// The length of the first version. Each new one is a byte longer, so that a file's length tells its version.
const FIRST: usize = 12_000_000;

/// The number of versions that are kept for comparison.
const KEPT: usize = 24;

#[derive(Default)]
struct Run {
    versions: Mutex<HashMap<usize, Arc<Vec<u8>>>>,
    is_over: AtomicBool,
    reads: AtomicU64,
    reads_of_old: AtomicU64,
    failures: Mutex<HashMap<i32, u64>>,
    newest: AtomicU64,
    slowest: Mutex<Duration>,
}

impl Run {
    fn timed<T>(&self, what: &str, call: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = call();
        let took = started.elapsed();
        assert!(took < LIMIT, "{what} took {took:?}");
        let mut slowest = lock(&self.slowest);
        *slowest = took.max(*slowest);
        result
    }

    /// Makes a new version; nobody has it before it is uploaded.
    fn next_version(&self) -> Arc<Vec<u8>> {
        let mut versions = lock(&self.versions);
        let number = self.newest.load(Ordering::Relaxed) as usize + 1;
        let bytes = Arc::new(pattern(FIRST + number, number as u64));
        versions.insert(bytes.len(), Arc::clone(&bytes));
        versions.retain(|length, _| *length + KEPT > bytes.len());
        self.newest.store(number as u64, Ordering::Relaxed);
        bytes
    }

    fn failed(&self, error: &io::Error) {
        let number = error.raw_os_error().unwrap();
        // The mount is being replaced, nobody is logged in, the service is away, or an old version is gone.
        let allowed = [libc::EIO, libc::ENOTCONN, libc::ECONNABORTED, libc::ENOENT, libc::EACCES, libc::ETIMEDOUT];
        assert!(allowed.contains(&number), "{error}");
        *lock(&self.failures).entry(number).or_default() += 1;
        thread::sleep(Duration::from_millis(20));
    }

    /// Opens the file and reads at random places, again and again.
    fn exercise(&self, path: &Path, dice: &mut Dice) {
        while !self.is_over.load(Ordering::Relaxed) {
            let opened = self.timed("an open", || {
                let file = File::open(path)?;
                let length = file.metadata()?.len() as usize;
                Ok((file, length))
            });
            match opened {
                Ok((file, length)) => self.read_file(&file, length, dice),
                Err(error) => self.failed(&error),
            }
        }
    }

    fn read_file(&self, file: &File, length: usize, dice: &mut Dice) {
        let Some(expected) = lock(&self.versions).get(&length).cloned() else {
            panic!("no version has {length} bytes")
        };
        let mut next = 0;
        for _ in 0..dice.below(200) {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            // Most reads are anywhere; the others continue.
            let offset = if dice.below(3) == 0 { next } else { dice.below(length + 1000) };
            let wanted = [1, 4096, 65_536, 300_000][dice.below(4)] + dice.below(5000);
            let mut bytes = vec![0; wanted];
            match self.timed("a read", || file.read_at(&mut bytes, offset as u64)) {
                Ok(count) => {
                    let right = &expected[offset.min(length)..(offset + wanted).min(length)];
                    // A signal, or an error after the first pages, may make a read short, but not empty.
                    assert!(count > 0 || right.is_empty(), "nothing at {offset} of {length}");
                    assert!(bytes[..count] == right[..count], "wrong bytes in {count} at {offset} of {length}");
                    self.reads.fetch_add(1, Ordering::Relaxed);
                    let is_old = length < FIRST + self.newest.load(Ordering::Relaxed) as usize;
                    self.reads_of_old.fetch_add(is_old.into(), Ordering::Relaxed);
                    next = offset + count;
                }
                Err(error) => return self.failed(&error),
            }
        }
    }
}

#[test]
fn random_reads_are_right_whatever_happens_meanwhile() {
    if !can_mount("random reads of the mount") {
        return;
    }
    let seconds = std::env::var("MOUNT_SECONDS").map_or(10, |text| text.parse().unwrap());
    let mut dice = Dice::new("MOUNT_SEED");
    let world = World::new();
    let other_box = world.another_box();
    let run = Run::default();
    world.upload("model.bin", &run.next_version());
    let mut mount = Mount::of(&world.service, &["--timeout", "20"]);
    let path = mount.path().join(&world.folder).join("model.bin");
    let mut happened = [0; 6];
    thread::scope(|scope| {
        for _ in 0..3 {
            let (run, path, mut dice) = (&run, &path, dice.split());
            scope.spawn(move || {
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    run.exercise(path, &mut dice);
                }));
                run.is_over.store(true, Ordering::Relaxed);
                result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            });
        }
        let started = Instant::now();
        let mut kinds = 0..6;
        while started.elapsed() < Duration::from_secs(seconds) && !run.is_over.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(300 + dice.below(700) as u64));
            // Each kind once, then at random.
            let kind = kinds.next().unwrap_or_else(|| dice.below(6));
            match kind {
                0 => world.upload("model.bin", &run.next_version()),
                1 => drop_caches(),
                2 => assert_eq!(other_box.upload(&world.folder, "model.bin", &run.next_version()).status, 200),
                3 => drop(world.service.run(&["remove", &format!("{}/model.bin", world.folder)])),
                4 => {
                    world.service.restart();
                    world.login();
                }
                _ => {
                    mount.kill();
                    mount.start_again(&world.service);
                }
            }
            happened[kind] += 1;
        }
        run.is_over.store(true, Ordering::Relaxed);
    });
    let newest = run.newest.load(Ordering::Relaxed) as usize;
    eventually(HANG, "the newest version is there", || {
        fs::read(&path).is_ok_and(|bytes| bytes == **lock(&run.versions).get(&(FIRST + newest)).unwrap())
    });
    let [uploads, drops, other_uploads, removals, restarts, kills] = happened;
    let (reads, old) = (run.reads.load(Ordering::Relaxed), run.reads_of_old.load(Ordering::Relaxed));
    println!(
        "{reads} reads, {old} of them of old versions; slowest call {:?}; failures by errno {:?}; meanwhile \
         {uploads}+{other_uploads} uploads, {removals} removals, {drops} times without page cache, {restarts} restarts, {kills} kills",
        lock(&run.slowest),
        lock(&run.failures),
    );
    assert!(reads > 10 && old > 0, "{reads} reads, {old} of them of old versions");
}
