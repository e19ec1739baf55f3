//! What a command is, how it fails, and what most commands need.

use std::io::Write;

use crate::configuration::Configuration;

/// A command: `loader NAME ARGUMENTS`.
pub(super) struct Command {
    pub(super) name: &'static str,
    /// Its arguments, as the usage shows them.
    pub(super) arguments: &'static str,
    /// What it does, in one line of the general help.
    pub(super) summary: &'static str,
    /// The paragraphs of its own help.
    pub(super) help: &'static [&'static str],
    /// Does it with the words after its name.
    pub(super) run: fn(&[&str]) -> Result<(), Failure>,
}

impl Command {
    pub(super) fn usage(&self) -> String {
        format!("loader {} {}", self.name, self.arguments).trim_end().to_owned()
    }

    /// Its long options: those that begin a line of the help, and those that only the usage shows.
    pub(super) fn options(&self) -> Vec<&'static str> {
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
pub(super) enum Failure {
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
    pub(super) fn arguments(reason: impl ToString) -> Self {
        Self::Arguments(reason.to_string())
    }

    pub(super) fn setup(reason: impl ToString) -> Self {
        Self::Setup(reason.to_string())
    }

    pub(super) fn runtime(reason: impl ToString) -> Self {
        Self::Runtime(reason.to_string())
    }

    pub(super) fn message(self) -> String {
        match self {
            Self::Arguments(message) | Self::Setup(message) | Self::Runtime(message) | Self::Status(_, message) => {
                message
            }
        }
    }
}

/// A reader that goes away, such as `head`, is no failure.
#[expect(clippy::unnecessary_wraps, reason = "one type for all commands")]
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

pub(super) fn configuration() -> Result<Configuration, Failure> {
    Configuration::from_environment().map_err(Failure::setup)
}

/// Whether the only argument that a command takes is there.
pub(super) fn has_flag(words: &[&str], flag: &str) -> Result<bool, Failure> {
    if *words == [flag] { Ok(true) } else { no_arguments(words).map(|()| false) }
}

/// Prints an answer of the service as it is.
pub(super) fn print_answer(body: &[u8]) -> Result<(), Failure> {
    print(&format!("{}\n", String::from_utf8_lossy(body).trim_end()))
}

pub(super) fn no_arguments(words: &[&str]) -> Result<(), Failure> {
    if words.is_empty() {
        return Ok(());
    }
    Err(Failure::arguments(format!("unknown arguments: {}", words.join(" "))))
}
