//! An open file stays the version that it was when it was opened.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use super::{drop_caches, errno};
use crate::world::mount::{Mount, can_mount};
use crate::world::{World, pattern};

/// Reads places all over a file: each read gives the old bytes or an error. Returns how many gave each.
fn places(file: &File, old: &[u8]) -> (usize, usize) {
    drop_caches();
    let (mut right, mut failed) = (0, 0);
    for offset in (0..old.len() - 1000).step_by(500_000) {
        let mut bytes = vec![0; 1000];
        match file.read_exact_at(&mut bytes, offset as u64) {
            Ok(()) => {
                assert!(bytes == old[offset..offset + 1000], "wrong bytes at {offset}");
                right += 1;
            }
            error => {
                assert_eq!(errno(error), Some(libc::EIO), "at {offset}");
                failed += 1;
            }
        }
    }
    (right, failed)
}

#[test]
fn an_open_file_stays_its_version_and_the_next_open_has_the_new_one() {
    if !can_mount("versions in the mount") {
        return;
    }
    let world = World::new();
    let versions: Vec<Vec<u8>> = (0..4).map(|number| pattern(8_000_000 + number, 3 + number as u64)).collect();
    world.upload("model.bin", &versions[0]);
    let mount = Mount::of(&world.service, &[]);
    let path = mount.path().join(&world.folder).join("model.bin");
    // Nobody reads it before it is replaced.
    let file = File::open(&path).unwrap();
    for version in &versions[1..3] {
        world.upload("model.bin", version);
        assert_eq!(places(&file, &versions[0]), (16, 0));
        assert_eq!(file.metadata().unwrap().len(), 8_000_000);
        assert!(fs::read(&path).unwrap() == *version, "the next open has wrong bytes");
        assert_eq!(fs::metadata(&path).unwrap().len(), version.len() as u64);
    }
    // The generation is gone from the CDN and from the cache's directory; the cache's file is still open.
    assert_eq!(world.keys().iter().filter(|key| key.starts_with("model.bin.") && key.ends_with(".big")).count(), 3);
    assert_eq!(mount.log_text().matches("was replaced").count(), 0);

    // A restarted service knows only the current version.
    world.service.restart();
    world.login();
    assert_eq!(places(&file, &versions[0]), (0, 16));
    assert_eq!(mount.log_text().matches("was replaced by a new upload").count(), 1, "{}", mount.log_text());
    let current = File::open(&path).unwrap();
    assert_eq!(places(&current, &versions[2]), (16, 0));
    world.upload("model.bin", &versions[3]);
    assert_eq!(places(&current, &versions[2]), (16, 0));
}

#[test]
fn an_old_version_that_is_not_cached_is_read_from_its_generation_in_the_cdn() {
    if !can_mount("versions of the CDN in the mount") {
        return;
    }
    let world = World::new();
    let versions: Vec<Vec<u8>> = (0..4).map(|number| pattern(30_000_000 + number, 13 + number as u64)).collect();
    let uploader = world.another_box();
    let upload = |version: &[u8]| assert_eq!(uploader.upload(&world.folder, "model.bin", version).status, 200);
    upload(&versions[0]);
    let mount = Mount::of(&world.service, &[]);
    let path = mount.path().join(&world.folder).join("model.bin");
    let file = File::open(&path).unwrap();
    upload(&versions[1]);
    let count = places(&file, &versions[0]);
    assert_eq!(count, (60, 0));
    // The new version replaces the old one in the cache.
    assert!(fs::read(&path).unwrap() == versions[1]);
    world.cached("model.bin");
    let (right, failed) = places(&file, &versions[0]);
    assert_eq!(failed, 0, "{right} places were right");
    // Only the cached pages are left of the old version.
    upload(&versions[2]);
    upload(&versions[3]);
    places(&file, &versions[0]);
    assert!(fs::read(&path).unwrap() == versions[3]);
    // A model that was removed from the cache can be read on, too.
    let current = File::open(&path).unwrap();
    let removed = world.service.run(&["remove", &format!("{}/model.bin", world.folder)]);
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    assert_eq!(places(&current, &versions[3]), (60, 0));
}

