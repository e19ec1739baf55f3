//! Starts the loader's process in an environment that holds only what a test gives it.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use super::tcp::lock;

/// The variables of the developer's environment that the program may see: those that locate other programs, their files
/// and their libraries. Others, such as the loader's own, a proxy or a service manager's socket, would change what a
/// test sees.
const KEPT: [&str; 6] = ["PATH", "HOME", "TMPDIR", "TERM", "LD_LIBRARY_PATH", "LLVM_PROFILE_FILE"];

/// What a process has written so far.
pub type Captured = Arc<Mutex<Vec<u8>>>;

/// A command for the program with its directories under `dir`; `env` overrides the defaults.
pub fn command(binary: &Path, dir: &Path, env: &[(OsString, OsString)], bind: &str) -> Command {
    let mut command = Command::new(binary);
    let kept = KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    command
        .env_clear()
        .envs(kept)
        .current_dir(dir)
        .env("BIND_ADDR", bind)
        .env("MODEL_CACHE_DIR", dir.join("models"))
        .env("LOG_DIR", dir.join("logs"))
        .env("IMAGES_PATH", dir.join("images.enc"))
        // The disk of the machine that runs the tests may be nearly full.
        .env("CACHE_MIN_FREE_BYTES", "0")
        // Nobody listens here: a test without an API must not reach the real one.
        .env("RESOURCE_API_URL", "http://127.0.0.1:9")
        .envs(env.iter().map(|(name, value)| (name, value)));
    command
}

/// Starts the program; what it writes is added to `output`.
pub fn spawn(binary: &Path, dir: &Path, env: &[(OsString, OsString)], bind: &str, output: &Captured) -> Child {
    let mut command = command(binary, dir, env, bind);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
    capture(child.stdout.take().expect("piped"), output);
    capture(child.stderr.take().expect("piped"), output);
    child
}

/// Runs a program to its end; one that hangs is killed after `at_most`.
pub fn run_to_end(mut command: Command, args: &[&str], stdin: &[u8], at_most: Duration) -> Output {
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{:?}: {error}", command.get_program()));
    let mut input = child.stdin.take().expect("piped");
    let pid = child.id();
    thread::scope(|scope| {
        // This fails if the program does not read its input, which is not the test's concern.
        scope.spawn(move || drop(input.write_all(stdin)));
        let (running, ended) = mpsc::channel::<()>();
        scope.spawn(move || {
            // The sender is dropped when the program has ended.
            if ended.recv_timeout(at_most) == Err(mpsc::RecvTimeoutError::Timeout) {
                signal(pid, libc::SIGKILL);
            }
        });
        let output = child.wait_with_output().expect("the program was started");
        drop(running);
        output
    })
}

/// Writes a program that can be run at once, in place of any file or link with this name. Another process writes it: while this
/// one had it open for writing, a process that another test started meanwhile would inherit the descriptor for a moment, and
/// then the program cannot be run ("Text file busy").
pub fn write_program(path: &Path, script: &str) {
    let mut install = Command::new("install");
    install.args(["-D", "--mode=755", "/dev/stdin"]).arg(path);
    let output = run_to_end(install, &[], script.as_bytes(), Duration::from_secs(60));
    assert!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
}

/// Collects a pipe on a thread of its own: a full pipe would block the loader.
pub fn capture(mut pipe: impl Read + Send + 'static, output: &Captured) {
    let output = output.clone();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            lock(&output).extend_from_slice(&buffer[..count]);
        }
    });
}

/// Sends a signal to a child that has not been waited for.
#[allow(unsafe_code)]
pub fn signal(pid: u32, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(pid).expect("a process id is positive");
    // SAFETY: `kill` takes no pointers; the process is a child that has not been waited for, so the id is still its own.
    unsafe { libc::kill(pid, signal) };
}

/// Raises the limit of descriptors as far as allowed, for this process and those that it starts. Returns the limit.
#[allow(unsafe_code)]
pub fn raise_descriptor_limit() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live `rlimit`, which the call fills.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the pointer is to a live `rlimit`, which the call reads.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}

/// A field of `/proc/{pid}/status` in KiB, such as `VmRSS`.
pub fn memory_kib(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let value = line.and_then(|value| value.trim().strip_suffix(" kB")?.parse().ok());
    value.unwrap_or_else(|| panic!("no {field} in {status}"))
}

/// Resets `VmHWM` of a child.
pub fn reset_peak(pid: u32) {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("/proc is writable for one's own children");
}

/// A thread that is stopped, as by a debugger, while the others of its process run.
pub struct StoppedThread(libc::pid_t);

impl StoppedThread {
    /// Stops the thread with this name, or the main thread. It runs on when the calling thread ends.
    #[allow(unsafe_code)]
    pub fn of(process: u32, name: Option<&str>) -> Self {
        let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("the process runs").flatten();
        let is_it = |task: &std::fs::DirEntry| match name {
            Some(name) => std::fs::read_to_string(task.path().join("comm")).is_ok_and(|found| found.trim() == name),
            None => task.file_name().to_str() == Some(&process.to_string()),
        };
        let thread = tasks.into_iter().find(is_it).expect("the process has this thread").file_name();
        let thread: libc::pid_t = thread.to_str().and_then(|id| id.parse().ok()).expect("a thread id is a number");
        let nothing = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: these requests take no pointers, and the kernel checks the id.
        let stopped = unsafe {
            libc::ptrace(libc::PTRACE_SEIZE, thread, nothing, nothing) == 0
                && libc::ptrace(libc::PTRACE_INTERRUPT, thread, nothing, nothing) == 0
        };
        assert!(stopped, "{}", std::io::Error::last_os_error());
        let stopped = Self(thread);
        stopped.wait(0);
        stopped
    }

    /// Whether it has ended with its process. The parent can wait for that process only after this has returned true.
    pub fn has_ended(&self) -> bool {
        self.wait(libc::WNOHANG).is_some_and(|status| !libc::WIFSTOPPED(status))
    }

    #[allow(unsafe_code)]
    fn wait(&self, options: libc::c_int) -> Option<libc::c_int> {
        let mut status = 0;
        // SAFETY: the pointer is to a live integer.
        let changed = unsafe { libc::waitpid(self.0, &raw mut status, libc::__WALL | options) };
        assert!(changed >= 0, "{}", std::io::Error::last_os_error());
        (changed > 0).then_some(status)
    }
}
