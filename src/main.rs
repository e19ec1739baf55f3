//! The `loader` program; see the library of the same name.

use std::process::ExitCode;

fn main() -> ExitCode {
    loader::cli::run(std::env::args_os().skip(1))
}
