//! `OFFLINE_HOURS`: models load again while the Resource API is away, for those who may, and for so long only.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::world::resource_api::{EMAIL, Fault, PASSWORD};
use crate::world::s3_fault::Fault as CdnFault;
use crate::world::wall_clock::WallClock;
use crate::world::{World, eventually, pattern};

/// Only a hang takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

fn world() -> World {
    World::with(|builder| builder.env("OFFLINE_HOURS", "24").env("HARDWARE_ID", "box 7"))
}

impl World {
    pub fn kept(&self, name: &str) -> PathBuf {
        let mut path = self.service.cache_file(&self.folder, name).into_os_string();
        path.push(".small.json");
        path.into()
    }

    fn clock(&self) -> PathBuf {
        self.service.cache_dir().join(".clock.json")
    }

    /// Adds `seconds` to fields of a record.
    pub fn shift(&self, path: &PathBuf, fields: &[&str], seconds: i64) {
        let mut record: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        for field in fields {
            record[field] = json!(record[field].as_i64().unwrap() + seconds);
        }
        fs::write(path, record.to_string()).unwrap();
    }

    /// Uploads a model and loads it, so that it can be loaded offline.
    pub fn keeps(&self, name: &str) -> Vec<u8> {
        let bytes = pattern(200_000, name.len() as u64);
        self.upload(name, &bytes);
        self.loads(name, &bytes);
        assert!(self.kept(name).exists());
        bytes
    }

    fn refuses(&self, name: &str, why: &str) {
        let reply = self.service.load(&self.folder, name);
        assert_eq!(reply.status, 500);
        assert!(reply.detail().contains(why), "{}", reply.detail());
    }

    fn login_refused(&self, password: &str, why: &str) {
        let reply = self.service.login_as(EMAIL, password);
        assert_eq!(reply.status, 401, "{}", reply.text());
        assert!(reply.detail().contains(why) && !reply.detail().contains(password), "{}", reply.detail());
    }
}

#[test]
fn a_model_that_was_loaded_is_loaded_again_without_the_api_also_after_a_restart() {
    let world = world();
    let warm = world.keeps("warm.bin");
    let cold = pattern(300_000, 5);
    world.upload("cold.bin", &cold);
    world.forget("cold.bin");
    world.loads("cold.bin", &cold);
    world.upload("never-loaded.bin", b"model");
    assert_eq!(fs::metadata(world.kept("warm.bin")).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(world.clock()).unwrap().mode() & 0o777, 0o600);
    let small = world.api.file(&world.folder, "warm.bin.small").unwrap();
    let kept: Value = serde_json::from_slice(&fs::read(world.kept("warm.bin")).unwrap()).unwrap();
    // Nothing but an initialization vector of 16 bytes and the padded ciphertext, in base64.
    assert_eq!(kept["encrypted"].as_str().unwrap().len(), (16 + (small.len() / 16 + 1) * 16).div_ceil(3) * 4);
    assert_eq!(kept.as_object().unwrap().len(), 2, "{kept}");

    world.api.down();
    world.loads("warm.bin", &warm);
    world.service.restart();
    world.refuses("warm.bin", "log in first");
    world.login_refused("wrong", "does not open");
    assert_eq!(world.service.login_as("another@example.com", PASSWORD).status, 401);
    world.login();
    assert_eq!(world.service.get("/status").json()["authenticated"], true);
    world.loads("warm.bin", &warm);
    world.loads("cold.bin", &cold);
    world.refuses("never-loaded.bin", "nothing is stored");
    assert!(world.service.log_text().contains("is loaded offline"));

    // What cannot be loaded offline asks the API at once, with the credentials of the login.
    world.api.up();
    world.api.clear_requests();
    world.loads("never-loaded.bin", b"model");
    assert_eq!((world.api.count("/login"), world.api.count("/resources/get/never")), (1, 0));
    world.loads("warm.bin", &warm);
    assert_eq!(world.api.count("/login"), 1);
}

