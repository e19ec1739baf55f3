//! A program at its own terminal, as a person runs it: a pseudo-terminal that is its controlling terminal.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::process::Captured;
use super::tcp::lock;

/// How long a program may take to show what a test waits for.
const PATIENCE: Duration = Duration::from_secs(30);

/// A byte that no program writes.
const MARK: &[u8] = b"\0";

/// The terminal and the program at it.
pub struct Terminal {
    master: File,
    /// Kept open, so that the modes outlive the program.
    slave: File,
    child: Child,
    shown: Captured,
}

impl Terminal {
    /// Runs a program with standard input, output and error at a new terminal.
    pub fn run(mut command: Command) -> Self {
        let (mut master, mut slave) = (0, 0);
        let null = std::ptr::null_mut();
        // SAFETY: the two pointers are to integers; the rest may be null.
        let opened = unsafe { libc::openpty(&raw mut master, &raw mut slave, null, null.cast(), null.cast()) };
        assert_eq!(opened, 0, "no pseudo-terminal");
        // SAFETY: both are descriptors that `openpty` has just opened and nobody else owns.
        let (master, slave) = unsafe { (File::from_raw_fd(master), File::from_raw_fd(slave)) };
        let end = || Stdio::from(slave.try_clone().expect("a descriptor"));
        command.stdin(end()).stdout(end()).stderr(end()).env("TERM", "xterm");
        // SAFETY: both calls may be made between fork and exec, and take no pointers.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
        let child = command.spawn().expect("the program starts");
        let shown = Captured::default();
        let (mut reader, into) = (master.try_clone().expect("a descriptor"), shown.clone());
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                lock(&into).extend_from_slice(&buffer[..count]);
            }
        });
        Self { master, slave, child, shown }
    }

    /// Types keys.
    pub fn send(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("the terminal takes keys");
    }

    /// All that the terminal has shown.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&lock(&self.shown)).into_owned()
    }

    /// Waits until the terminal shows this.
    pub fn expect(&self, text: &str) {
        self.until(&format!("{text:?} to be shown"), || self.shown().contains(text));
    }

    /// Waits until echo is on, or off.
    pub fn expect_echo(&self, on: bool) {
        self.until(&format!("echo {on}"), || self.echoes() == on);
    }

    /// Whether echo is on.
    pub fn echoes(&self) -> bool {
        self.modes().c_lflag & libc::ECHO != 0
    }

    /// Whether a key suspends the program.
    pub fn suspends(&self) -> bool {
        self.modes().c_cc[libc::VSUSP] != 0
    }

    fn modes(&self) -> libc::termios {
        let mut modes = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: the pointer is good for one `termios`, which the call fills if it succeeds.
        unsafe {
            assert_eq!(libc::tcgetattr(self.slave.as_raw_fd(), modes.as_mut_ptr()), 0);
            modes.assume_init()
        }
    }

    /// Waits for the program's end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                // All its output comes before this mark.
                (&self.slave).write_all(MARK).expect("the terminal takes the mark");
                self.until("the last output", || lock(&self.shown).ends_with(MARK));
                let mut shown = lock(&self.shown);
                let length = shown.len() - MARK.len();
                shown.truncate(length);
                return status;
            }
            assert!(Instant::now() < deadline, "it did not end; it showed {:?}", self.shown());
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < deadline, "waited for {what}; it showed {:?}", self.shown());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
