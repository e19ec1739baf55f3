//! The help texts, which follow from the tables of commands and of variables.

use super::command::Command;
use crate::configuration::{VARIABLES, Variable};

/// For the commands that talk to the running service.
pub(super) const SERVICE: &str = "\
The service is reached at LOADER_URL, or else at BIND_ADDR. If it demands a bearer token, CLIENT_TOKEN must hold it, or
CLIENT_TOKEN_FILE name a file with it. All are read from the environment.
";

/// For the commands that need an account.
pub(super) const ACCOUNT: &str = "  EMAIL, --email EMAIL   the account at the Resource API; asked for if it is missing
  --password-stdin       read the password from the first line of standard input, such as a pipe;
                         without it the password is asked for and not shown, which needs a terminal (ssh -t)
";

pub(super) const INTRODUCTION: &str =
    "loader - downloads, decrypts, encrypts and uploads AI models, and unlocks the container images of an edge device";

/// `loader --help`.
pub(super) fn general(commands: &[&Command]) -> String {
    let mut help = format!("{}\n\nUsage:\n", INTRODUCTION.replacen(" -", ":", 1));
    let mut row = |usage: &str, summary: &str| {
        // A long usage has a line of its own.
        let gap = if usage.len() > 22 { format!("\n{:25}", "") } else { " ".repeat(23 - usage.len()) };
        help.push_str(&format!("  {usage}{gap}{summary}\n"));
    };
    row("loader", "serve the HTTP API, configured by the environment variables below");
    for command in commands {
        row(&command.usage(), command.summary);
    }
    row("loader COMMAND --help", "print more about a command");
    row("loader --help", "print this text");
    row("loader --version", "print the version");

    help.push_str("\nEnvironment (name, default, meaning):\n");
    for Variable { name, default, help: meaning, .. } in VARIABLES {
        let default = if default.is_empty() { "(none)" } else { default };
        help.push_str(&format!("  {name:21} {default:24} {meaning}\n"));
    }
    help.push_str(&format!(
        "\n{}\nExit status: 0 done or stopped by a signal, 1 failed, 2 wrong usage or configuration.\n",
        of_secrets()
    ));
    help
}

/// About the variables that name files with secrets.
pub(super) fn of_secrets() -> String {
    let secrets: Vec<&str> = VARIABLES.iter().filter(|row| row.is_secret).map(|row| row.name).collect();
    format!(
        "In place of {}: the same name with _FILE added\n\
         names a file that holds the value, such as a secret of docker or a credential of systemd.\n",
        secrets.join(", ")
    )
}

/// `loader COMMAND --help`.
pub(super) fn of(command: &Command) -> String {
    format!("Usage: {}\n\n{}", command.usage(), body(command))
}

/// What a command does, its options and its exit statuses.
pub(super) fn body(command: &Command) -> String {
    let mut help = command.help.join("\n");
    if !command.help.iter().any(|paragraph| paragraph.starts_with("Exit status: ")) {
        help.push_str("\nExit status: 0 done, 1 failed, 2 wrong usage.\n");
    }
    help
}
