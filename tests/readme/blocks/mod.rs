//! Every shell block of the README is run by `bash`, in a world prepared for it, and what comes of it is looked at.
//!
//! The text of a block is run as it stands. What differs from a reader's machine is around it: programs that come first on
//! `PATH` take the place of those that would install something, need the network or run this test again, and `curl` connects
//! to the test's loader where a block says port 8080.

mod archive;
mod cdn;
mod clients;
mod install;
mod scene;
mod toolchain;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::LazyLock;
use std::thread;

/// A shell block, and where it is.
pub struct Block {
    heading: String,
    line: usize,
    text: String,
}

/// Runs a block and looks at what comes of it.
type Check = fn(&str);

/// The headings of all shell blocks, in the README's order, and what tries each.
const CHECKS: [(&str, Check); 13] = [
    ("# loader", toolchain::the_first_two_commands),
    ("## Using it", toolchain::the_release_build_serves),
    ("### HTTP reference", clients::what_curl_uploads_it_loads),
    ("### HTTP reference", clients::curl_resumes_a_transfer),
    ("### On the command line", clients::a_technician_logs_in_and_unlocks),
    ("#### Your own CDN", cdn::seaweedfs_serves_with_two_identities),
    ("### The archive of container images", archive::it_unlocks),
    ("### The archive of container images", archive::it_unlocks),
    ("## Install on a box", toolchain::the_product_is_where_it_is_said_to_be),
    ("### As a systemd service", install::as_a_systemd_service),
    ("### As a systemd service", install::with_the_socket_unit),
    ("### As a container", install::as_a_container),
    ("## Figures", toolchain::the_benchmark_is_there),
];

/// What is in fences of other languages is not run.
const NOT_SHELL: [&str; 6] = ["", "ini", "json", "nginx", "text", "yaml"];

fn readme() -> &'static str {
    static README: LazyLock<String> =
        LazyLock::new(|| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap());
    &README
}

/// The shell blocks; a fence in a language that is not known here is a failure.
fn shell_blocks() -> Vec<Block> {
    let (mut blocks, mut heading) = (Vec::new(), String::new());
    let mut lines = readme().lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if line.starts_with('#') {
            line.clone_into(&mut heading);
        }
        if let Some(language) = line.trim_start().strip_prefix("```") {
            let text: Vec<&str> =
                lines.by_ref().map(|(_, line)| line).take_while(|line| !line.contains("```")).collect();
            match language {
                "sh" => blocks.push(Block { heading: heading.clone(), line: number + 1, text: text.join("\n") }),
                other => assert!(NOT_SHELL.contains(&other), "line {}: is ```{other} to be run?", number + 1),
            }
        }
    }
    blocks
}

/// The one block that follows this heading in a fence of this language.
fn block_of(heading: &str, language: &str) -> &'static str {
    let (_, section) = readme().split_once(&format!("\n{heading}\n")).unwrap();
    let (_, block) = section.split_once(&format!("\n```{language}\n")).unwrap();
    block.split_once("```").unwrap().0
}

#[test]
fn every_shell_block_does_what_it_says() {
    let blocks = shell_blocks();
    let headings: Vec<&str> = blocks.iter().map(|block| block.heading.as_str()).collect();
    let tried: Vec<&str> = CHECKS.iter().map(|(heading, _)| *heading).collect();
    assert_eq!(headings, tried, "a block came or went: each needs a check of its own in CHECKS");

    let failed: Vec<usize> = thread::scope(|scope| {
        let run = |(block, (_, check)): (&Block, &(&str, Check))| {
            let done = catch_unwind(AssertUnwindSafe(|| check(&block.text)));
            done.err().map(|_| block.line)
        };
        let threads: Vec<_> = blocks.iter().zip(&CHECKS).map(|pair| scope.spawn(move || run(pair))).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(failed.is_empty(), "the shell blocks at these lines of README.md failed, as said above: {failed:?}");
}
