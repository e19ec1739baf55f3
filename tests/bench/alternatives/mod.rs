//! What an edge engineer would use instead: other ways for the same bytes from the same S3 server to a program as plaintext.
//!
//! Each tool encrypts with its own format. One byte in the middle of the ciphertext is then changed, to see what a program gets.

mod loader;
mod pipeline;
mod tools;
mod traces;
mod updaters;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use pipeline::{Consumer, Outcome, program};
use tools::{Age, Gocryptfs, Object, Openssl, Rclone, Tool, must};
use traces::Traces;
use updaters::{Rauc, Swupdate};

use crate::commands;
use crate::figure::median;
use crate::plan::{Plan, size};
use crate::report::Report;
use crate::table::number;
use crate::world::PatternReader;
use crate::world::weed::Weed;

/// Rounds of cold and warm reads for each.
const ROUNDS: usize = 3;

/// The results of one way.
struct Measured {
    name: String,
    cold: Vec<f64>,
    warm: Vec<f64>,
    peak_kib: u64,
    /// Files that hold plaintext in the end.
    traces: Option<String>,
    damaged: String,
}

/// The plaintexts: one to measure with, and one in whose ciphertext a byte is changed.
struct Models<'a> {
    weed: &'a Weed,
    bucket: String,
    main: u64,
    damaged: u64,
}

impl Models<'_> {
    /// The bytes of a plaintext of this length.
    fn plain(bytes: u64) -> PatternReader {
        PatternReader::new(bytes, 29)
    }
}

