//! The command line: what a person types, and the exit status they get.
//!
//! A command is one file with its `Command`, and one row of `COMMANDS`; the help texts come from there.

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
use std::io::Write;
use std::process::ExitCode;

use crate::configuration::Configuration;

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
    &completions::COMMAND,
    #[cfg(feature = "mount")]
    &mount::COMMAND,
];

/// A command: `loader NAME ARGUMENTS`.
struct Command {
    name: &'static str,
    /// Its arguments, as the usage shows them.
    arguments: &'static str,
    /// What it does, in one line of the general help.
    summary: &'static str,
    /// The paragraphs of its own help.
    help: &'static [&'static str],
    /// Does it with the words after its name.
    run: fn(&[&str]) -> Result<(), Failure>,
}

impl Command {
    fn usage(&self) -> String {
        format!("loader {} {}", self.name, self.arguments).trim_end().to_owned()
    }

    /// Its long options: those that begin a line of the help, and those that only the usage shows.
    fn options(&self) -> Vec<&'static str> {
        let lines = self.help.iter().flat_map(|paragraph| paragraph.lines());
        let described = lines.filter_map(|line| line.strip_prefix("  ")).filter(|line| !line.starts_with(' '));
        let words = described.chain([self.arguments]).flat_map(|text| text.split([' ', ',', '[', ']']));
        let mut options: Vec<&str> = words.filter(|word| word.len() > 2 && word.starts_with("--")).collect();
        options.sort_unstable();
        options.dedup();
        options
    }
}

/// Why the program ends without success.
enum Failure {
    /// The arguments are wrong. The command's usage follows the reason.
    Arguments(String),
    /// The environment is wrong, or does not fit the command.
    Setup(String),
    /// Anything else.
    Runtime(String),
    /// With an exit status of its own.
    Status(u8, String),
}

impl Failure {
    fn arguments(reason: impl ToString) -> Self {
        Self::Arguments(reason.to_string())
    }

    fn setup(reason: impl ToString) -> Self {
        Self::Setup(reason.to_string())
    }

    fn runtime(reason: impl ToString) -> Self {
        Self::Runtime(reason.to_string())
    }

    fn message(self) -> String {
        match self {
            Self::Arguments(message) | Self::Setup(message) | Self::Runtime(message) | Self::Status(_, message) => {
                message
            }
        }
    }
}

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
        ["--help" | "-h" | "help"] => print(&help::general()),
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

/// A reader that goes away, such as `head`, is no failure.
#[expect(clippy::unnecessary_wraps, reason = "one type for all commands")]
fn print(text: &str) -> Result<(), Failure> {
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

fn configuration() -> Result<Configuration, Failure> {
    Configuration::from_environment().map_err(Failure::setup)
}

/// Whether the only argument that a command takes is there.
fn has_flag(words: &[&str], flag: &str) -> Result<bool, Failure> {
    if *words == [flag] { Ok(true) } else { no_arguments(words).map(|()| false) }
}

/// Prints an answer of the service as it is.
fn print_answer(body: &[u8]) -> Result<(), Failure> {
    print(&format!("{}\n", String::from_utf8_lossy(body).trim_end()))
}

fn no_arguments(words: &[&str]) -> Result<(), Failure> {
    if words.is_empty() {
        return Ok(());
    }
    Err(Failure::arguments(format!("unknown arguments: {}", words.join(" "))))
}
