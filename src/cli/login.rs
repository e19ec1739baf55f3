//! `loader login`, and the account that commands are for: its email comes from the arguments or is asked for, its password is
//! asked for or comes from standard input, never from the arguments, which every user of the machine can see.

use super::command::{Command, Failure, print};
use super::help;
use super::running_service::{LOGIN_TIMEOUT, RunningService, STATUS_TIMEOUT};
use super::terminal::{ask, ask_secretly, is_interactive, read_line};
use crate::credentials::Credentials;
use crate::secret::Secret;

pub(super) static COMMAND: Command = Command {
    name: "login",
    arguments: "[EMAIL] [--password-stdin]",
    summary: "log the running service in; the password is asked for, or read from standard input",
    help: &[
        "Logs the running service in to the Resource API, so that it can load and upload models.\n",
        help::ACCOUNT,
        help::SERVICE,
    ],
    run,
};

fn run(words: &[&str]) -> Result<(), Failure> {
    let (service, credentials) = ask_for_service(words)?;
    service.ask("/login", Some(&credentials.to_json()), LOGIN_TIMEOUT)?;
    print(&format!("logged in as {}\n", credentials.email))
}

const PASSWORD_IN_ARGUMENTS: &str =
    "a password in the arguments is seen by every user; it is asked for, or use --password-stdin";

/// The running service and the account for it. The service is tried first: nobody types a password for one that is down.
pub(super) fn ask_for_service(words: &[&str]) -> Result<(RunningService, Credentials), Failure> {
    let account = Account::parse(words).map_err(Failure::arguments)?;
    let service = RunningService::from_environment()?;
    service.ask("/status", None, STATUS_TIMEOUT)?;
    Ok((service, account.credentials()?))
}

/// What the arguments say about the account.
#[derive(Debug, Default, PartialEq, Eq)]
struct Account {
    email: Option<String>,
    password_stdin: bool,
}

impl Account {
    fn parse(words: &[&str]) -> Result<Self, String> {
        let mut account = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let email = match *word {
                "--password-stdin" => {
                    account.password_stdin = true;
                    continue;
                }
                "--email" => words.next().filter(|email| !email.starts_with('-')).ok_or("--email needs an address")?,
                "--password" | "-p" => return Err(PASSWORD_IN_ARGUMENTS.into()),
                word if word.starts_with("--password=") => return Err(PASSWORD_IN_ARGUMENTS.into()),
                word => match word.strip_prefix("--email=") {
                    Some(email) => email,
                    None if word.starts_with('-') => return Err(format!("unknown option {word}")),
                    None => word,
                },
            };
            if email.is_empty() {
                return Err("the email is empty".into());
            }
            if account.email.replace(email.to_owned()).is_some() {
                // The second one may be a password.
                return Err("one email only; the password is asked for, or use --password-stdin".into());
            }
        }
        Ok(account)
    }

    /// Asks for what is missing.
    fn credentials(self) -> Result<Credentials, Failure> {
        let interactive = is_interactive();
        let unanswered = |error: std::io::Error| Failure::runtime(format!("the terminal gave no answer: {error}"));
        let email = match self.email {
            Some(email) => email,
            None if interactive && !self.password_stdin => ask("Email: ").map_err(unanswered)?,
            None => return Err(Failure::setup("name the account's email; there is no terminal to ask for it")),
        };
        let password = if interactive {
            ask_secretly("Password: ").map_err(unanswered)?
        } else if self.password_stdin {
            let line =
                read_line().map_err(|error| Failure::runtime(format!("standard input cannot be read: {error}")))?;
            Secret::new(line.map(|line| line.to_string()).unwrap_or_default())
        } else {
            // Over ssh without a terminal, the person's own terminal would show the password.
            return Err(Failure::setup(
                "there is no terminal to ask for the password: use ssh -t, or --password-stdin and pipe it in",
            ));
        };
        match (email.as_str(), password.expose()) {
            ("", _) => Err(Failure::runtime("the email is empty")),
            (_, "") => Err(Failure::runtime("the password is empty")),
            _ => Ok(Credentials { email, password }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Account;

    #[test]
    fn an_account_is_an_email_and_never_a_password() {
        let of = |email: Option<&str>, password_stdin| Ok(Account { email: email.map(Into::into), password_stdin });
        assert_eq!(Account::parse(&[]), of(None, false));
        for words in [&["a@b"][..], &["--email", "a@b"], &["--email=a@b"]] {
            assert_eq!(Account::parse(words), of(Some("a@b"), false));
        }
        assert_eq!(Account::parse(&["--password-stdin", "a@b"]), of(Some("a@b"), true));
        for words in [
            &["a@b", "secret"][..],
            &["--password", "secret"],
            &["--password=secret"],
            &["-p", "secret"],
            &["--email"],
            &["--email", "--password-stdin"],
            &["--email="],
            &["--fast"],
        ] {
            let error = Account::parse(words).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