#[test]
fn nothing_is_kept_unless_asked_for() {
    let world = World::new();
    world.upload("m.bin", b"model");
    world.loads("m.bin", b"model");
    assert!(!world.kept("m.bin").exists() && !world.clock().exists());
    world.api.down();
    let detail = world.service.load(&world.folder, "m.bin").detail();
    assert!(detail.contains("unreachable") && !detail.contains("offline"), "{detail}");
    world.login_refused(PASSWORD, "unreachable");
    // Kept parts are deleted once `OFFLINE_HOURS` is switched off.
    world.api.up();
    world.service.set_env("OFFLINE_HOURS", "1");
    world.service.restart();
    world.login();
    world.loads("m.bin", b"model");
    assert!(world.kept("m.bin").exists() && world.clock().exists());
    world.service.set_env("OFFLINE_HOURS", "0");
    world.service.restart();
    assert!(!world.kept("m.bin").exists() && !world.clock().exists());
}

#[test]
fn other_hardware_opens_nothing() {
    let world = world();
    let bytes = world.keeps("m.bin");
    world.api.down();
    world.service.set_env("HARDWARE_ID", "box 8");
    world.service.restart();
    world.login_refused(PASSWORD, "does not open");
    world.service.set_env("HARDWARE_ID", "box 7");
    world.service.restart();
    world.login();
    world.loads("m.bin", &bytes);
}

#[test]
fn kept_parts_that_are_too_old_are_deleted() {
    const DAY: i64 = 24 * 3600;
    let world = world();
    let old = world.keeps("old.bin");
    let young = world.keeps("young.bin");
    world.api.down();
    world.shift(&world.kept("old.bin"), &["fetched"], 60 - DAY);
    world.loads("old.bin", &old);
    world.shift(&world.kept("old.bin"), &["fetched"], -60);
    world.refuses("old.bin", "OFFLINE_HOURS have passed");
    assert!(!world.kept("old.bin").exists());
    world.loads("young.bin", &young);
    // The box was off for a day: at the start nothing may be left.
    world.service.kill();
    world.shift(&world.clock(), &["wall", "now"], -DAY);
    world.shift(&world.kept("young.bin"), &["fetched"], -DAY);
    world.service.restart();
    assert!(!world.kept("young.bin").exists());
    world.login_refused(PASSWORD, "nothing is stored");
}

#[test]
fn setting_the_clock_back_does_not_lengthen_it() {
    let world = world();
    let bytes = world.keeps("m.bin");
    world.api.down();
    // Shifting the record forward has the same effect as setting the clock back.
    let wall = ["wall", "wall_of_boot"];
    world.shift(&world.clock(), &wall, 1000);
    world.refuses("m.bin", "was set back");
    world.login_refused(PASSWORD, "was set back");
    world.shift(&world.clock(), &wall, -1000);
    world.loads("m.bin", &bytes);
    // A part from the future was written under another clock.
    world.shift(&world.kept("m.bin"), &["fetched"], 1000);
    world.refuses("m.bin", "nothing is stored");
    assert!(!world.kept("m.bin").exists());
    // Without the clock's record the age of a part is unknown. After an answer of the API it does not matter.
    world.api.up();
    world.login();
    world.loads("m.bin", &bytes);
    world.shift(&world.clock(), &wall, 1000);
    world.loads("m.bin", &bytes);
    world.api.down();
    world.loads("m.bin", &bytes);
    fs::remove_file(world.clock()).unwrap();
    world.refuses("m.bin", "nothing is stored");
    assert!(!world.kept("m.bin").exists());
}