/// Measures all that are installed, and the loader.
pub fn measure(plan: &Plan, weed: &Weed, report: &mut Report) {
    report.says("what could be used instead");
    let models = Models { weed, bucket: weed.s3.new_bucket("bench"), main: plan.main, damaged: plan.damaged };
    let tools: [&dyn Tool; 6] = [&Rclone, &Age, &Openssl, &Gocryptfs, &Swupdate, &Rauc];
    let mut all = vec![loader::measure(&models)];
    for tool in tools {
        let missing = tool.programs().iter().find(|(program, _)| !commands::is_there(program, "--version"));
        match missing {
            Some((program, package)) => {
                report.leave_out(&format!("{}: {program} is not installed (apt install {package})", tool.name()));
            }
            None => all.push(measure_tool(tool, &models)),
        }
    }
    weed.delete_bucket(&models.bucket);

    let head =
        ["way", "cold", "warm", "peak memory", "plaintext left on the disk", "with one byte of the ciphertext changed"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(all.into_iter().map(|measured| {
        let seconds = |values: &[f64]| median(values).map_or("none".to_owned(), |value| number(value, "s"));
        vec![
            measured.name,
            seconds(&measured.cold),
            seconds(&measured.warm),
            number(measured.peak_kib as f64 / 1024.0, "MiB"),
            measured.traces.map_or("no".to_owned(), |files| format!("yes: {files}")),
            measured.damaged,
        ]
    }));
    let note = format!(
        "{} for the times and the memory, {} for the changed byte; medians of {ROUNDS}.",
        size(plan.main),
        size(plan.damaged)
    );
    report.add_table("alternatives", rows, note);
}

fn measure_tool(tool: &dyn Tool, models: &Models) -> Measured {
    let (made, on_box) = (tempfile::tempdir(), tempfile::tempdir());
    let (made, on_box) = (made.expect("a temporary directory"), on_box.expect("a temporary directory"));
    let (made, dir) = (made.path(), on_box.path());
    let mut measured = Measured {
        name: format!("{}: {}", tool.name(), versions(tool)),
        cold: Vec::new(),
        warm: Vec::new(),
        peak_kib: 0,
        traces: None,
        damaged: String::new(),
    };
    println!("  {}", measured.name);
    let store = |bytes: u64, key: &str, is_damaged: bool| {
        let plain = made.join("plain");
        io::copy(&mut Models::plain(bytes), &mut File::create(&plain).expect("a new file")).expect("room for it");
        let encrypted = tool.encrypt(&plain, made, dir);
        if is_damaged {
            change_a_byte(&encrypted);
        }
        commands::curl(&["-T", &encrypted.display().to_string(), &models.weed.presigned_put(&models.bucket, key)]);
        let _ = (fs::remove_file(plain), fs::remove_file(encrypted));
        let endpoint = models.weed.s3.endpoint();
        Object {
            url: models.weed.presigned_get(endpoint, &models.bucket, key),
            endpoint: endpoint.to_owned(),
            bucket: models.bucket.clone(),
            key: key.to_owned(),
            keys: models.weed.s3.downloader().clone(),
        }
    };

    // This read compares every byte; the others only count.
    let mut consumer = Consumer::comparing(Models::plain(models.damaged));
    let outcome = tool.cold(&store(models.damaged, "right.bin", false), made, dir, &mut consumer);
    assert_eq!(outcome.result, Ok(()), "{}", tool.name());
    assert!(!consumer.is_wrong && consumer.received == models.damaged, "{} gives other bytes", tool.name());

    let object = store(models.main, "main.bin", false);
    let mut timed = |times: &mut Vec<f64>, run: &mut dyn FnMut(&mut Consumer) -> Option<Outcome>| {
        commands::settle();
        let (mut consumer, started) = (Consumer::counting(), Instant::now());
        let Some(outcome) = run(&mut consumer) else { return };
        times.push(started.elapsed().as_secs_f64());
        assert_eq!((outcome.result, consumer.received), (Ok(()), models.main), "{}", tool.name());
        measured.peak_kib = measured.peak_kib.max(outcome.peak_kib);
    };
    for _ in 0..ROUNDS {
        empty(dir);
        timed(&mut measured.cold, &mut |to| Some(tool.cold(&object, made, dir, to)));
        timed(&mut measured.warm, &mut |to| tool.warm(made, dir, to));
    }
    measured.traces = Traces::of(models.main, models.main / 2).in_files(dir);
    models.weed.s3.delete(&models.bucket, &object.key);

    empty(dir);
    let mut consumer = Consumer::comparing(Models::plain(models.damaged));
    let outcome = tool.cold(&store(models.damaged, "damaged.bin", true), made, dir, &mut consumer);
    let left = Traces::of(models.damaged, models.damaged / 4).in_files(dir);
    measured.damaged = verdict(&outcome.result, &consumer, models.damaged, dir);
    if let (Err(_), Some(files)) = (&outcome.result, left) {
        measured.damaged.push_str(&format!("; what it had decrypted stays on the disk: {files}"));
    }
    measured
}

/// What a program got from a ciphertext in which a byte had been changed.
fn verdict(result: &Result<(), String>, consumer: &Consumer, length: u64, dir: &Path) -> String {
    let in_words = |error: &str| {
        let error = error.replace(&format!("{}/", dir.display()), "").replace('|', "\\|").replace('`', "'");
        let error: String = error.chars().take(120).collect();
        format!("`{error}`")
    };
    let part = consumer.received * 100 / length;
    match result {
        Ok(()) if consumer.is_wrong => "wrong bytes, and no error".to_owned(),
        Ok(()) if consumer.received == length => "right bytes".to_owned(),
        Ok(()) => format!("{part} % of the bytes, and no error"),
        Err(error) if consumer.is_wrong => format!("wrong bytes, and then an error: {}", in_words(error)),
        Err(error) if consumer.received == 0 => format!("no byte, and an error: {}", in_words(error)),
        Err(error) => format!("{part} % of the bytes, all right, and then an error: {}", in_words(error)),
    }
}

/// In the middle of the file, where every format has its ciphertext.
fn change_a_byte(path: &Path) {
    let file = File::options().read(true).write(true).open(path).expect("the file is there");
    let middle = file.metadata().expect("the file is there").len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).expect("the file is long enough");
    file.write_all_at(&[byte[0] ^ 0x10], middle).expect("the file can be written");
}

fn empty(dir: &Path) {
    for entry in fs::read_dir(dir).expect("the directory is there").flatten() {
        let path = entry.path();
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

/// The programs that run on the box, with the versions of their Debian packages.
fn versions(tool: &dyn Tool) -> String {
    let on_box = tool.programs().iter().filter(|(name, _)| tool.name().contains(*name));
    let versions = on_box.map(|(_, package)| format!("{package} {}", version(package)));
    versions.collect::<Vec<_>>().join(", ")
}

fn version(package: &str) -> String {
    let mut command = program("dpkg-query", Path::new("/"));
    command.args(["--show", "--showformat=${Version}", package]);
    if Command::new("dpkg-query").arg("--version").output().is_ok() {
        must(command)
    } else {
        "of another source".into()
    }
}
