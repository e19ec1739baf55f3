//! The help texts, which follow from the tables of commands and of variables.

use super::{COMMANDS, Command};
use crate::configuration::{VARIABLES, Variable};

/// For the commands that talk to the running service.
pub(super) const SERVICE: &str = "\
The service is reached at BIND_ADDR. If it demands a bearer token, CLIENT_TOKEN must hold it. Both are read from the
environment.
";

/// For the commands that need an account.
pub(super) const ACCOUNT: &str = "\
  EMAIL, --email EMAIL   the account at the Resource API; asked for if it is missing
  --password-stdin       read the password from the first line of standard input, such as a pipe;
                         without it the password is asked for and not shown, which needs a terminal (ssh -t)
";

/// `loader --help`.
pub(super) fn general() -> String {
    let mut help = String::from(
        "loader: downloads, decrypts, encrypts and uploads AI models, and unlocks the container images of an edge device\n\
         \nUsage:\n",
    );
    let mut row = |usage: &str, summary: &str| {
        // A long usage has a line of its own.
        let gap = if usage.len() > 22 { format!("\n{:25}", "") } else { " ".repeat(23 - usage.len()) };
        help.push_str(&format!("  {usage}{gap}{summary}\n"));
    };
    row("loader", "serve the HTTP API, configured by the environment variables below");
    for command in COMMANDS {
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
    let secrets: Vec<&str> = VARIABLES.iter().filter(|row| row.is_secret).map(|row| row.name).collect();
    help.push_str(&format!(
        "\nIn place of {}: the same name with _FILE added\n\
         names a file that holds the value, such as a secret of docker or a credential of systemd.\n\
         \nExit status: 0 done or stopped by a signal, 1 failed, 2 wrong usage or configuration.\n",
        secrets.join(", ")
    ));
    help
}

/// `loader COMMAND --help`.
pub(super) fn of(command: &Command) -> String {
    let paragraphs = command.help.join("\n");
    format!("Usage: {}\n\n{paragraphs}\nExit status: 0 done, 1 failed, 2 wrong usage.\n", command.usage())
}
