//! One `docker load`: a `Write` into the command's standard input.

use std::io::{self, Write};
use std::process::{Child, ChildStdin, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::output::{DockerError, POLL_INTERVAL, Tail, failed};
use crate::threads::{self, lock};

/// How long docker may work after it has read everything. Gigabytes take minutes on slow storage.
const FINISH_LIMIT: Duration = Duration::from_secs(60 * 60);

/// How long a command that closed its input may take to end.
const EXIT_LIMIT: Duration = Duration::from_secs(5);

/// How often the watchdog checks the progress.
const WATCHDOG_INTERVAL: Duration = Duration::from_millis(100);

/// A running `docker load`.
///
/// It must be ended with [`finish`](Self::finish). Dropping it kills the command *before* its input is closed: a command that
/// never saw the end of its input has loaded nothing.
pub struct Load {
    process: Arc<LoadProcess>,
    stdin: Option<ChildStdin>,
    out: Option<Tail>,
    err: Option<Tail>,
    stall_limit: Duration,
}

/// The process of a [`Load`], which its watchdog and [`Docker::kill`](super::Docker::kill) may end.
#[derive(Debug)]
pub(super) struct LoadProcess {
    child: Mutex<Child>,
    /// Bytes that the command has read.
    written: AtomicU64,
    /// Nothing more is written.
    ended: AtomicBool,
    /// The watchdog killed it.
    stalled: AtomicBool,
}

impl LoadProcess {
    pub(super) fn kill(&self) {
        let _ = lock(&self.child).kill();
    }

    fn status(&self) -> io::Result<Option<ExitStatus>> {
        lock(&self.child).try_wait()
    }

    /// Kills a command that stops reading for `stall_limit`.
    fn watch(&self, stall_limit: Duration) {
        let (mut seen, mut since) = (0, Instant::now());
        while !self.ended.load(Ordering::Relaxed) {
            thread::sleep(WATCHDOG_INTERVAL);
            let written = self.written.load(Ordering::Relaxed);
            if written != seen {
                (seen, since) = (written, Instant::now());
            } else if since.elapsed() > stall_limit && !self.ended.load(Ordering::Relaxed) {
                self.stalled.store(true, Ordering::Relaxed);
                self.kill();
                return;
            }
        }
    }
}

impl Load {
    /// Takes over a `docker load` that was just started. Its process is returned for others to kill.
    pub(super) fn new(mut child: Child, stall_limit: Duration) -> Result<(Self, Weak<LoadProcess>), DockerError> {
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let process = Arc::new(LoadProcess {
            child: Mutex::new(child),
            written: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
        });
        let weak = Arc::downgrade(&process);
        // From here on, an early return drops it and so kills the command.
        let mut load = Self { process: Arc::clone(&process), stdin, out: None, err: None, stall_limit };
        load.out = Some(Tail::of(stdout).map_err(DockerError::NotRun)?);
        load.err = Some(Tail::of(stderr).map_err(DockerError::NotRun)?);
        threads::spawn("docker-watchdog", move || process.watch(stall_limit)).map_err(DockerError::NotRun)?;
        Ok((load, weak))
    }

    /// Closes the input and waits for the command to succeed. Returns its standard output.
    pub fn finish(mut self) -> Result<String, DockerError> {
        self.process.ended.store(true, Ordering::Relaxed);
        drop(self.stdin.take());
        let started = Instant::now();
        loop {
            match self.process.status().map_err(DockerError::NotRun)? {
                Some(status) if status.success() => return Ok(self.out.take().map_or_else(String::new, Tail::finish)),
                Some(_) => return Err(self.into_error()),
                None if started.elapsed() > FINISH_LIMIT => return Err(DockerError::Stalled(FINISH_LIMIT)),
                None => thread::sleep(POLL_INTERVAL),
            }
        }
    }

    /// Why the command failed, or why it takes no more data.
    pub fn into_error(mut self) -> DockerError {
        let deadline = Instant::now() + EXIT_LIMIT;
        let mut status = None;
        while status.is_none() && Instant::now() < deadline {
            status = self.process.status().ok().flatten();
            thread::sleep(POLL_INTERVAL);
        }
        self.process.kill();
        match self.err.take() {
            Some(err) if !self.process.stalled.load(Ordering::Relaxed) => failed("load", err, status),
            _ => DockerError::Stalled(self.stall_limit),
        }
    }
}

impl Write for Load {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stdin = self.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        let count = stdin.write(bytes)?;
        self.process.written.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stdin.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.process.ended.store(true, Ordering::Relaxed);
        {
            let mut child = lock(&self.process.child);
            let _ = child.kill();
            let _ = child.wait();
        }
        // Only now may the input close.
        drop(self.stdin.take());
    }
}
