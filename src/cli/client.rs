//! The commands that talk to the running service, and whose account they are for: the email from the arguments or asked for, the password asked for or from standard input,
//! never from the arguments, which every user of the machine can see.

use std::time::Duration;

use super::call::{RunningService, text};
use super::progress::{Progress, size};
use super::terminal::{ask, ask_secretly, is_interactive, read_line};
use super::{Failure, print};
use crate::configuration::Configuration;
use crate::credentials::Credentials;
use crate::secret::Secret;

/// How long a login may take: the service tries the Resource API three times, over a flaky uplink.
const LOGIN_PATIENCE: Duration = Duration::from_secs(300);

/// The service answers where an unlock is from memory.
const STATUS_PATIENCE: Duration = Duration::from_secs(10);

/// How often the service is asked where the unlock is.
const POLL: Duration = Duration::from_millis(200);

/// What the arguments of `loader login` and `loader unlock` say.
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
                "--password" | "-p" => return Err(NEVER.into()),
                word if word.starts_with("--password=") => return Err(NEVER.into()),
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
                // The second may be a password.
                return Err("one email only; the password is asked for, or use --password-stdin".into());
            }
        }
        Ok(account)
    }

    /// Asks for what is missing.
    fn credentials(self) -> Result<Credentials, Failure> {
        let interactive = is_interactive();
        let unanswered = |error: std::io::Error| Failure::runtime(format!("no answer: {error}"));
        let email = match self.email {
            Some(email) => email,
            None if interactive && !self.password_stdin => ask("Email: ").map_err(unanswered)?,
            None => return Err(Failure::usage("name the account's email; there is no terminal to ask for it")),
        };
        let password = if interactive {
            ask_secretly("Password: ").map_err(unanswered)?
        } else if self.password_stdin {
            let line = read_line().map_err(|error| Failure::runtime(format!("standard input: {error}")))?;
            Secret::new(line.map(|line| line.to_string()).unwrap_or_default())
        } else {
            // Over ssh without a terminal the person's own would show the password.
            return Err(Failure::usage(
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

const NEVER: &str = "a password in the arguments is seen by every user; it is asked for, or use --password-stdin";

/// The service and the account, once both are known to be there: nobody types a password for a service that is down.
fn prepare(words: &[&str], usage: &str) -> Result<(RunningService, Credentials), Failure> {
    let account = Account::parse(words).map_err(|reason| Failure::usage(format!("{reason}; {usage}")))?;
    let service = RunningService(Configuration::for_clients().map_err(Failure::usage)?);
    service.ask("/status", None, STATUS_PATIENCE).map_err(Failure::runtime)?;
    Ok((service, account.credentials()?))
}

/// `loader login`.
pub(super) fn login(words: &[&str]) -> Result<(), Failure> {
    let (service, credentials) = prepare(words, "loader login [EMAIL] [--password-stdin]")?;
    service.ask("/login", Some(&credentials.to_json()), LOGIN_PATIENCE).map_err(Failure::runtime)?;
    print(&format!("logged in as {}\n", credentials.email))
}

/// `loader unlock`: starts the unlock, or joins the one that runs, and follows it to its end.
pub(super) fn unlock(words: &[&str]) -> Result<(), Failure> {
    let (service, credentials) = prepare(words, "loader unlock [EMAIL] [--password-stdin]")?;
    service.ask("/unlock", Some(&credentials.to_json()), LOGIN_PATIENCE).map_err(Failure::runtime)?;
    drop(credentials);
    let mut progress = Progress::on(std::io::stdout());
    loop {
        let (_, status) = service.ask("/unlock/status", None, STATUS_PATIENCE).map_err(|reason| {
            progress.end();
            Failure::runtime(format!("the unlock cannot be followed any further: {reason}"))
        })?;
        let (done, total) = amounts(&status);
        match text(&status["state"]) {
            "ready" => {
                progress.finish("ready", done, total);
                return Ok(());
            }
            "error" => {
                progress.end();
                return Err(Failure::runtime(text(&status["error"])));
            }
            "idle" => {
                progress.end();
                return Err(Failure::runtime("the service was started anew meanwhile; unlock again"));
            }
            state => progress.show(state, done, total),
        }
        std::thread::sleep(POLL);
    }
}

/// `loader status`.
pub(super) fn status(words: &[&str]) -> Result<(), Failure> {
    let raw = match words {
        [] => false,
        ["--json"] => true,
        _ => {
            let words = words.join(" ");
            return Err(Failure::usage(format!("unknown arguments: {words}; loader status [--json]")));
        }
    };
    let service = RunningService(Configuration::for_clients().map_err(Failure::usage)?);
    let (answer, status) = service.ask("/status", None, STATUS_PATIENCE).map_err(Failure::runtime)?;
    if raw {
        return print(&format!("{}\n", String::from_utf8_lossy(&answer.body).trim_end()));
    }
    let (_, unlock) = service.ask("/unlock/status", None, STATUS_PATIENCE).map_err(Failure::runtime)?;
    let mut table = String::new();
    let mut row = |name: &str, value: String| table.push_str(&format!("{name:14}{value}\n"));
    row("service", format!("{} at {}", text(&status["status"]), service.address()));
    if let Some(version) = status["version"].as_str() {
        row("version", version.to_owned());
    }
    let user = &status["user"];
    row(
        "logged in",
        match (status["authenticated"].as_bool(), user["email"].as_str()) {
            (Some(true), Some(email)) => match text(&user["role"]) {
                "" => email.to_owned(),
                role => format!("{email} ({role})"),
            },
            (Some(true), None) => "yes".into(),
            _ => "no; run loader login".into(),
        },
    );
    let cache = &status["cache"];
    row(
        "model cache",
        match (cache["files"].as_u64(), cache["bytes"].as_u64()) {
            (Some(files), Some(bytes)) => format!("{}, {files} files, {}", text(&status["modelCacheDir"]), size(bytes)),
            _ => text(&status["modelCacheDir"]).to_owned(),
        },
    );
    row(
        "images",
        match (text(&unlock["state"]), amounts(&unlock)) {
            ("error", _) => format!("error: {}", text(&unlock["error"])),
            (state @ ("idle" | "ready"), _) | (state, (_, 0)) => state.to_owned(),
            (state, (done, total)) => format!("{state}, {} of {}", size(done), size(total)),
        },
    );
    print(&table)
}

fn amounts(unlock: &serde_json::Value) -> (u64, u64) {
    let progress = &unlock["progress"];
    (progress["done"].as_u64().unwrap_or(0), progress["total"].as_u64().unwrap_or(0))
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
