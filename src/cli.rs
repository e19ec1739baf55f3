//! The command line: what a person types, and the exit status they get.

mod call;
mod client;
mod pack;
mod progress;
mod shutdown;
mod terminal;

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use self::call::RunningService;
use crate::api_client::hardware;
use crate::configuration::{BindAddress, Configuration, VARIABLES, Variable};
use crate::http::{Listener, Server, Service};
use crate::manifest::Keygen;
use crate::{logging, systemd};

const HELP: &str = "\
loader: downloads, decrypts, encrypts and uploads AI models, and unlocks the container images of an edge device

Usage:
  loader                 serve the HTTP API (configured by environment variables)
  loader status [--json] what the running service at BIND_ADDR is and does
  loader login [EMAIL] [--password-stdin]
                         log the running service in; the password is asked for, or read from standard input
  loader unlock [EMAIL] [--password-stdin]
                         unlock the container images and follow that to its end
  loader fingerprint     print the hardware string, to register this box
  loader healthcheck     ask the running service at BIND_ADDR; exit status 0 if it is healthy, else 1
  loader pack --key-file FILE [IN] [OUT]
                         encrypt a docker save tar into an archive for IMAGES_PATH
                         (default: standard input and output; FILE holds the key fragment)
  loader keygen DIR      make a key pair for SIGNING_KEY_PATH and TRUSTED_KEYS_PATH
  loader COMMAND --help  print more about a command
  loader --help          print this text
  loader --version       print the version
";

const EXIT_STATUS: &str = "
Exit status: 0 done or stopped by a signal, 1 failed, 2 wrong usage or configuration.
";

/// What every command that talks to the service says of it.
macro_rules! of_the_service {
    () => {
        "
The service is found by BIND_ADDR and, where it wants one, told CLIENT_TOKEN, both from the environment.
Exit status: 0 done, 1 failed, 2 wrong usage.
"
    };
}

/// What the commands that need an account say of it.
macro_rules! of_the_account {
    () => {
        "
  EMAIL, --email EMAIL   the account at the Resource API; asked for if it is missing
  --password-stdin       read the password from the first line of standard input, such as a pipe;
                         else it is asked for without showing it, which needs a terminal (ssh -t)
"
    };
}

/// A command: what it does with the words behind its name, and what its help says.
struct Command {
    name: &'static str,
    help: &'static str,
    run: fn(&[&str]) -> Result<(), Failure>,
}

const COMMANDS: [Command; 7] = [
    Command {
        name: "status",
        help: concat!(
            "\
Usage: loader status [--json]

Prints who is logged in at the running service, its model cache, and where the unlock is.

  --json                 print the service's answer to GET /status as it is
",
            of_the_service!()
        ),
        run: client::status,
    },
    Command {
        name: "login",
        help: concat!(
            "\
Usage: loader login [EMAIL] [--password-stdin]

Logs the running service in to the Resource API, so that it can load and upload models.
",
            of_the_account!(),
            of_the_service!()
        ),
        run: client::login,
    },
    Command {
        name: "unlock",
        help: concat!(
            "\
Usage: loader unlock [EMAIL] [--password-stdin]

Has the running service decrypt the archive at its IMAGES_PATH into docker load, and follows that until it is ready or
failed: with a bar on a terminal, with a line for each step and every 10 s elsewhere. Ctrl-C stops the following only.
",
            of_the_account!(),
            of_the_service!()
        ),
        run: client::unlock,
    },
    Command {
        name: "fingerprint",
        help: "\
Usage: loader fingerprint

Prints the hardware string of this box, which the Resource API must know, or HARDWARE_ID where that is set.
",
        run: fingerprint,
    },
    Command {
        name: "healthcheck",
        help: concat!(
            "\
Usage: loader healthcheck

Asks the running service whether it is healthy. Silent if it is.
",
            of_the_service!()
        ),
        run: healthcheck,
    },
    Command {
        name: "pack",
        help: "\
Usage: loader pack --key-file FILE [IN] [OUT]

Encrypts a docker save tar into an archive for IMAGES_PATH.

  --key-file FILE        holds the key fragment
  IN, OUT                files; a hyphen or nothing: standard input and output

Shows how far it is on standard error: with a bar on a terminal, with a line every 10 s elsewhere.
Exit status: 0 done, 1 failed, 2 wrong usage.
",
        run: pack,
    },
    Command {
        name: "keygen",
        help: "\
Usage: loader keygen DIR

Makes an Ed25519 key pair in the directory DIR, which is created:
  signing-key.pem        for SIGNING_KEY_PATH where models are uploaded; nobody else may have it
  trusted-keys.pem       for TRUSTED_KEYS_PATH on the boxes; several such files may be joined to one

Replaces no file. Exit status: 0 done, 1 failed, 2 wrong usage.
",
        run: keygen,
    },
];

/// How long a healthy service may take to say so.
const HEALTH_PATIENCE: Duration = Duration::from_secs(3);

/// How long running transfers may go on after a signal.
const FINISH_LIMIT: Duration = Duration::from_secs(10);

/// Why the program ends without success: the sentence for stderr, and the exit status.
struct Failure {
    message: String,
    status: u8,
}

impl Failure {
    /// The command line or the environment is at fault.
    fn usage(message: impl ToString) -> Self {
        Self { message: message.to_string(), status: 2 }
    }

    /// Something else is.
    fn runtime(message: impl ToString) -> Self {
        Self { message: message.to_string(), status: 1 }
    }
}

