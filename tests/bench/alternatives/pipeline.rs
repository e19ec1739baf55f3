//! Programs that are connected by pipes: what they deliver, how they end, and how much memory they need.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::world::PatternReader;

/// How often memory is looked at. A peak is kept by the kernel, so only the last moment of a process is missed.
const LOOK: Duration = Duration::from_millis(20);

/// After this many looks, new descendants are searched for.
const LOOKS_A_SEARCH: usize = 5;

/// The program that wants the plaintext: it counts, and compares if it knows what is right.
pub struct Consumer {
    expected: Option<PatternReader>,
    /// Bytes received so far.
    pub received: u64,
    /// Whether one of these bytes was wrong.
    pub is_wrong: bool,
}

impl Consumer {
    /// Accepts any bytes.
    pub fn counting() -> Self {
        Self { expected: None, received: 0, is_wrong: false }
    }

    /// Compares the bytes with what is expected.
    pub fn comparing(expected: PatternReader) -> Self {
        Self { expected: Some(expected), ..Self::counting() }
    }
}

impl Write for Consumer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(expected) = &mut self.expected {
            let mut right = vec![0; bytes.len()];
            self.is_wrong |= expected.read_exact(&mut right).is_err() || right != bytes;
        }
        self.received += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How a read went. The error is what the program said, or what the reader of its file got.
pub struct Outcome {
    pub result: Result<(), String>,
    pub peak_kib: u64,
}

impl Outcome {
    /// Adds the next step, unless this one failed. The steps run one after the other, so the larger peak counts.
    pub fn then(self, next: impl FnOnce() -> Self) -> Self {
        if self.result.is_err() {
            return self;
        }
        let next = next();
        Self { result: next.result, peak_kib: next.peak_kib.max(self.peak_kib) }
    }
}

/// A program in an environment in which it writes nowhere but in this directory by itself.
pub fn program(name: &str, dir: &Path) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.env_clear().env("PATH", path).current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null());
    command.env("HOME", dir).env("TMPDIR", dir);
    command
}

/// Runs programs, each with the output of the one before as its input; what the last writes goes to the consumer.
pub fn run(mut commands: Vec<Command>, dir: &Path, to: &mut Consumer) -> Outcome {
    let said = |number: usize| dir.join(format!("stderr.{number}"));
    let mut running: Vec<Child> = Vec::new();
    for (number, command) in commands.iter_mut().enumerate() {
        if let Some(before) = running.last_mut() {
            command.stdin(before.stdout.take().expect("piped"));
        }
        command.stdout(Stdio::piped()).stderr(File::create(said(number)).expect("a new file"));
        running.push(command.spawn().unwrap_or_else(|error| panic!("{:?}: {error}", command.get_program())));
    }
    // The commands hold ends of the pipes, so a program would not notice that its reader is gone.
    drop(commands);
    let peak = Peak::of(running.iter().map(Child::id).collect());
    if let Some(last) = running.last_mut() {
        copy(last.stdout.take().expect("piped"), to).expect("a pipe can be read");
    }
    let mut result = Ok(());
    for (number, child) in running.iter_mut().enumerate() {
        let status = child.wait().expect("a child");
        if !status.success() {
            // If several fail, the last in the chain failed first: then the others could not write any more.
            result = Err(reason(&fs::read_to_string(said(number)).unwrap_or_default(), &status.to_string()));
        }
        let _ = fs::remove_file(said(number));
    }
    Outcome { result, peak_kib: peak.kib() }
}

/// Gives all that a reader has to the consumer, in pieces as large as a pipe's.
pub fn copy(mut from: impl Read, to: &mut Consumer) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            count => to.write_all(&buffer[..count])?,
        }
    }
}

/// The program's error message, or else its last line, or its exit status if it said nothing.
fn reason(said: &str, status: &str) -> String {
    let mut lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let error = lines.clone().find(|line| line.to_lowercase().contains("error"));
    let line = error.or_else(|| lines.next_back()).unwrap_or(status);
    // A log line begins with a time, which differs from run to run.
    line.trim_start_matches(|letter: char| letter.is_ascii_digit() || "/: ".contains(letter)).to_owned()
}

/// The peak of resident memory of processes and all their descendants, summed over the processes.
pub struct Peak {
    stop: Arc<AtomicBool>,
    watcher: JoinHandle<u64>,
}

impl Peak {
    /// Begins to watch.
    pub fn of(roots: Vec<u32>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let watcher = thread::spawn(move || {
            let (mut peaks, mut tree) = (HashMap::new(), roots.clone());
            for look in 0.. {
                if look % LOOKS_A_SEARCH == 0 {
                    tree = with_descendants(&roots);
                }
                for pid in &tree {
                    peaks.extend(peak_kib(*pid).map(|kib| (*pid, kib)));
                }
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                thread::sleep(LOOK);
            }
            peaks.values().sum()
        });
        Self { stop, watcher }
    }

    /// Stops watching and returns the peak, in KiB.
    pub fn kib(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.watcher.join().expect("the watcher does not panic")
    }
}

/// The peak of a process; none if it has ended.
fn peak_kib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok())
}

fn with_descendants(roots: &[u32]) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let parents: Vec<(u32, u32)> = processes
        .filter_map(|process| {
            let pid = process.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(process.path().join("stat")).ok()?;
            // The state and the parent come after the name, which may hold anything.
            let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    let mut tree = roots.to_vec();
    let mut next = 0;
    while let Some(parent) = tree.get(next).copied() {
        tree.extend(parents.iter().filter(|(_, its)| *its == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    tree
}
