//! What is read of a docker command: the end of its output, and from that why it failed.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::threads;

/// How often an exit status is polled.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Why a docker command failed.
#[derive(Debug)]
pub enum DockerError {
    /// There is no `docker` command.
    NotInstalled,
    /// The `docker` command could not be run.
    NotRun(io::Error),
    /// The command runs, but reaches no engine.
    EngineDown(String),
    /// A command reported a failure.
    Failed {
        /// The command, such as `load`.
        command: &'static str,
        /// The end of its standard error.
        message: String,
    },
    /// `docker load` stopped reading for this long and was killed.
    Stalled(Duration),
}

impl fmt::Display for DockerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInstalled => f.write_str("the docker command is not installed, or not in PATH"),
            Self::NotRun(error) => write!(f, "the docker command cannot be run: {error}"),
            Self::EngineDown(message) => write!(f, "the Docker engine does not answer: {message}"),
            Self::Failed { command, message } => write!(f, "docker {command} failed: {message}"),
            Self::Stalled(limit) => {
                write!(f, "docker load took no data for {} seconds and was killed", limit.as_secs())
            }
        }
    }
}

/// The failure of a command: the last three lines of its standard error, or else its exit status.
pub(super) fn failed(command: &'static str, stderr: Tail, status: Option<ExitStatus>) -> DockerError {
    let text = stderr.finish();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let message = match (&lines[lines.len().saturating_sub(3)..], status) {
        ([], Some(status)) => format!("it ended with {status}"),
        ([], None) => "it did not end".into(),
        (last, _) => last.join("; "),
    };
    DockerError::Failed { command, message }
}

/// How many bytes are kept. A line for each image of an engine fits.
pub(super) const KEPT: usize = 1024 * 1024;

/// Reads a stream on a thread of its own, so that the command never blocks on a full pipe, and keeps its end.
pub(super) struct Tail(JoinHandle<Vec<u8>>);

impl Tail {
    pub(super) fn of(stream: Option<impl Into<OwnedFd>>) -> io::Result<Self> {
        let stream = stream.map(|stream| File::from(stream.into()));
        threads::spawn("docker-output", move || stream.map(end_of).unwrap_or_default()).map(Self)
    }

    /// Waits until the command has closed the stream.
    pub(super) fn finish(self) -> String {
        String::from_utf8_lossy(&self.0.join().unwrap_or_default()).into_owned()
    }
}

fn end_of(mut stream: File) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..count]);
        let excess = kept.len().saturating_sub(KEPT);
        kept.drain(..excess);
    }
    kept
}
