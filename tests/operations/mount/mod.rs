//! `loader mount` with the kernel's FUSE, used by the programs that people use on files.

mod compose;
mod exerciser;
mod memory;
mod plaintext;
mod programs;
mod runtimes;
mod versions;

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::world::mount::{Mount, can_mount};
use crate::world::{World, in_ci, pattern, sha256_hex};

/// The limit for what must be quick whatever happens.
const QUICK: Duration = Duration::from_secs(10);

/// Only a hang takes longer.
const HANG: Duration = Duration::from_secs(60);

fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Drops what the kernel has cached of files.
fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn programs_read_the_plaintext_in_any_order() {
    if !can_mount("reads of the mount") {
        return;
    }
    let world = World::new();
    let size = if in_ci() { 300_000_000 } else { 20_000_000 } + 4321;
    let plain = pattern(size, 71);
    world.upload("model.bin", &plain);
    world.upload("empty.bin", b"");
    let mount = Mount::of(&world.service, &[]);
    let folder = mount.path().join(&world.folder);
    let path = folder.join("model.bin");

    assert_eq!(fs::metadata(&path).unwrap().len(), size as u64);
    assert!(run("cat", &[text(&path)]) == plain, "cat");
    assert!(fs::read(folder.join("empty.bin")).unwrap().is_empty());
    let sum = String::from_utf8(run("sha256sum", &[text(&path)])).unwrap();
    assert_eq!(sum.split_whitespace().next(), Some(sha256_hex(&plain).as_str()));
    let copy = tempfile::tempdir().unwrap();
    run("cp", &["-r", text(&folder), text(copy.path())]);
    assert!(fs::read(copy.path().join(&world.folder).join("model.bin")).unwrap() == plain, "cp");
    let script = "import mmap, sys, hashlib\n\
                  with open(sys.argv[1], 'rb') as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as m:\n    \
                  print(hashlib.sha256(m).hexdigest())";
    let sum = String::from_utf8(run("python3", &["-c", script, text(&path)])).unwrap();
    assert_eq!(sum.trim(), sha256_hex(&plain));

    // Reads far apart and past the end, without the kernel's cache.
    drop_caches();
    let file = File::open(&path).unwrap();
    let mut place = 12345_usize;
    for round in 0..200 {
        place = place.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (start, length) = ((place >> 20) % (size + 1000), (place >> 8) % 200_000);
        let mut bytes = vec![0; length];
        let mut done = 0;
        while let count @ 1.. = file.read_at(&mut bytes[done..], (start + done) as u64).unwrap() {
            done += count;
        }
        let expected = &plain[start.min(size)..(start + length).min(size)];
        assert!(bytes[..done] == *expected, "round {round}: {length} bytes at {start}");
    }

    // Several readers, each from a different offset to the end.
    drop_caches();
    thread::scope(|scope| {
        for reader in 0..4 {
            let (path, plain) = (&path, &plain);
            scope.spawn(move || {
                let mut file = File::open(path).unwrap();
                let start = plain.len() / 4 * reader;
                file.seek(SeekFrom::Start(start as u64)).unwrap();
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes).unwrap();
                assert!(bytes == plain[start..], "reader {reader}");
            });
        }
    });
}