#[test]
fn a_board_that_starts_in_1970_loads_offline_for_what_is_left_of_the_hours() {
    const HOUR: i64 = 3600;
    let Some(clock) = WallClock::at("a_board_that_starts_in_1970_loads_offline", 10) else { return };
    let world = world();
    let bytes = world.keeps("m.bin");
    world.api.down();
    world.service.kill();
    // Makes the record the previous boot's.
    let mut record: Value = serde_json::from_slice(&fs::read(world.clock()).unwrap()).unwrap();
    let known = record["now"].as_i64().unwrap();
    record["boot"] = json!("00000000-0000-0000-0000-000000000000");
    fs::write(world.clock(), record.to_string()).unwrap();
    // As if the part had been fetched before this boot.
    let uptime = fs::read_to_string("/proc/uptime").unwrap().split('.').next().unwrap().parse().unwrap();
    world.shift(&world.kept("m.bin"), &["fetched"], uptime);
    let (name, value) = clock.variable();
    world.service.set_env(name, value);
    world.service.restart();
    world.login();
    world.loads("m.bin", &bytes);
    let record: Value = serde_json::from_slice(&fs::read(world.clock()).unwrap()).unwrap();
    let now = record["now"].as_i64().unwrap();
    assert!(record["wall_of_boot"].as_u64().unwrap() < 1000 && now >= known + uptime, "{record}");
    // After a restart the clock is set.
    world.service.restart();
    world.login();
    clock.set_right();
    world.loads("m.bin", &bytes);
    world.shift(&world.kept("m.bin"), &["fetched"], -23 * HOUR);
    world.loads("m.bin", &bytes);
    world.shift(&world.kept("m.bin"), &["fetched"], -HOUR);
    world.refuses("m.bin", "OFFLINE_HOURS have passed");
}

#[test]
fn a_user_whom_the_api_refuses_is_refused_and_the_kept_part_is_deleted() {
    let world = world();
    let gone = r#"{"ErrorCode":70,"Message":"No such file."}"#;
    for (status, body) in [(401, ""), (403, ""), (404, ""), (409, gone)] {
        let bytes = world.keeps("m.bin");
        world.api.fault("/resources/get/", Fault::Status(status, body.into()), None);
        assert_eq!(world.service.load(&world.folder, "m.bin").status, 500, "{status}");
        world.api.clear_faults();
        assert!(!world.kept("m.bin").exists(), "{status}");
        world.api.down();
        world.refuses("m.bin", "nothing is stored");
        world.api.up();
        world.loads("m.bin", &bytes);
    }
    let bytes = world.keeps("m.bin");
    for fault in [Fault::Status(500, String::new()), Fault::Status(503, String::new()), Fault::Reset] {
        world.api.fault("/resources/get/", fault, None);
        world.loads("m.bin", &bytes);
        world.api.clear_faults();
        // A call that reaches the API ends the time in which it counts as away.
        world.login();
    }
    // An answer of 503 counts as away, too.
    world.api.fault("/resources/get/", Fault::Status(429, String::new()), None);
    world.refuses("m.bin", "429");
    assert!(world.kept("m.bin").exists());
}

#[test]
fn credentials_that_the_api_refuses_open_nothing_later() {
    let world = world();
    let bytes = world.keeps("m.bin");
    // A mistyped password deletes nothing.
    world.login_refused("wrong", "Passwords do not match");
    assert!(world.kept("m.bin").exists());
    world.api.add_user(EMAIL, "new password", "Operator");
    world.login_refused(PASSWORD, "Passwords do not match");
    assert!(!world.kept("m.bin").exists());
    world.api.down();
    world.service.restart();
    world.login_refused(PASSWORD, "nothing is stored");
    world.api.up();
    assert_eq!(world.service.login_as(EMAIL, "new password").status, 200);
    world.loads("m.bin", &bytes);
}

#[test]
fn another_version_is_taken_from_the_api_and_kept_in_place_of_the_old_one() {
    let world = world();
    world.keeps("m.bin");
    let new = pattern(150_000, 9);
    assert_eq!(world.another_box().upload(&world.folder, "m.bin", &new).status, 200);
    world.loads("m.bin", &new);
    world.api.down();
    world.loads("m.bin", &new);
}

