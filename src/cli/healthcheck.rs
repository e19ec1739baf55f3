//! `loader healthcheck`: the liveness and the readiness probe, for images without `curl`.

use std::time::Duration;

use serde_json::Value;

use super::command::{Command, Failure, has_flag};
use super::help;
use super::running_service::RunningService;

/// A healthy service answers within this time.
const TIMEOUT: Duration = Duration::from_secs(3);

pub(super) static COMMAND: Command = Command {
    name: "healthcheck",
    arguments: "[--ready]",
    summary: "exit status 0 if the running service is healthy (or ready), else 1",
    help: &[
        "\
Asks the running service whether it is healthy. Silent if it is.

  --ready                whether it is ready as well: logged in, with the models in KEEP and, with UNLOCK_AT_START, the
                         images; if not, the reasons are printed
",
        help::SERVICE,
    ],
    run,
};

fn run(words: &[&str]) -> Result<(), Failure> {
    let ready = has_flag(words, "--ready")?;
    let (path, wanted) = if ready { ("/ready", "ready") } else { ("/health", "healthy") };
    let service = RunningService::from_environment()?;
    let failed = |reason: String| Failure::runtime(format!("the service is not {wanted}: {reason}"));
    let answer = service.call(path, None, TIMEOUT).map_err(|error| failed(error.reason))?;
    match answer.head.status {
        200 => Ok(()),
        status => Err(failed(
            reasons(&answer.body).unwrap_or_else(|| format!("it answered {status} at {}", service.address())),
        )),
    }
}

/// What a service that is not ready is waiting for.
fn reasons(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let reasons: Vec<&str> = body["waiting"].as_array()?.iter().filter_map(Value::as_str).collect();
    Some(reasons.join("; "))
}
