//! `loader verify`: a decayed cache is repaired chunk by chunk.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Instant;

use serde_json::json;

use super::pairs::flip_byte;
use crate::world::pty::Terminal;
use crate::world::s3_fault::Fault;
use crate::world::{Dice, World, pattern};

const MIB: usize = 1 << 20;

/// The status, standard output, and standard error without the progress: a line every 10 s.
fn verify(world: &World) -> (i32, String, String) {
    let started = Instant::now();
    let Output { status, stdout, stderr } = world.service.run(&["verify"]);
    let most = started.elapsed().as_secs() / 10;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let stderr = text(stderr);
    let (progress, errors): (Vec<_>, Vec<_>) =
        stderr.split_inclusive('\n').partition(|line| line.starts_with("verifying  "));
    assert!(progress.len() as u64 <= most, "{stderr}");
    (status.code().unwrap_or(-1), text(stdout), errors.concat())
}

/// Uploads a model and loads it: a long upload does not fill the cache.
fn cached(world: &World, name: &str, bytes: &[u8]) -> PathBuf {
    world.upload(name, bytes);
    world.loads(name, bytes);
    world.cached(name)
}

/// Flips a byte in this many chunks of a cached file.
fn flip_chunks(path: &Path, count: usize) {
    let (mut dice, mut hit) = (Dice::new("MANIFESTS_SEED"), BTreeSet::new());
    while hit.len() < count {
        let at = dice.below(fs::metadata(path).unwrap().len() as usize);
        if hit.insert(at / MIB) {
            flip_byte(path, at as u64);
        }
    }
}

#[test]
fn damaged_chunks_all_over_the_cache_are_fetched_again_and_nothing_else() {
    let (world, proxy) = World::behind_proxy();
    // Short models have no whole chunk, long ones take several requests.
    let sizes = [(1, 1), (500, 1), (5 * MIB, 2), (40 * MIB + 7, 9)];
    let mut files = Vec::new();
    for (number, (size, flips)) in sizes.into_iter().enumerate() {
        let name = format!("m{number}.bin");
        let path = cached(&world, &name, &pattern(size, number as u64));
        let right = fs::read(&path).unwrap();
        flip_chunks(&path, flips);
        files.push((path, right));
    }
    // A file may have lost its second half.
    let (path, right) = &files[2];
    fs::File::options().write(true).open(path).unwrap().set_len(right.len() as u64 / 2).unwrap();
    proxy.clear_requests();
    let (status, out, err) = verify(&world);
    assert_eq!((status, err.as_str()), (0, ""), "{out}");
    assert!(out.starts_with("models verified: 4 (47.") && out.contains("chunks repaired: 1"), "{out}");
    for (path, right) in &files {
        assert!(fs::read(path).unwrap() == *right, "{} is not right", path.display());
    }
    let sent = proxy.bytes_sent("GET", ".big");
    assert!(sent <= (2 + 5 + 9) * MIB as u64, "{sent} bytes were downloaded");
    proxy.clear_requests();
    let (_, out, _) = verify(&world);
    assert!(out.ends_with("chunks repaired: 0\n") && proxy.bytes_sent("GET", ".big") == 0, "{out}");
}

#[test]
fn what_cannot_be_repaired_is_one_sentence_and_the_next_verify_repairs_it() {
    let (world, proxy) = World::behind_proxy();
    let bytes = pattern(20 * MIB, 1);
    let path = cached(&world, "m.bin", &bytes);
    cached(&world, "other.bin", b"intact");
    let right = fs::read(&path).unwrap();
    flip_chunks(&path, 5);
    proxy.fault("GET", ".big", Fault::Status(403), None);
    let (status, out, err) = verify(&world);
    assert_eq!((status, out.as_str(), err.lines().count()), (1, "", 1), "{err}");
    let expected = format!("loader: {}/m.bin is damaged and cannot be repaired: ", world.folder);
    assert!(err.starts_with(&expected) && err.contains("403"), "{err}");
    proxy.clear_faults();
    assert_eq!(verify(&world).0, 0);
    assert!(fs::read(&path).unwrap() == right);
    world.loads("m.bin", &bytes);

    // Verifying an intact cache needs no login; repairing a damaged one does.
    world.service.restart();
    assert_eq!(verify(&world).0, 0);
    flip_chunks(&path, 1);
    let (status, _, err) = verify(&world);
    assert!(status == 1 && err.ends_with("log in first: POST /login with email and password\n"), "{err}");
    world.service.kill();
    let (status, _, err) = verify(&world);
    assert!(status == 1 && err.contains("is it running, with the same BIND_ADDR"), "{err}");
}

