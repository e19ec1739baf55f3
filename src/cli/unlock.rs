//! `loader unlock`: starts the unlock in the running service, or joins the one that runs, and follows it to its end.

use std::time::Duration;

use super::command::{Command, Failure};
use super::help;
use super::login::ask_for_service;
use super::progress::Progress;
use super::running_service::{LOGIN_TIMEOUT, STATUS_TIMEOUT, text};
use super::status::amounts;

/// How often the service is asked how far the unlock is.
const POLL: Duration = Duration::from_millis(200);

pub(super) static COMMAND: Command = Command {
    name: "unlock",
    arguments: "[EMAIL] [--password-stdin]",
    summary: "unlock the container images and follow the unlock to its end",
    help: &[
        "\
Makes the running service decrypt the archive at its IMAGES_PATH into docker load, and shows the progress until the
images are ready or the unlock has failed: with a bar on a terminal, with a line for each step and every 10 s elsewhere.
Ctrl-C ends this command, not the unlock.
",
        help::ACCOUNT,
        help::SERVICE,
    ],
    run,
};

fn run(words: &[&str]) -> Result<(), Failure> {
    let (service, credentials) = ask_for_service(words)?;
    service.ask("/unlock", Some(&credentials.to_json()), LOGIN_TIMEOUT)?;
    drop(credentials);
    let mut progress = Progress::on(std::io::stdout());
    loop {
        let (_, status) = service.ask("/unlock/status", None, STATUS_TIMEOUT).map_err(|error| {
            progress.end();
            Failure::runtime(format!("the unlock cannot be followed any further: {error}"))
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
                return Err(Failure::runtime("the service was restarted during the unlock; unlock again"));
            }
            state => progress.show(state, done, total),
        }
        std::thread::sleep(POLL);
    }
}
