//! Questions to the person at the terminal, with or without echo. Terminal modes need calls to the C library, which no
//! package in the tree wraps: hence the unsafe code.
//!
//! The terminal must get its echo back however the program ends, so the signals of the keyboard and those that end a session
//! restore it before they have their usual effect.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use zeroize::Zeroizing;

use crate::secret::Secret;
use crate::threads::{self, lock};

/// The longest answer that is read.
const MAX_LINE: usize = 1024;

/// Whether there is a person to ask.
pub(super) fn is_interactive() -> bool {
    io::stdin().is_terminal()
}

/// Asks on standard error, so that a redirected standard output holds the command's results only. The end of the input
/// before an answer is an error.
pub(super) fn ask(question: &str) -> io::Result<String> {
    prompt(question);
    let line = read_line()?.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(line.trim().to_owned())
}

/// Asks without showing what is typed.
pub(super) fn ask_secretly(question: &str) -> io::Result<Secret> {
    let echo_off = EchoOff::new()?;
    prompt(question);
    let line = read_line();
    drop(echo_off);
    // The line feed that the person typed was not shown.
    eprintln!();
    Ok(Secret::new(line?.ok_or(io::ErrorKind::UnexpectedEof)?.as_str()))
}

/// The first line of standard input without its line end; none if there is nothing. It is read byte by byte: a buffered
/// reader would leave a copy of the password in memory, and take what comes after the line.
pub(super) fn read_line() -> io::Result<Option<Zeroizing<String>>> {
    let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_LINE));
    let mut byte = [0];
    let ended = loop {
        match input.read(&mut byte) {
            Ok(0) => break true,
            Ok(_) if byte[0] == b'\n' => break false,
            Ok(_) if line.len() == MAX_LINE => return Err(io::Error::other("the line is too long")),
            Ok(_) => line.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    };
    if line.is_empty() && ended {
        return Ok(None);
    }
    let text = std::str::from_utf8(&line).map_err(|_| io::Error::other("the line is not UTF-8 text"))?;
    Ok(Some(Zeroizing::new(text.strip_suffix('\r').unwrap_or(text).to_owned())))
}

fn prompt(question: &str) {
    let mut stderr = io::stderr();
    let _ = stderr.write_all(question.as_bytes()).and_then(|()| stderr.flush());
}

/// The terminal's modes before the echo was switched off, until they are restored.
type Modes = Arc<Mutex<Option<libc::termios>>>;

/// Keeps the echo of standard input's terminal off until it is dropped.
struct EchoOff(Modes);

impl EchoOff {
    fn new() -> io::Result<Self> {
        let mut modes = MaybeUninit::uninit();
        // SAFETY: the pointer is good for one `termios`, which the call fills if it succeeds.
        if unsafe { libc::tcgetattr(io::stdin().as_raw_fd(), modes.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded.
        let modes = unsafe { modes.assume_init() };
        let before = Arc::new(Mutex::new(Some(modes)));
        restore_on_signal(Arc::clone(&before))?;
        let mut silent = modes;
        silent.c_lflag &= !libc::ECHO;
        // A suspended program would leave the shell a terminal without echo.
        silent.c_cc[libc::VSUSP] = 0;
        set_modes(&silent)?;
        Ok(Self(before))
    }
}

impl Drop for EchoOff {
    fn drop(&mut self) {
        restore(&self.0);
    }
}

/// The thread runs until the process ends: a signal that was once watched no longer ends the process by itself.
fn restore_on_signal(modes: Modes) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT])?;
    threads::spawn("signals", move || {
        for signal in &mut signals {
            restore(&modes);
            let _ = emulate_default_handler(signal);
        }
    })?;
    Ok(())
}

fn restore(modes: &Modes) {
    if let Some(modes) = lock(modes).take() {
        let _ = set_modes(&modes);
    }
}

fn set_modes(modes: &libc::termios) -> io::Result<()> {
    // SAFETY: the pointer is to a whole `termios`, which the call only reads.
    match unsafe { libc::tcsetattr(io::stdin().as_raw_fd(), libc::TCSAFLUSH, modes) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
