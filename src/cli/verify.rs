//! `loader verify`: has the running service compare its whole model cache with the manifests, and repair it.

use std::io;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::command::{Command, Failure, no_arguments, print};
use super::help;
use super::progress::{Progress, size};
use super::running_service::{RunningService, STATUS_TIMEOUT, until_free};

/// Chunks in one request: few enough for the bar to move, even when all of them are fetched again.
const CHUNKS: u64 = 16;

/// One request takes this long at most, with a slow uplink that fetches all of its chunks again.
const TIMEOUT: Duration = Duration::from_secs(900);

pub(super) static COMMAND: Command = Command {
    name: "verify",
    arguments: "",
    summary: "compare the whole model cache with its manifests and repair it",
    help: &[
        "\
Makes the running service read its whole model cache, compare it with the manifests and fetch damaged chunks again. The
service must be logged in to do the latter. Shows the progress on standard error: with a bar on a terminal, with a line
every 10 s elsewhere. Exit status 1 also means that something is damaged and could not be repaired.
",
        help::SERVICE,
    ],
    run,
};

#[derive(Deserialize)]
struct Cache {
    models: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    folder: String,
    name: String,
    bytes: u64,
}

/// The service's answer about some chunks of a model.
#[derive(Deserialize)]
struct Verified {
    chunks: u64,
    bytes: u64,
    repaired: u64,
    bad: u64,
    reason: Option<String>,
}

fn run(words: &[&str]) -> Result<(), Failure> {
    no_arguments(words)?;
    let service = RunningService::from_environment()?;
    let (body, _) = service.ask("/models", None, STATUS_TIMEOUT)?;
    let Cache { models } = parse(&body)?;
    let total = models.iter().map(|model| model.bytes).sum();
    let mut progress = Progress::on(io::stderr());
    let (mut done, mut repaired, mut problems) = (0, 0, Vec::new());
    for model in &models {
        let mut verified = done;
        let result = verify(&service, model, |chunks| {
            verified += chunks.bytes;
            repaired += chunks.repaired;
            progress.show_long("verifying", verified, total);
        });
        match result {
            Ok(None) => {}
            Ok(Some(problem)) => problems.push(problem),
            Err(error) => {
                progress.end();
                return Err(error);
            }
        }
        done += model.bytes;
    }
    progress.finish_bar("verified", total, total);
    let (count, bytes) = (models.len(), size(total));
    match &problems[..] {
        [] => print(&format!("models verified: {count} ({bytes}), damaged chunks repaired: {repaired}\n")),
        [problem] => Err(Failure::runtime(problem)),
        [problem, ..] => Err(Failure::runtime(format!(
            "{} of {count} models are damaged; the first: {problem} (the service's log has the others)",
            problems.len()
        ))),
    }
}

/// Verifies a model up to the first chunk that cannot be repaired: the sentence about that, if there is one.
fn verify(
    service: &RunningService,
    model: &Model,
    mut report: impl FnMut(&Verified),
) -> Result<Option<String>, Failure> {
    let Model { folder, name, .. } = model;
    let mut first = 0;
    loop {
        let request = json!({ "folder": folder, "filename": name, "first": first, "count": CHUNKS }).to_string();
        let verified: Verified = match until_free(|| service.ask("/models/verify", Some(request.as_bytes()), TIMEOUT)) {
            Ok((body, _)) => parse(&body)?,
            // It has left the cache since the list was made.
            Err(error) if error.status == Some(404) => return Ok(None),
            Err(error) if error.status == Some(500) => return Ok(Some(format!("{folder}/{name}: {error}"))),
            Err(error) => return Err(error.into()),
        };
        report(&verified);
        if let Some(reason) = verified.reason.filter(|_| verified.bad > 0) {
            return Ok(Some(format!("{folder}/{name} is damaged and cannot be repaired: {reason}")));
        }
        first += CHUNKS;
        if first >= verified.chunks {
            return Ok(None);
        }
    }
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(body)
        .map_err(|error| Failure::runtime(format!("the service is of another version than this command: {error}")))
}
