//! Inference runtimes as PyPI ships them, with models from files, from the mount, and by `loader exec`.

use std::path::Path;
use std::process::Command;

use super::run;
use crate::world::mount::{Mount, can_mount};
use crate::world::process::run_to_end;
use crate::world::{World, skip};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/operations/mount/runtimes.py");
const NAMES: [&str; 4] = ["net.onnx", "tensors.safetensors", "weights.gguf", "net.tflite"];

fn said_with(models: &Path) -> String {
    let paths = NAMES.map(|name| models.join(name).display().to_string());
    let words: Vec<&str> = [SCRIPT, "run"].into_iter().chain(paths.iter().map(String::as_str)).collect();
    String::from_utf8(run("python3", &words)).unwrap()
}

#[test]
fn runtimes_say_the_same_with_models_of_the_loader_as_with_plaintext_files() {
    const TEST: &str = "runtimes with models of the loader";
    let import = "import numpy, onnxruntime, safetensors, gguf, ai_edge_litert.interpreter";
    if !Command::new("python3").args(["-c", import]).output().is_ok_and(|output| output.status.success()) {
        return skip(TEST, "python3 does not have onnxruntime, safetensors, gguf and ai-edge-litert");
    }
    let world = World::new();
    let plain = tempfile::tempdir().unwrap();
    run("python3", &[SCRIPT, "make", plain.path().to_str().unwrap()]);
    let expected = said_with(plain.path());
    assert!(NAMES.iter().all(|name| expected.contains(name.rsplit_once('.').unwrap().1)), "{expected}");
    for name in NAMES {
        world.upload(name, &std::fs::read(plain.path().join(name)).unwrap());
    }
    drop(plain);

    let mut command = world.service.command();
    command.arg("exec");
    for (name, variable) in NAMES.iter().zip(["A", "B", "C", "D"]) {
        command.arg("--model").arg(format!("{}/{name}={variable}", world.folder));
    }
    command.args(["--", "sh", "-c", &format!("exec python3 {SCRIPT} run \"$A\" \"$B\" \"$C\" \"$D\"")]);
    let output = run_to_end(command, &[], b"", super::HANG);
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{}", String::from_utf8_lossy(&output.stderr));

    if !can_mount(TEST) {
        return;
    }
    let mount = Mount::of(&world.service, &[]);
    assert_eq!(said_with(&mount.path().join(&world.folder)), expected);
}