#[test]
fn a_bar_moves_at_a_terminal() {
    let (world, proxy) = World::behind_proxy();
    flip_chunks(&cached(&world, "m.bin", &pattern(40 * MIB, 1)), 10);
    proxy.fault("GET", ".big", Fault::Trickle(500_000), None);
    let mut command = world.service.command();
    command.arg("verify");
    let mut terminal = Terminal::run(command);
    terminal.expect("\r\u{1b}[Kverifying        [");
    assert!(terminal.wait().success(), "{}", terminal.shown());
    let shown = terminal.shown();
    let bars: BTreeSet<usize> = shown.split('\r').map(|frame| frame.matches('#').count()).collect();
    assert!(bars.len() > 2, "{shown:?}");
    assert!(shown.contains("verified         [########################] 100 %"), "{shown:?}");
    assert!(shown.ends_with("chunks repaired: 10\r\n"), "{shown:?}");
}

#[test]
fn one_model_or_some_of_its_chunks_can_be_verified() {
    let world = World::new();
    world.upload("m.bin", &pattern(3 * MIB, 1));
    let verify = |body| world.service.post_json("/models/verify", body);
    let (folder, name) = (&world.folder, "m.bin");
    let mut models = world.service.get("/models").json();
    let last_used = models["models"][0].as_object_mut().unwrap().remove("lastUsed").unwrap();
    assert!(last_used.as_u64().is_some_and(|seconds| seconds > 1_700_000_000), "{last_used}");
    let length = fs::metadata(world.cached(name)).unwrap().len();
    let expected = json!({ "folder": folder, "name": name, "bytes": length, "plainBytes": 3 * MIB, "kept": false });
    assert_eq!(models, json!({ "models": [expected], "keep": [] }));
    let right = json!({ "status": "ok", "chunks": 3, "bytes": length, "repaired": 0, "bad": 0, "reason": null });
    assert_eq!(verify(json!({ "folder": folder, "filename": name })).json(), right);
    let some = verify(json!({ "folder": folder, "filename": name, "first": 1, "count": 1 })).json();
    assert_eq!((&some["chunks"], &some["bytes"]), (&json!(3), &json!(MIB)));
    let none = verify(json!({ "folder": folder, "filename": name, "first": 3, "count": u64::MAX })).json();
    assert_eq!(none["bytes"], 0);
    for (body, status, words) in [
        (json!({ "folder": folder, "filename": "other.bin" }), 404, "not in the cache"),
        (json!({ "filename": name }), 404, "not in the cache"),
        (json!({ "folder": "..", "filename": name }), 422, "folder"),
        (json!({ "folder": folder, "filename": "a/b" }), 422, "filename"),
        (json!({ "folder": folder }), 422, "filename is missing"),
        (json!({ "folder": folder, "filename": name, "first": "one" }), 422, "wrong type"),
    ] {
        let reply = verify(body);
        assert!(reply.status == status && reply.detail().contains(words), "{}", reply.text());
    }
    // A record that the disk has damaged proves nothing.
    let record = format!("{}.json", world.cached(name).display());
    let damaged = fs::read_to_string(&record).unwrap().replace("eyJ", "eyK");
    fs::write(&record, damaged).unwrap();
    let reply = verify(json!({ "folder": folder, "filename": name }));
    assert!(reply.status == 500 && reply.detail().contains("load the model again"), "{}", reply.text());
}
