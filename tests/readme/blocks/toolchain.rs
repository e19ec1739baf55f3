//! Blocks that build or test this repository. Run here they would start everything
//! again, so these checks make sure that what they name exists and that CI runs it.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::super::tables::assert_filters_select;
use super::super::{README, repository};
use super::scene::Scene;
use crate::world::client::call;
use crate::world::loader_binary;
use crate::world::process::write_program;

fn file(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap()
}

/// Whether the package has a target of this kind, and of this name.
fn has_target(kind: &str, name: &str) -> bool {
    let manifest = repository().join("Cargo.toml");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["metadata", "--no-deps", "--offline", "--format-version", "1", "--manifest-path"]).arg(manifest);
    let metadata: Value = serde_json::from_slice(&cargo.output().unwrap().stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap().iter().filter(|package| package["name"] == "loader");
    let mut targets = packages.flat_map(|package| package["targets"].as_array().unwrap());
    targets.any(|target| target["kind"][0] == kind && target["name"] == name)
}

/// Runs the block, and gives how it called `cargo`.
fn cargo_calls(block: &str) -> Vec<String> {
    let scene = Scene::new();
    scene.program("cargo", "");
    scene.run(block);
    scene.calls("cargo")
}

pub fn the_first_two_commands(block: &str) {
    assert_eq!(cargo_calls(block), ["run --example demo", "test"]);
    assert!(has_target("example", "demo") && has_target("test", "tests"));
    let ci = file(".ci/run");
    assert!(ci.contains("\ncheck cargo run --example demo\n") && ci.contains("\nrun_tests cargo-test cargo test\n"));
    // What the text below it says.
    assert!(README.text().contains("`cargo run --example demo -- --serve`"));
    assert!(file("tests/demo/main.rs").contains("Some(\"--serve\")"));
}

/// Filters select tests, variables are read by tests, and scripts are there and are what CI runs.
pub fn what_can_be_run_is_there(block: &str) {
    let scene = Scene::new();
    scene.program("cargo", "");
    for script in [".ci/fuzz", ".ci/slowhttptest", ".ci/openapi", ".ci/packages", ".ci/run"] {
        assert!(block.contains(&format!("\n{script} ")) && repository().join(script).is_file(), "{script}");
        assert!(script == ".ci/run" || file(".ci/run").contains(&format!("check {script}")), "CI leaves {script} out");
        write_program(&scene.path(script), "#!/bin/sh\n");
    }
    scene.run(block);
    let calls = scene.calls("cargo");
    assert_eq!(calls[0], "test");
    for call in &calls[1..] {
        let filters = call.strip_prefix("test --test tests -- ").unwrap();
        assert_filters_select(&filters.split(' ').collect::<Vec<_>>());
    }
    for (variable, module) in [
        ("SOAK", "operations/soak/mod.rs"),
        ("MANIFESTS", "models/manifests.rs"),
        ("POWER_CUTS", "operations/power_cuts.rs"),
    ] {
        let seed = format!("{variable}_SEED");
        assert!(block.contains(&seed) && file(&format!("tests/{module}")).contains(&seed), "{seed}");
    }
}

pub fn the_benchmark_is_there(block: &str) {
    assert_eq!(cargo_calls(block), ["bench"]);
    assert!(has_target("bench", "bench") && block.contains("--quick"));
    assert!(file("tests/bench/plan.rs").contains("\"--quick\""));
}

/// `cargo` leaves the program that this test was built with.
pub fn the_release_build_serves(block: &str) {
    let scene = Scene::new();
    let program = loader_binary();
    scene.program("cargo", &format!("mkdir -p target/release\nln -s {} target/release/loader", program.display()));
    let _running = scene.start(block);
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let health = call(&scene.address, Duration::from_secs(2), "GET", "/health", &[], b"");
        if health.is_ok_and(|reply| reply.status == 200) {
            break;
        }
        let said = || fs::read_to_string(scene.path("said")).unwrap_or_default();
        assert!(Instant::now() < deadline, "it does not serve: {}", said());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(scene.calls("cargo"), ["build --release"]);
    assert!(has_target("bin", "loader"));
}

/// A script takes the place of `.dist/build` and leaves files with the names that the real one makes.
pub fn the_product_is_where_it_is_said_to_be(block: &str) {
    let script = file(".dist/build");
    let constants = |name: &&str| name.starts_with("readonly TARGET=") || name.starts_with("readonly DIST=");
    let constants: Vec<&str> = script.lines().filter(constants).collect();
    assert_eq!(constants.len(), 2);
    assert!(
        script.contains("${DIST##*/}.sha256")
            && script.contains("\ninstall -m 644 .dist/*.service .dist/loader.socket .dist/loader.1 target/dist/\n"),
        "the names have changed"
    );
    assert!(file(".ci/run").contains("\ncheck .dist/build\n"));

    let scene = Scene::new();
    let dist = "mkdir -p target/dist\ntouch $DIST $DIST.sha256 target/dist/loader.1";
    write_program(&scene.path(".dist/build"), &format!("#!/bin/bash\n{}\n{dist}\n", constants.join("\n")));
    let listed = scene.run(block);
    // The comment names them, and so do the blocks that install them.
    let product = listed.lines().find(|name| !name.contains('.')).unwrap();
    for named in [product, ".sha256", "the units", "loader.1"] {
        assert!(block.contains(named), "{named}: {listed}");
    }
    assert!(README.text().contains(&format!("\ninstall -m 755 {product} ")));
    assert!(file("Dockerfile").contains(&format!("ARG PROGRAM={product}\n")));
}
