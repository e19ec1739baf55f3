//! The blocks that make an archive of container images.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use super::scene::Scene;
use crate::world::World;
use crate::world::docker::saved_images;
use crate::world::resource_api::{EMAIL, PASSWORD};

/// A loader unlocks the archive that the block makes, and its `docker load` gets what `docker save` wrote.
pub fn it_unlocks(block: &str) {
    const FRAGMENT: &[u8] = b"the key fragment\nof the README\n";
    let scene = Scene::new();
    let docker = "case $* in 'save app:1.0') cat $root/saved;; load*) cat >$root/loaded;; image*) echo sha256:1;; version*) echo 1;; \
                  *) exit 1;; esac";
    scene.program("docker", docker);
    let images = saved_images(&["app:1.0"], 100_000, false);
    fs::write(scene.root("saved"), &images).unwrap();
    fs::write(scene.path("fragment"), FRAGMENT).unwrap();
    scene.run(block);

    let world = World::with(|builder| builder.env("PATH", scene.search_path()));
    world.api.set_key_fragment(FRAGMENT);
    fs::copy(scene.path("images.enc"), world.service.images_path()).unwrap();
    world.service.post_json("/unlock", json!({"email": EMAIL, "password": PASSWORD}));
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let status = world.service.get("/unlock/status").json();
        match status["state"].as_str().unwrap() {
            "ready" => break,
            state => assert!(state != "error" && Instant::now() < deadline, "{status}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(fs::read(scene.root("loaded")).unwrap() == images, "docker was given other bytes");
}
