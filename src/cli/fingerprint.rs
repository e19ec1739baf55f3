//! `loader fingerprint`: what the Resource API must know to register this box.

use super::{Command, Failure, configuration, no_arguments, print};
use crate::api_client::hardware;

pub(super) static COMMAND: Command = Command {
    name: "fingerprint",
    arguments: "",
    summary: "print the hardware string, to register this box",
    help: &[
        "Prints the hardware string of this box, which the Resource API must know, or HARDWARE_ID where that is set.\n",
    ],
    run,
};

fn run(words: &[&str]) -> Result<(), Failure> {
    no_arguments(words)?;
    print(&format!("{}\n", hardware(&configuration()?)))
}