/// Does what the arguments (without the program's name) say.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<String> =
        arguments.into_iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        [] => serve(),
        ["--help" | "-h" | "help"] => print(&help()),
        ["--version" | "-V"] => print(concat!("loader ", env!("CARGO_PKG_VERSION"), "\n")),
        [name, ref rest @ ..] => match COMMANDS.iter().find(|command| command.name == name) {
            Some(command) if rest.iter().any(|word| matches!(*word, "--help" | "-h")) => print(command.help),
            Some(command) => (command.run)(rest),
            None => Err(Failure::usage(format!("unknown arguments: {}; see loader --help", words.join(" ")))),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("loader: {}", failure.message);
            ExitCode::from(failure.status)
        }
    }
}

/// A reader that goes away, such as `head`, is no failure.
#[expect(clippy::unnecessary_wraps, reason = "one type for all commands")]
fn print(text: &str) -> Result<(), Failure> {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

/// `loader --help`, with the table of variables.
fn help() -> String {
    let mut help = format!("{HELP}\nEnvironment (name, default, meaning):\n");
    for Variable { name, default, help: meaning, .. } in VARIABLES {
        let default = if default.is_empty() { "(none)" } else { default };
        help.push_str(&format!("  {name:21} {default:24} {meaning}\n"));
    }
    let secrets: Vec<&str> = VARIABLES.iter().filter(|row| row.is_secret).map(|row| row.name).collect();
    help.push_str(&format!("\nIn place of {}: the same name with _FILE added\n", secrets.join(", ")));
    help.push_str("names a file that holds the value, such as a secret of docker or a credential of systemd.\n");
    help + EXIT_STATUS
}

fn configuration() -> Result<Configuration, Failure> {
    Configuration::from_environment().map_err(Failure::usage)
}

fn fingerprint(words: &[&str]) -> Result<(), Failure> {
    no_arguments(words)?;
    print(&format!("{}\n", hardware(&configuration()?)))
}

fn healthcheck(words: &[&str]) -> Result<(), Failure> {
    no_arguments(words)?;
    let service = RunningService(Configuration::for_clients().map_err(Failure::usage)?);
    match service.call("/health", None, HEALTH_PATIENCE) {
        Ok(answer) if answer.status == 200 => Ok(()),
        Ok(answer) => Err(format!("it answered {} at {}", answer.status, service.address())),
        Err(reason) => Err(reason),
    }
    .map_err(|reason| Failure::runtime(format!("the service is not healthy: {reason}")))
}

fn no_arguments(words: &[&str]) -> Result<(), Failure> {
    if words.is_empty() {
        return Ok(());
    }
    Err(Failure::usage(format!("unknown arguments: {}; this command has none", words.join(" "))))
}

fn pack(words: &[&str]) -> Result<(), Failure> {
    let arguments = pack::Arguments::parse(words)
        .map_err(|reason| Failure::usage(format!("{reason}; loader pack --key-file FILE [IN] [OUT]")))?;
    pack::pack(&arguments).map_err(Failure::runtime)
}

/// The sockets that systemd has opened, or else the one of `BIND_ADDR`.
fn listeners(bind_address: &BindAddress) -> Result<Vec<Listener>, Failure> {
    if let Some(sockets) = systemd::sockets().map_err(Failure::usage)? {
        let prepared = sockets.into_iter().map(|socket| match socket {
            systemd::Socket::Tcp(listener) => Listener::Tcp(listener).prepared(),
            systemd::Socket::Unix(listener) => Listener::Unix(listener, None).prepared(),
        });
        let listeners: io::Result<Vec<Listener>> = prepared.collect();
        return listeners
            .map_err(|error| Failure::usage(format!("LISTEN_FDS names a socket that cannot be used: {error}")));
    }
    let listener = Listener::bind(bind_address)
        .map_err(|error| Failure::usage(format!("BIND_ADDR {bind_address} cannot be listened on: {error}")))?;
    Ok(vec![listener])
}

fn keygen(words: &[&str]) -> Result<(), Failure> {
    let [directory] = words else { return Err(Failure::usage("keygen needs one directory; loader keygen DIR")) };
    if directory.starts_with('-') {
        return Err(Failure::usage(format!("unknown option {directory}; loader keygen DIR")));
    }
    let files = Keygen::write(Path::new(directory)).map_err(Failure::runtime)?;
    print(&format!("{}\n{}\n", files.private.display(), files.public.display()))
}

fn serve() -> Result<(), Failure> {
    let configuration = configuration()?;
    logging::start(configuration.log_level, configuration.log_dir.as_deref());
    let stop =
        shutdown::on_signal().map_err(|error| Failure::runtime(format!("signals cannot be watched: {error}")))?;
    let bind_address = configuration.bind_address.clone();
    let default_salts = configuration.default_salts().join(", ");
    let has_token = configuration.client_token.is_some();
    // First of all: where another loader serves already, nothing of its files may be touched.
    let listeners = listeners(&bind_address)?;
    let service = Arc::new(Service::new(configuration).map_err(Failure::usage)?);

    for listener in &listeners {
        log::info!("loader {} listens on {}", env!("CARGO_PKG_VERSION"), listener.address());
    }
    if !default_salts.is_empty() {
        log::warn!("{default_salts}: the default is public and protects nothing; set the salts of your installation");
    }
    for listener in listeners.iter().filter(|listener| !has_token && listener.is_open_to_the_network()) {
        log::warn!(
            "{} is open to the network and CLIENT_TOKEN is not set: everybody there can log in, load models and upload them",
            listener.address()
        );
    }
    let running = Server::new(Arc::clone(&service), listeners, stop)
        .serve()
        .map_err(|error| Failure::runtime(format!("requests cannot be served: {error}")))?;
    if !running.finish_within(FINISH_LIMIT) {
        log::warn!("transfers that did not finish within {} s are cut off", FINISH_LIMIT.as_secs());
    }
    service.stop();
    log::info!("stopped");
    log::logger().flush();
    Ok(())
}
