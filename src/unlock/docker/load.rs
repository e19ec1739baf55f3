//! One `docker load`: a `Write` whose bytes go to the command's standard input.

use std::io::{self, Write};
use std::process::{Child, ChildStdin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::output::Tail;
use super::{DockerError, last_words, lock};
use crate::threads;

/// How long docker may work on the images when it has all of them. Slow storage takes minutes for gigabytes.
const FINISH_LIMIT: Duration = Duration::from_secs(60 * 60);

/// How often the watch looks whether docker still reads.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// A running `docker load`.
///
/// It must be ended with [`finish`](Self::finish). Dropping it instead kills the command *before* its input is closed: a
/// command that never saw the end of its input has loaded nothing.
pub struct Load {
    child: Arc<Mutex<Child>>,
    stdin: Option<ChildStdin>,
    out: Option<Tail>,
    err: Option<Tail>,
    progress: Arc<Progress>,
    stall_limit: Duration,
    loading: Arc<Mutex<Option<Arc<Mutex<Child>>>>>,
}

/// Shared with the watch.
#[derive(Default)]
struct Progress {
    written: AtomicU64,
    ended: AtomicBool,
    stalled: AtomicBool,
}

impl Load {
    pub(super) fn new(
        mut child: Child,
        stall_limit: Duration,
        loading: Arc<Mutex<Option<Arc<Mutex<Child>>>>>,
    ) -> Result<Self, DockerError> {
        let stdin = child.stdin.take();
        let out = Tail::of(child.stdout.take());
        let err = Tail::of(child.stderr.take());
        let child = Arc::new(Mutex::new(child));
        *lock(&loading) = Some(Arc::clone(&child));
        let progress = Arc::<Progress>::default();
        let watch = {
            let (child, progress) = (Arc::clone(&child), Arc::clone(&progress));
            threads::spawn("docker-watch", move || watch(&child, &progress, stall_limit))
        };
        // From here on dropping this kills the command.
        let mut load = Self { child, stdin, out: None, err: None, progress, stall_limit, loading };
        load.out = Some(out.map_err(DockerError::Command)?);
        load.err = Some(err.map_err(DockerError::Command)?);
        watch.map_err(DockerError::Command)?;
        Ok(load)
    }

    /// Closes the input and waits for the command's success. Answers what it wrote to its standard output.
    ///
    /// # Errors
    /// [`DockerError::LoadFailed`] with the command's last words.
    pub fn finish(mut self) -> Result<String, DockerError> {
        self.progress.ended.store(true, Ordering::Relaxed);
        drop(self.stdin.take());
        let started = Instant::now();
        loop {
            let status = lock(&self.child).try_wait().map_err(DockerError::Command)?;
            match status {
                Some(status) if status.success() => return Ok(self.out.take().map_or_else(String::new, Tail::finish)),
                Some(_) => return Err(self.why()),
                None if started.elapsed() > FINISH_LIMIT => return Err(DockerError::Stalled(FINISH_LIMIT)),
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Why writing to the command failed.
    pub fn why(mut self) -> DockerError {
        // A command that closed its input is about to end, and it knows why.
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut status = None;
        while status.is_none() && Instant::now() < deadline {
            status = lock(&self.child).try_wait().ok().flatten();
            thread::sleep(Duration::from_millis(5));
        }
        if self.progress.stalled.load(Ordering::Relaxed) {
            return DockerError::Stalled(self.stall_limit);
        }
        let _ = lock(&self.child).kill();
        let words = self.err.take().map_or_else(String::new, Tail::finish);
        DockerError::LoadFailed(last_words(
            &words,
            &status.map_or_else(|| "no status".into(), |status| status.to_string()),
        ))
    }
}

impl Write for Load {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stdin = self.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        let count = stdin.write(bytes)?;
        self.progress.written.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stdin.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.progress.ended.store(true, Ordering::Relaxed);
        {
            let mut child = lock(&self.child);
            if !matches!(child.try_wait(), Ok(Some(_))) {
                let _ = child.kill();
            }
            let _ = child.wait();
        }
        *lock(&self.loading) = None;
        // Only now may the input close.
        drop(self.stdin.take());
    }
}

/// Kills a command that does not read on.
fn watch(child: &Mutex<Child>, progress: &Progress, stall_limit: Duration) {
    let (mut seen, mut since) = (0, Instant::now());
    while !progress.ended.load(Ordering::Relaxed) {
        thread::sleep(WATCH_INTERVAL);
        let written = progress.written.load(Ordering::Relaxed);
        if written != seen {
            (seen, since) = (written, Instant::now());
        } else if since.elapsed() > stall_limit && !progress.ended.load(Ordering::Relaxed) {
            progress.stalled.store(true, Ordering::Relaxed);
            let _ = lock(child).kill();
            return;
        }
    }
}
