//! `loader fingerprint`: what the Resource API must know to register this box.

use std::path::Path;

use super::command::{Command, Failure, configuration, has_flag, print};
use crate::hardware_service::{Hardware, NO_SERIAL};

pub(super) static COMMAND: Command = Command {
    name: "fingerprint",
    arguments: "[--explain]",
    summary: "print the hardware string, to register this box",
    help: &["\
Prints the hardware string of this box, which the Resource API must know, or HARDWARE_ID where that is set.

  --explain              print each part of it, where it was read, and what would change it
"],
    run,
};

fn run(words: &[&str]) -> Result<(), Failure> {
    let explain = has_flag(words, "--explain")?;
    let id = configuration()?.hardware_id;
    let hardware = Hardware::read(Path::new("/"));
    if id.is_none() && !hardware.has_serial() {
        eprintln!("loader: warning: {NO_SERIAL}");
    }
    match (id, explain) {
        (None, false) => print(&format!("{}\n", hardware.string())),
        (Some(id), false) => print(&format!("{id}\n")),
        (None, true) => print(&hardware.explanation()),
        (Some(id), true) => print(&format!("HARDWARE_ID: {id}\n\nWithout HARDWARE_ID:\n{}", hardware.explanation())),
    }
}
