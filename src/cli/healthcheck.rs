//! `loader healthcheck`: the liveness probe for images without `curl`.

use std::time::Duration;

use super::running_service::RunningService;
use super::{Command, Failure, help, no_arguments};

/// A healthy service answers within this time.
const TIMEOUT: Duration = Duration::from_secs(3);

pub(super) static COMMAND: Command = Command {
    name: "healthcheck",
    arguments: "",
    summary: "exit status 0 if the running service is healthy, else 1",
    help: &["Asks the running service whether it is healthy. Silent if it is.\n", help::SERVICE],
    run,
};

fn run(words: &[&str]) -> Result<(), Failure> {
    no_arguments(words)?;
    let service = RunningService::from_environment()?;
    let unhealthy = |reason: String| Failure::runtime(format!("the service is not healthy: {reason}"));
    match service.call("/health", None, TIMEOUT).map_err(unhealthy)?.head.status {
        200 => Ok(()),
        status => Err(unhealthy(format!("it answered {status} at {}", service.address()))),
    }
}
