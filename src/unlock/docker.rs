//! The Docker engine, through the `docker` command: so that contexts, `DOCKER_HOST` and credentials work as a person at the
//! box would have it.

mod load;
mod output;

use std::fmt;
use std::io;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use self::output::Tail;

pub use self::load::Load;

use crate::configuration::VARIABLES;
use crate::systemd;

/// An engine that does not answer a question within this time is down.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// A `docker load` that reads nothing for so long hangs.
const STALL_LIMIT: Duration = Duration::from_secs(5 * 60);

/// Why docker did not do what was asked.
#[derive(Debug)]
pub enum DockerError {
    /// There is no `docker` command.
    NoCommand,
    /// The `docker` command could not be run.
    Command(io::Error),
    /// The command is there, but the engine does not answer.
    EngineDown(String),
    /// `docker load` failed; these are its last words.
    LoadFailed(String),
    /// `docker load` stopped reading and was killed.
    Stalled(Duration),
}

impl fmt::Display for DockerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCommand => f.write_str("the docker command is not installed, or not in PATH"),
            Self::Command(error) => write!(f, "the docker command cannot be run: {error}"),
            Self::EngineDown(words) => write!(f, "the Docker engine does not answer: {words}"),
            Self::LoadFailed(words) => write!(f, "docker load failed: {words}"),
            Self::Stalled(limit) => {
                write!(f, "docker load took no data for {} seconds and was killed", limit.as_secs())
            }
        }
    }
}

impl std::error::Error for DockerError {}

/// The way to the engine.
#[derive(Clone, Debug)]
pub struct Docker {
    program: String,
    stall_limit: Duration,
    /// The `docker load` that is running, for [`kill`](Self::kill).
    loading: Arc<Mutex<Option<Arc<Mutex<Child>>>>>,
}

impl Default for Docker {
    fn default() -> Self {
        Self::new("docker", STALL_LIMIT)
    }
}

impl Docker {
    /// Another command, and another limit for a load that takes no data.
    pub fn new(program: &str, stall_limit: Duration) -> Self {
        Self { program: program.to_owned(), stall_limit, loading: Arc::default() }
    }

    /// Whether the engine can be used.
    ///
    /// # Errors
    /// [`DockerError::NoCommand`] and [`DockerError::EngineDown`].
    pub fn check(&self) -> Result<(), DockerError> {
        self.ask(&["version", "--format", "{{.Server.Version}}"])?.map(drop).map_err(DockerError::EngineDown)
    }

    /// The id of the image with this tag; none if there is no such image.
    ///
    /// # Errors
    /// See [`DockerError`].
    pub fn image_id(&self, tag: &str) -> Result<Option<String>, DockerError> {
        match self.ask(&["image", "inspect", "--format", "{{.Id}}", "--", tag])? {
            Ok(id) => Ok(Some(id.trim().to_owned()).filter(|id| !id.is_empty())),
            Err(words) if words.to_ascii_lowercase().contains("no such image") => Ok(None),
            Err(words) => Err(DockerError::EngineDown(words)),
        }
    }

    /// Gives an image another tag, which moves from where it was.
    ///
    /// # Errors
    /// See [`DockerError`].
    pub fn tag(&self, id: &str, tag: &str) -> Result<(), DockerError> {
        self.ask(&["tag", "--", id, tag])?.map(drop).map_err(DockerError::EngineDown)
    }

    /// Removes a tag, and its image if it has no other.
    ///
    /// # Errors
    /// See [`DockerError`].
    pub fn remove(&self, tag: &str) -> Result<(), DockerError> {
        self.ask(&["image", "rm", "--", tag])?.map(drop).map_err(DockerError::EngineDown)
    }

    /// Starts `docker load`.
    ///
    /// # Errors
    /// See [`DockerError`].
    pub fn load(&self) -> Result<Load, DockerError> {
        let child = self.spawn(&["load"], Stdio::piped())?;
        Load::new(child, self.stall_limit, Arc::clone(&self.loading))
    }

    /// Kills the `docker load` that is running, if one is. It then has not seen the end of its input, so nothing is loaded.
    pub fn kill(&self) {
        if let Some(child) = lock(&self.loading).take() {
            let _ = lock(&child).kill();
        }
    }

    fn spawn(&self, arguments: &[&str], stdin: Stdio) -> Result<Child, DockerError> {
        let mut command = Command::new(&self.program);
        command.args(arguments).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        for secret in VARIABLES.iter().filter(|variable| variable.is_secret) {
            command.env_remove(secret.name).env_remove(secret.file_variable());
        }
        systemd::hide_from(&mut command);
        command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => DockerError::NoCommand,
            _ => DockerError::Command(error),
        })
    }

    /// Runs a short command to its end: its output, or what it complained about.
    fn ask(&self, arguments: &[&str]) -> Result<Result<String, String>, DockerError> {
        let mut child = self.spawn(arguments, Stdio::null())?;
        let out = Tail::of(child.stdout.take()).map_err(DockerError::Command)?;
        let err = Tail::of(child.stderr.take()).map_err(DockerError::Command)?;
        let started = Instant::now();
        loop {
            match child.try_wait().map_err(DockerError::Command)? {
                Some(status) if status.success() => return Ok(Ok(out.finish())),
                Some(status) => return Ok(Err(last_words(&err.finish(), &status.to_string()))),
                None if started.elapsed() > ANSWER_LIMIT => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Ok(Err(format!("no answer within {} seconds", ANSWER_LIMIT.as_secs())));
                }
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

/// The end of what a command wrote to stderr, in one line.
fn last_words(stderr: &str, status: &str) -> String {
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(3)..].join("; ");
    if last.is_empty() { format!("it ended with {status}") } else { last }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
