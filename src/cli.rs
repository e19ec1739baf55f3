//! The command line: what a person types, and the exit status they get.
//!
//! A command is one file with its `Command`, and one row of `COMMANDS`; the help texts come from there.

mod command;
mod completions;
mod connection;
mod exec;
mod fingerprint;
mod healthcheck;
mod help;
mod keygen;
mod load;
mod login;
#[cfg(test)]
mod manual;
mod memory;
mod models;
#[cfg(feature = "mount")]
mod mount;
mod pack;
mod progress;
mod remove;
mod running_service;
mod serve;
mod status;
mod terminal;
mod transfer;
mod unlock;
mod upload;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use self::command::{Command, Failure, print};

/// All commands, in the order of the help.
static COMMANDS: &[&Command] = &[
    &status::COMMAND,
    &login::COMMAND,
    &unlock::COMMAND,
    &load::COMMAND,
    &upload::COMMAND,
    &models::COMMAND,
    &remove::COMMAND,
    &verify::COMMAND,
    &exec::COMMAND,
    &fingerprint::COMMAND,
    &healthcheck::COMMAND,
    &pack::COMMAND,
    &keygen::COMMAND,
    &completions::command(|words| completions::run(words, COMMANDS)),
    #[cfg(feature = "mount")]
    &mount::COMMAND,
];

/// Does what the arguments (without the program's name) say.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<String> =
        arguments.into_iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let Err(failure) = run_words(&words) else { return ExitCode::SUCCESS };
    let status = match failure {
        Failure::Arguments(_) | Failure::Setup(_) => 2,
        Failure::Runtime(_) => 1,
        Failure::Status(status, _) => status,
    };
    eprintln!("loader: {}", failure.message());
    ExitCode::from(status)
}

fn run_words(words: &[&str]) -> Result<(), Failure> {
    match *words {
        [] => serve::serve(),
        ["--help" | "-h" | "help"] => print(&help::general(COMMANDS)),
        ["--version" | "-V"] => print(concat!("loader ", env!("CARGO_PKG_VERSION"), "\n")),
        [name, ref rest @ ..] => match COMMANDS.iter().find(|command| command.name == name) {
            Some(command) if asks_for_help(rest) => print(&help::of(command)),
            Some(command) => (command.run)(rest).map_err(|failure| match failure {
                Failure::Arguments(reason) => Failure::Arguments(format!("{reason}; {}", command.usage())),
                other => other,
            }),
            None => Err(Failure::arguments(format!("unknown arguments: {}; see loader --help", words.join(" ")))),
        },
    }
}

/// What comes after two hyphens is another program's.
fn asks_for_help(words: &[&str]) -> bool {
    words.iter().take_while(|word| **word != "--").any(|word| matches!(*word, "--help" | "-h"))
}
