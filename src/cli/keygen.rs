//! `loader keygen`: a key pair for signed uploads.

use std::path::Path;

use super::command::{Command, Failure, print};
use crate::manifest::Keygen;

pub(super) static COMMAND: Command = Command {
    name: "keygen",
    arguments: "DIR",
    summary: "make a key pair for SIGNING_KEY_PATH and TRUSTED_KEYS_PATH",
    help: &["\
Makes an Ed25519 key pair in the directory DIR, which is created if it is missing:

  signing-key.pem        for SIGNING_KEY_PATH where models are uploaded; nobody else may have it
  trusted-keys.pem       for TRUSTED_KEYS_PATH on the boxes; several such files may be joined to one

Replaces no file.
"],
    run,
};

fn run(words: &[&str]) -> Result<(), Failure> {
    let [directory] = words else { return Err(Failure::arguments("keygen needs one directory")) };
    if directory.starts_with('-') {
        return Err(Failure::arguments(format!("unknown option {directory}")));
    }
    let files = Keygen::write(Path::new(directory)).map_err(Failure::runtime)?;
    print(&format!("{}\n{}\n", files.private.display(), files.public.display()))
}
