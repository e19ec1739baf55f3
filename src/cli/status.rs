//! `loader status`: what the running service is and does.

use serde_json::Value;

use super::command::{Command, Failure, has_flag, print, print_answer};
use super::help;
use super::progress::size;
use super::running_service::{RunningService, STATUS_TIMEOUT, text};

pub(super) static COMMAND: Command = Command {
    name: "status",
    arguments: "[--json]",
    summary: "what the running service is and does",
    help: &[
        "\
Prints who is logged in at the running service, its model cache, and how far the unlock is.

  --json                 print the service's answer to GET /status as it is
",
        help::SERVICE,
    ],
    run,
};

fn run(words: &[&str]) -> Result<(), Failure> {
    let is_raw = has_flag(words, "--json")?;
    let service = RunningService::from_environment()?;
    let (body, status) = service.ask("/status", None, STATUS_TIMEOUT)?;
    if is_raw {
        return print_answer(&body);
    }
    let (_, unlock) = service.ask("/unlock/status", None, STATUS_TIMEOUT)?;
    let cache = &status["cache"];
    let mut table = String::new();
    let mut row = |name: &str, value: String| table.push_str(&format!("{name:14}{value}\n"));
    row("service", format!("{} at {}", text(&status["status"]), service.address()));
    if let Some(version) = status["version"].as_str() {
        row("version", version.to_owned());
    }
    row("logged in", logged_in(&status));
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

fn logged_in(status: &Value) -> String {
    let user = &status["user"];
    match (status["authenticated"].as_bool(), text(&user["email"]), text(&user["role"])) {
        (Some(true), "", _) => "yes".into(),
        (Some(true), email, "") => email.to_owned(),
        (Some(true), email, role) => format!("{email} ({role})"),
        _ => "no; run loader login".into(),
    }
}

/// How many bytes of how many the unlock has done.
pub(super) fn amounts(unlock: &Value) -> (u64, u64) {
    let progress = &unlock["progress"];
    (progress["done"].as_u64().unwrap_or(0), progress["total"].as_u64().unwrap_or(0))
}
