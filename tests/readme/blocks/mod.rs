//! Every shell block of the documents is run by `bash`, in a world prepared for it, and its effects are checked.
//!
//! The text of a block runs as it stands. What differs from a reader's machine is around it: programs that come first on
//! `PATH` replace those that would install something, need the network or run this test again, and `curl` connects to the
//! test's loader where a block says port 8080.

mod archive;
mod cdn;
mod clients;
mod install;
mod scene;
mod toolchain;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use super::{BENCH, DIST, DOCUMENTS, Document, README, TESTS};

/// A shell block, and where it is.
struct Block {
    document: Document,
    heading: String,
    line: usize,
    text: String,
}

/// Runs a block and checks its effects.
type Check = fn(&str);

/// Document and heading of every shell block, in their order, and the check of each.
const CHECKS: [(Document, &str, Check); 18] = [
    (README, "# loader", toolchain::the_first_two_commands),
    (README, "## Install", install::as_a_systemd_service),
    (README, "## Install", toolchain::the_release_build_serves),
    (README, "## HTTP", clients::what_curl_uploads_it_loads),
    (README, "## HTTP", clients::curl_resumes_a_transfer),
    (README, "## On the command line", clients::a_technician_logs_in_and_unlocks),
    (DIST, "## Build", toolchain::the_product_is_where_it_is_said_to_be),
    (DIST, "## Debian packages", install::as_a_debian_package),
    (DIST, "## As a systemd service", install::with_the_socket_unit),
    (DIST, "## As a container", install::as_a_container),
    (DIST, "### Credentials", install::credentials_are_encrypted),
    (DIST, "### Programs that wait for it", install::the_unit_to_wait_for),
    (DIST, "## Programs that open their models by path", clients::a_program_opens_its_models),
    (DIST, "### Your own CDN", cdn::seaweedfs_serves_with_two_identities),
    (DIST, "## The archive of container images", archive::it_unlocks),
    (DIST, "## The archive of container images", archive::it_unlocks),
    (TESTS, "## How to run what", toolchain::what_can_be_run_is_there),
    (BENCH, "# Figures: how fast the loader is, and what it costs", toolchain::the_benchmark_is_there),
];

/// Blocks in these languages are not run.
const NOT_SHELL: [&str; 6] = ["", "ini", "json", "nginx", "text", "yaml"];

/// The shell blocks of a document; a fence in an unknown language is a failure.
fn shell_blocks(document: Document) -> Vec<Block> {
    let (text, mut blocks, mut heading) = (document.text(), Vec::new(), String::new());
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if line.starts_with('#') {
            line.clone_into(&mut heading);
        }
        if let Some(language) = line.trim_start().strip_prefix("```") {
            let text: Vec<&str> =
                lines.by_ref().map(|(_, line)| line).take_while(|line| !line.contains("```")).collect();
            let (line, heading) = (number + 1, heading.clone());
            match language {
                "sh" => blocks.push(Block { document, heading, line, text: text.join("\n") }),
                other => assert!(NOT_SHELL.contains(&other), "{document:?}, line {line}: is ```{other} to be run?"),
            }
        }
    }
    blocks
}

#[test]
fn every_shell_block_does_what_it_says() {
    let blocks: Vec<Block> = DOCUMENTS.into_iter().flat_map(shell_blocks).collect();
    let found: Vec<_> = blocks.iter().map(|block| (block.document, block.heading.as_str())).collect();
    let checked: Vec<_> = CHECKS.iter().map(|(document, heading, _)| (*document, *heading)).collect();
    assert_eq!(found, checked, "a block came or went: each needs a check of its own in CHECKS");

    let failed: Vec<_> = thread::scope(|scope| {
        let run = |(block, (.., check)): (&Block, &(Document, &str, Check))| {
            let done = catch_unwind(AssertUnwindSafe(|| check(&block.text)));
            done.err().map(|_| (block.document, block.line))
        };
        let threads: Vec<_> = blocks.iter().zip(&CHECKS).map(|pair| scope.spawn(move || run(pair))).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(failed.is_empty(), "the shell blocks at these lines failed, as printed above: {failed:?}");
}