/// Longer than the Resource API's permission counts.
const PERMISSION: Duration = Duration::from_secs(11);

/// The result of a read that the kernel cannot answer itself.
fn reads(file: &File, plain: &[u8]) -> bool {
    places(file, &plain[..plain.len().min(500_000)]) == (1, 0)
}

#[test]
fn reads_of_an_open_file_ask_the_resource_api_now_and_then_and_fail_while_it_is_away() {
    if !can_mount("an open file without the Resource API") {
        return;
    }
    let world = World::new();
    let plain = pattern(40_000_000, 23);
    world.upload("model.bin", &plain);
    let mount = Mount::of(&world.service, &[]);
    let path = mount.path().join(&world.folder).join("model.bin");
    let file = File::open(&path).unwrap();
    let asked = world.api.requests().len();
    assert_eq!(places(&file, &plain), (80, 0));
    let asked = world.api.requests().len() - asked;
    // Once every ten seconds, however slow this machine is.
    assert!(asked <= 8, "{asked} questions for 80 reads");
    // A new login of the same user changes nothing.
    world.login();
    world.api.down();
    thread::sleep(PERMISSION);
    for _ in 0..3 {
        assert!(!reads(&file, &plain));
    }
    assert!(mount.log_text().contains("the small part of the model cannot be fetched"), "{}", mount.log_text());
    assert_eq!(errno(File::open(&path)), Some(libc::EIO));
    // The same file, also after a new upload meanwhile.
    world.api.up();
    assert_eq!(world.another_box().upload(&world.folder, "model.bin", b"a new version").status, 200);
    assert_eq!(places(&file, &plain), (80, 0));
}

#[test]
fn an_open_file_is_read_without_the_resource_api_for_offline_hours() {
    const DAY: i64 = 24 * 3600;
    if !can_mount("an open file that may be read offline") {
        return;
    }
    let world = World::with(|builder| builder.env("OFFLINE_HOURS", "24"));
    let plain = world.keeps("model.bin");
    let mount = Mount::of(&world.service, &[]);
    let path = mount.path().join(&world.folder).join("model.bin");
    let file = File::open(&path).unwrap();
    // The permission of a read counts as that of a load.
    world.shift(&world.kept("model.bin"), &["fetched"], 60 - DAY);
    thread::sleep(PERMISSION);
    assert!(reads(&file, &plain));
    world.shift(&world.kept("model.bin"), &["fetched"], -60);
    world.api.down();
    thread::sleep(PERMISSION);
    assert!(reads(&file, &plain));
    world.shift(&world.kept("model.bin"), &["fetched"], -DAY);
    thread::sleep(PERMISSION);
    assert!(!reads(&file, &plain));
    assert!(mount.log_text().contains("OFFLINE_HOURS have passed"), "{}", mount.log_text());
    world.api.up();
    assert!(reads(&file, &plain));
}

#[test]
fn a_refusal_of_the_resource_api_ends_the_reads_of_an_open_file() {
    if !can_mount("an open file that the Resource API refuses") {
        return;
    }
    let world = World::new();
    let plain = pattern(3_000_000, 24);
    world.upload("model.bin", &plain);
    let mount = Mount::of(&world.service, &[]);
    let path = mount.path().join(&world.folder).join("model.bin");
    let file = File::open(&path).unwrap();
    assert_eq!(places(&file, &plain), (6, 0));
    world.api.remove_file(&world.folder, "model.bin.small");
    thread::sleep(PERMISSION);
    drop_caches();
    assert!(file.read_at(&mut [0; 1000], 2_000_000).is_err());
    assert_eq!(errno(File::open(&path)), Some(libc::ENOENT));
}
