//! The Docker engine, through the `docker` command, so that its contexts, `DOCKER_HOST` and credentials apply as they do for
//! a person at the box.

mod load;
mod output;

use std::io;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use self::load::LoadProcess;
use self::output::{POLL_INTERVAL, Tail, failed};
use crate::configuration::hide_secrets_from;
use crate::systemd;
use crate::threads::lock;

pub use self::load::Load;
pub use self::output::DockerError;

/// The time limit of a command.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);

/// The time limit of a removal: flash needs minutes for gigabytes, and podman must not be killed in the middle.
const REMOVAL_LIMIT: Duration = Duration::from_secs(10 * 60);

/// A `docker load` that reads nothing for this long hangs.
const STALL_LIMIT: Duration = Duration::from_secs(5 * 60);

/// How docker and podman say that there is no image of a name.
const NO_SUCH_IMAGE: [&str; 2] = ["no such image", "image not known"];

/// The Docker engine.
#[derive(Debug)]
pub struct Docker {
    program: String,
    stall_limit: Duration,
    /// The running `docker load`, for [`kill`](Self::kill).
    loading: Mutex<Weak<LoadProcess>>,
}

impl Default for Docker {
    fn default() -> Self {
        Self::new("docker", STALL_LIMIT)
    }
}

impl Docker {
    /// The engine that the command `program` reaches. A `docker load` that takes no data for `stall_limit` is killed.
    pub fn new(program: &str, stall_limit: Duration) -> Self {
        Self { program: program.to_owned(), stall_limit, loading: Mutex::default() }
    }

    /// Fails unless the engine answers.
    pub fn check(&self) -> Result<(), DockerError> {
        match self.run("version", &["--format", "{{.Server.Version}}"]) {
            Err(DockerError::Failed { message, .. }) => Err(DockerError::EngineDown(message)),
            result => result.map(drop),
        }
    }

    /// The id of the image with this tag; none if there is no such image.
    pub fn image_id(&self, tag: &str) -> Result<Option<String>, DockerError> {
        match self.run("image inspect", &["--format", "{{.Id}}", "--", tag]) {
            Ok(id) => Ok(Some(id.trim().to_owned()).filter(|id| !id.is_empty())),
            Err(DockerError::Failed { message, .. }) if is_no_such_image(&message) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes `tag` name the image `id`.
    pub fn tag(&self, id: &str, tag: &str) -> Result<(), DockerError> {
        self.run("tag", &["--", id, tag]).map(drop)
    }

    /// Removes a tag, and with its last tag the image and its unused parents. Fails if a container uses the image.
    pub fn remove(&self, tag: &str) -> Result<(), DockerError> {
        self.run("image rm", &["--", tag]).map(drop)
    }

    /// Removes a tag, and with its last tag the image, but no other. An image with at most one tag goes by its id as well.
    pub fn remove_alone(&self, tag: &str) -> Result<(), DockerError> {
        self.run("image rm", &["--no-prune", "--", tag]).map(drop)
    }

    /// All images, once for each of their names.
    pub fn images(&self) -> Result<Vec<NamedImage>, DockerError> {
        let command = "image ls";
        let list = self.run(command, &["--all", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}"])?;
        if list.len() >= output::KEPT {
            return Err(DockerError::Failed { command, message: "it lists too many images".into() });
        }
        let images = list.lines().filter_map(|line| line.trim().split_once(' '));
        Ok(images.map(|(id, name)| NamedImage { id: bare_id(id).to_owned(), name: name.to_owned() }).collect())
    }

    /// Whether a container, running or stopped, uses the image with this id.
    pub fn is_used(&self, id: &str) -> Result<bool, DockerError> {
        let containers = self.run("ps", &["--all", "--quiet", "--filter", &format!("ancestor={id}")])?;
        Ok(!containers.trim().is_empty())
    }

    /// Starts `docker load`.
    pub fn load(&self) -> Result<Load, DockerError> {
        let child = self.spawn("load", &[], Stdio::piped())?;
        let (load, process) = Load::new(child, self.stall_limit)?;
        *lock(&self.loading) = process;
        Ok(load)
    }

    /// Kills the running `docker load`, if there is one. It has not seen the end of its input, so it loads nothing.
    pub fn kill(&self) {
        if let Some(process) = lock(&self.loading).upgrade() {
            process.kill();
        }
    }

    fn spawn(&self, command: &str, arguments: &[&str], stdin: Stdio) -> Result<Child, DockerError> {
        let mut process = Command::new(&self.program);
        process.args(command.split(' ')).args(arguments);
        process.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        hide_secrets_from(&mut process);
        systemd::hide_from(&mut process);
        process.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => DockerError::NotInstalled,
            _ => DockerError::NotRun(error),
        })
    }

    /// Runs a short command to its end and returns its standard output.
    fn run(&self, command: &'static str, arguments: &[&str]) -> Result<String, DockerError> {
        let mut child = self.spawn(command, arguments, Stdio::null())?;
        let out = Tail::of(child.stdout.take()).map_err(DockerError::NotRun)?;
        let err = Tail::of(child.stderr.take()).map_err(DockerError::NotRun)?;
        let limit = if command == "image rm" { REMOVAL_LIMIT } else { COMMAND_LIMIT };
        let started = Instant::now();
        loop {
            match child.try_wait().map_err(DockerError::NotRun)? {
                Some(status) if status.success() => return Ok(out.finish()),
                Some(status) => return Err(failed(command, err, Some(status))),
                None if started.elapsed() > limit => {
                    let _ = child.kill();
                    let _ = child.wait();
                    let message = format!("no answer within {} seconds", limit.as_secs());
                    return Err(DockerError::Failed { command, message });
                }
                None => thread::sleep(POLL_INTERVAL),
            }
        }
    }
}

/// An image in a list.
#[derive(Debug, PartialEq, Eq)]
pub struct NamedImage {
    /// Its id, in hex.
    pub id: String,
    /// `repository:tag`, each of which is `<none>` if there is none.
    pub name: String,
}

/// An id without its algorithm, which podman writes in some places and leaves out in others.
pub fn bare_id(id: &str) -> &str {
    id.strip_prefix("sha256:").unwrap_or(id)
}

fn is_no_such_image(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    NO_SUCH_IMAGE.iter().any(|words| message.contains(words))
}