/// If each load asked a silent API first, it would wait for the stall limit three times.
#[test]
fn an_api_that_was_away_a_moment_ago_is_asked_in_the_background() {
    let world = world();
    let old = world.keeps("m.bin");
    let new = pattern(150_000, 9);
    assert_eq!(world.another_box().upload(&world.folder, "m.bin", &new).status, 200);
    world.api.fault("/resources/get/", Fault::Status(503, String::new()), None);
    world.loads("m.bin", &old);
    world.api.clear_faults();
    world.api.clear_requests();
    world.api.fault("/resources/get/", Fault::Hang, None);
    for _ in 0..4 {
        world.loads("m.bin", &old);
    }
    eventually(PATIENCE, "the question", || world.api.count("/resources/get/") == 1);
    // A load that is not possible offline waits for the API, and so does a login.
    world.api.clear_faults();
    world.refuses("never-loaded.bin", "error 70");
    world.loads("m.bin", &new);
}

#[test]
fn loads_at_once_share_a_renewal_that_fails() {
    let world = world();
    let bytes = world.keeps("m.bin");
    world.api.revoke_tokens();
    world.api.clear_requests();
    // The renewal makes three tries in at least four seconds; all loads come within that time.
    world.api.fault("/login", Fault::StatusWithRetryAfter(429, 2), None);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| world.refuses("m.bin", "429"));
        }
    });
    let asked = world.api.count("/login");
    assert!(asked < 3 * 4, "{asked} requests for four loads");
    world.api.clear_faults();
    world.loads("m.bin", &bytes);
}

#[test]
fn an_account_that_is_refused_at_a_renewal_loses_all_of_its_offline_access() {
    let world = world();
    let wrong = r#"{"ErrorCode":40,"Message":"Passwords do not match."}"#;
    for (status, body) in [(401, ""), (403, ""), (409, wrong)] {
        let (a, b) = (world.keeps("a.bin"), world.keeps("bb.bin"));
        world.api.revoke_tokens();
        world.api.fault("/login", Fault::Status(status, body.into()), None);
        // Any call may find out.
        let why = if status == 409 { "Passwords" } else { "does not accept" };
        if status == 403 {
            assert_eq!(world.service.upload(&world.folder, "c.bin", b"model").status, 500);
        } else {
            world.refuses("a.bin", why);
        }
        assert!(!world.kept("a.bin").exists() && !world.kept("bb.bin").exists(), "{status}");
        world.api.down();
        world.refuses("bb.bin", "nothing is stored");
        world.service.restart();
        world.login_refused(PASSWORD, "nothing is stored");
        world.api.up();
        world.login_refused(PASSWORD, why);
        world.api.clear_faults();
        world.login();
        world.loads("a.bin", &a);
        world.loads("bb.bin", &b);
    }
}

#[test]
fn a_load_that_was_under_way_when_the_account_was_refused_stores_nothing() {
    let (world, proxy) = World::behind_proxy_with(|builder| builder.env("OFFLINE_HOURS", "24"));
    let bytes = pattern(3 << 20, 7);
    assert_eq!(world.another_box().upload(&world.folder, "m.bin", &bytes).status, 200);
    proxy.fault("GET", ".big", CdnFault::HangAt(100_000), Some(1));
    thread::scope(|scope| {
        let load = scope.spawn(|| world.loads("m.bin", &bytes));
        eventually(PATIENCE, "the download", || !proxy.awaits_a_request());
        world.api.revoke_tokens();
        world.api.fault("/login", Fault::Status(403, String::new()), None);
        world.refuses("other.bin", "403");
        proxy.cut();
        load.join().unwrap();
    });
    eventually(PATIENCE, "the download's end", || world.service.cache_file(&world.folder, "m.bin").exists());
    assert!(!world.kept("m.bin").exists());
    world.api.clear_faults();
    world.loads("m.bin", &bytes);
    assert!(world.kept("m.bin").exists());
}

#[test]
fn loads_of_one_model_at_once_store_its_small_part_once_each() {
    let world = world();
    let bytes = world.keeps("m.bin");
    for _ in 0..10 {
        fs::remove_file(world.kept("m.bin")).unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| world.loads("m.bin", &bytes));
            }
        });
        assert!(world.kept("m.bin").exists());
    }
    let log = world.service.log_text();
    assert!(!log.contains("cannot be written") && !log.contains("cannot be stored"), "{log}");
}
