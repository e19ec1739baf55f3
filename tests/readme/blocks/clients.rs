//! The blocks that talk to a running service.

use std::fs;
use std::time::{Duration, Instant, SystemTime};

use super::scene::Scene;
use crate::world::docker::saved_images;
use crate::world::pty::Terminal;
use crate::world::{World, pattern, protocol, sha256_hex};

/// Whom the blocks name, and the password that stands in them.
const EMAIL: &str = "me@example.com";
const PASSWORD: &str = "…";

fn prepared(world: &World) {
    world.s3.create_bucket("models");
    world.api.add_user(EMAIL, PASSWORD, "Operator");
}

pub fn what_curl_uploads_it_loads(block: &str) {
    let mut scene = Scene::new();
    let world = World::new();
    prepared(&world);
    // Nobody is logged in then, so the block's own login counts.
    world.service.restart();
    scene.talks_to(&world.service);
    let bytes = pattern(300_000, 1);
    let file = scene.path("model.bin");
    fs::write(&file, &bytes).unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();

    assert_eq!(scene.run(block), r#"{"status":"ok"}"#.repeat(2));
    assert!(fs::read(&file).unwrap() == bytes, "other bytes came back");
    assert!(fs::metadata(&file).unwrap().modified().unwrap() > SystemTime::UNIX_EPOCH, "nothing was loaded");
    assert!(world.api.file("models", "model.bin.small").is_some());
    assert!(world.s3.get("models", "model.bin.big").is_some());
}

pub fn curl_resumes_a_transfer(block: &str) {
    let mut scene = Scene::new();
    let world = World::new();
    prepared(&world);
    scene.talks_to(&world.service);
    let bytes = pattern(300_000, 2);
    assert_eq!(world.service.upload("models", "model.bin", &bytes).status, 200);
    fs::write(scene.path("model.bin"), &bytes[..100_000]).unwrap();

    scene.run(block);
    assert!(fs::read(scene.path("model.bin")).unwrap() == bytes, "other bytes came back");
    assert!(world.service.log_text().contains("status=206"), "all was loaded again");
}

pub fn a_technician_logs_in_and_unlocks(block: &str) {
    const FRAGMENT: &[u8] = b"the key fragment of the README";
    let mut scene = Scene::new();
    scene.program("docker", "case $1 in load) cat >/dev/null;; image) echo sha256:1;; *) echo 1;; esac");
    let world = World::with(|builder| builder.env("PATH", scene.search_path()));
    prepared(&world);
    world.api.set_key_fragment(FRAGMENT);
    let archive = protocol::encrypt(&saved_images(&["app:1.0"], 100_000, false), FRAGMENT);
    fs::write(world.service.images_path(), archive).unwrap();
    world.service.restart();
    scene.talks_to(&world.service);
    let model = pattern(300_000, 1);
    fs::write(scene.path("model.bin"), &model).unwrap();

    let mut terminal = Terminal::run(scene.bash(block));
    for asked in 1..=2 {
        let deadline = Instant::now() + Duration::from_secs(20);
        while terminal.shown().matches("Password: ").count() < asked {
            assert!(Instant::now() < deadline, "no password was asked for: {:?}", terminal.shown());
            std::thread::sleep(Duration::from_millis(10));
        }
        terminal.send(&format!("{PASSWORD}\n"));
    }
    assert!(terminal.wait().success(), "{}", terminal.shown());
    let shown = terminal.shown();
    for words in ["no; run loader login", &format!("logged in as {EMAIL}"), "ready", &sha256_hex(&model)] {
        assert!(shown.contains(words), "{words} in {shown:?}");
    }
    assert!(fs::read(scene.path("copy.bin")).unwrap() == model, "other bytes came back");
    assert_eq!(world.service.get("/unlock/status").json()["state"], "ready");
}

/// The program sees both models.
pub fn a_program_opens_its_models(block: &str) {
    let mut scene = Scene::new();
    scene.program("python3", "cat \"$MODEL\" \"$LABELS\" \"$1\"");
    let world = World::new();
    prepared(&world);
    scene.talks_to(&world.service);
    for (name, text) in [("net.onnx", "a net, "), ("labels.txt", "its labels, ")] {
        assert_eq!(world.service.upload("models", name, text.as_bytes()).status, 200);
    }
    fs::write(scene.path("infer.py"), "and a script").unwrap();
    assert_eq!(scene.run(block), "a net, its labels, and a script");
}
