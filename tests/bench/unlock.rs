//! The unlock of a large archive, against a real Docker engine.

use std::fs;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::commands;
use crate::figure::{Better, Figure, Goal};
use crate::http;
use crate::plan::Plan;
use crate::report::Report;
use crate::world::client::call;
use crate::world::docker::{Engine, answering, saved_images};
use crate::world::hex;
use crate::world::peer::Peer;
use crate::world::protocol::{self, BLOCK};
use crate::world::resource_api::{EMAIL, PASSWORD, ResourceApi};
use crate::world::s3::{Keys, S3};
use crate::world::service::Service;

const FRAGMENT: &[u8] = b"the key fragment of the benchmark";

/// Measures it.
pub fn measure(plan: &Plan, python: bool, report: &mut Report) {
    let engine = match answering().map_or_else(|| Engine::start(None), Ok) {
        Ok(engine) => engine,
        Err(why) => return report.leave_out(&format!("unlock: no Docker engine ({why})")),
    };
    report.says("unlock");
    let tag = format!("loader-bench-{}:1.0", std::process::id());
    let archive = protocol::encrypt(&saved_images(&[&tag], plan.image, false), FRAGMENT);
    let api = ResourceApi::start();
    api.set_key_fragment(FRAGMENT);
    let host = engine.host.clone().or_else(|| std::env::var("DOCKER_HOST").ok());
    let mut builder = Service::builder().api(&api);
    if let Some(host) = &host {
        builder = builder.env("DOCKER_HOST", host);
    }
    let loader = builder.start();
    let images = loader.images_path();
    fs::write(&images, &archive).expect("room for the archive");
    let megabytes = archive.len() / 1_000_000;
    drop(archive);
    let nowhere = S3::at("http://127.0.0.1:9", Keys::new("a", "b"), Keys::new("c", "d"));
    let path = images.display().to_string();
    let mut env = vec![("IMAGES_PATH", path.as_str())];
    env.extend(host.as_deref().map(|host| ("DOCKER_HOST", host)));
    let peer = python.then(|| Peer::start(&api, &nowhere, &env));

    let mut figure = Figure::new(format!("unlock, {megabytes} MB"), "s", Better::Low)
        .limited_by("openssl enc -d piped into docker load")
        // At most 1.05 times the limit's time.
        .goal(Goal::TimesLimit(1.0 / 1.05));
    for round in 0..plan.unlock_rounds {
        for turn in 0..3 {
            commands::settle();
            match (turn + round) % 3 {
                0 => figure.loader.push(unlock(loader.address())),
                1 => figure.peer.extend(peer.as_ref().map(|peer| unlock(peer.address()))),
                _ => figure.limit.push(limit(&engine, &images)),
            }
            assert!(engine.has(&tag), "the image was not loaded");
            engine.remove(&tag);
        }
    }
    report.add(figure);
}

fn unlock(address: &str) -> f64 {
    let started = Instant::now();
    http::post(address, "/unlock", &json!({"email": EMAIL, "password": PASSWORD}));
    loop {
        let status = call(address, Duration::from_secs(60), "GET", "/unlock/status", &[], b"").expect("an answer");
        let status = status.json();
        assert_ne!(status["state"], "error", "{status}");
        if status["state"] == "ready" {
            return started.elapsed().as_secs_f64();
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn limit(engine: &Engine, images: &std::path::Path) -> f64 {
    let started = Instant::now();
    let iv = fs::File::open(images).and_then(|mut file| {
        let mut iv = [0; BLOCK];
        std::io::Read::read_exact(&mut file, &mut iv).map(|()| iv)
    });
    let iv = iv.expect("the archive is there");
    let mut openssl = commands::decrypting(images, BLOCK as u64, &hex(&protocol::aes_key(FRAGMENT)), &iv);
    let plain = openssl.stdout.take().expect("piped");
    let status = engine.command(&["load"]).stdin(plain).stdout(Stdio::null()).status().expect("docker is there");
    assert!(status.success() && openssl.wait().expect("a child").success());
    started.elapsed().as_secs_f64()
}