#[test]
fn listings_and_attributes_are_those_of_a_read_only_file_system() {
    if !can_mount("listings of the mount") {
        return;
    }
    let world = World::new();
    world.upload("one.bin", &pattern(100_000, 1));
    let before = SystemTime::now();
    world.upload("two words.bin", &pattern(200_000, 2));
    let mount = Mount::of(&world.service, &["--mode", "0444", "--group", "nogroup"]);
    let names = |path: &Path| -> Vec<String> {
        let entries = fs::read_dir(path).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(names(mount.path()), [world.folder.as_str()]);
    let folder = mount.path().join(&world.folder);
    assert_eq!(names(&folder), ["one.bin", "two words.bin"]);
    let found = String::from_utf8(run("find", &[text(mount.path()), "-type", "f", "-size", "+150k"])).unwrap();
    assert_eq!(found, format!("{}\n", folder.join("two words.bin").display()));

    let metadata = fs::metadata(folder.join("two words.bin")).unwrap();
    assert_eq!((metadata.len(), metadata.mode() & 0o777, metadata.is_file()), (200_000, 0o444, true));
    let group = fs::read_to_string("/etc/group").unwrap();
    let group = group.lines().find(|line| line.starts_with("nogroup:")).unwrap().split(':').nth(2).unwrap();
    assert_eq!(metadata.gid().to_string(), group);
    // The time has whole seconds.
    let modified = metadata.modified().unwrap();
    assert!(modified + Duration::from_secs(1) >= before && modified <= SystemTime::now(), "{modified:?}");
    assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o555);

    assert_eq!(errno(fs::write(folder.join("new.bin"), b"x")), Some(libc::EROFS));
    assert_eq!(errno(fs::remove_file(folder.join("one.bin"))), Some(libc::EROFS));
    run("df", &[text(mount.path())]);
    let tar = run("tar", &["-C", text(mount.path()), "-cf", "-", "."]);
    assert!(tar.len() > 300_000);

    // A model that is not listed is there when it is asked for by name.
    world.forget("one.bin");
    world.service.restart();
    world.login();
    assert_eq!(fs::read(folder.join("one.bin")).unwrap(), pattern(100_000, 1));

    let started = Instant::now();
    for missing in ["missing.bin", "no/such", "."] {
        let path = folder.join(missing);
        if missing != "." {
            assert!(matches!(errno(File::open(path)), Some(libc::ENOENT)), "{missing}");
        }
    }
    assert_eq!(errno(fs::metadata(mount.path().join("Not-A-Bucket"))), Some(libc::ENOENT));
    assert!(started.elapsed() < QUICK, "{:?}", started.elapsed());
}

#[test]
fn sigterm_unmounts_and_a_killed_mount_is_cleaned_up_by_the_next() {
    if !can_mount("the end of the mount") {
        return;
    }
    let world = World::new();
    let plain = pattern(3_000_000, 5);
    world.upload("model.bin", &plain);
    let mut mount = Mount::of(&world.service, &[]);
    let path = mount.path().join(&world.folder).join("model.bin");
    assert!(fs::read(&path).unwrap() == plain);

    mount.kill();
    assert!(mount.is_mounted());
    assert_eq!(errno(fs::read_dir(mount.path())), Some(libc::ENOTCONN));
    mount.start_again(&world.service);
    assert!(fs::read(&path).unwrap() == plain);

    // Open files can be read on, but nobody can open them any more.
    let file = File::open(&path).unwrap();
    mount.terminate();
    crate::world::eventually(QUICK, "it is unmounted", || !mount.is_mounted());
    let mut bytes = vec![0; 1000];
    file.read_exact_at(&mut bytes, 2_000_000).unwrap();
    assert!(bytes == plain[2_000_000..2_001_000]);
    assert!(!path.exists());
    drop(file);
    let started = Instant::now();
    assert!(mount.wait().success());
    assert!(started.elapsed() < Duration::from_secs(8), "it did not end with the last open file");
}

#[test]
fn a_service_that_is_away_is_an_error_and_no_hang() {
    if !can_mount("a mount without its service") {
        return;
    }
    let world = World::new();
    let plain = pattern(5_000_000, 6);
    world.upload("model.bin", &plain);
    let mount = Mount::of(&world.service, &["--timeout", "20"]);
    let path = mount.path().join(&world.folder).join("model.bin");
    let file = File::open(&path).unwrap();
    let mut bytes = vec![0; 1000];
    file.read_exact_at(&mut bytes, 0).unwrap();

    world.service.kill();
    let started = Instant::now();
    let away = [Some(libc::EIO), Some(libc::ETIMEDOUT)];
    assert!(away.contains(&errno(file.read_exact_at(&mut bytes, 4_000_000))));
    assert!(away.contains(&errno(File::open(&path))));
    assert!(away.contains(&errno(fs::read_dir(mount.path()).map(|_| ()))));
    assert!(started.elapsed() < Duration::from_secs(25), "{:?}", started.elapsed());

    // The mount is a client like any other: without a login nothing can be read.
    world.service.restart();
    assert_eq!(errno(file.read_exact_at(&mut bytes, 4_000_000)), Some(libc::EACCES));
    world.login();
    file.read_exact_at(&mut bytes, 4_000_000).unwrap();
    assert!(bytes == plain[4_000_000..4_001_000]);
    // The kernel has these bytes in its cache, so it asks nobody.
    world.service.kill();
    file.read_exact_at(&mut bytes, 4_000_000).unwrap();
}
