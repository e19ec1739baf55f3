//! Shows the loader at work, end to end and on this machine only: it starts the reference Resource API, an S3 server and the
//! real `loader` program, uploads a model, loads it back cold and warm, and compares the bytes.
//!
//! `cargo run --example demo -- --help` says how to use it.

#[path = "../world/mod.rs"]
mod world;

mod curl;
mod interrupt;
mod model;
mod program;
mod session;
mod steps;
mod table;

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use interrupt::Interrupt;
use model::Model;
use session::Session;
use table::Table;

const USAGE: &str = "\
Usage: cargo run --example demo -- [--serve] [FILE]

Starts a Resource API, an S3 server and the loader on the loopback interface, uploads a model through the loader, loads it
back twice (from the CDN, then from the loader's cache) and compares the bytes.

  FILE      the model; without one, 32 MiB of test data. The temporary directory (TMPDIR) needs room for three copies
  --serve   stay up afterwards, with curl commands to try, until Ctrl-C
  --help    print this text

Exit status: 0 all bytes matched, 1 something failed, 2 wrong usage, 130 interrupted.
";

/// What the command line asks for.
enum Request {
    Help,
    Run { serve: bool, file: Option<PathBuf> },
}

fn main() -> ExitCode {
    let (serve, file) = match parse(env::args_os().skip(1)) {
        Ok(Request::Run { serve, file }) => (serve, file),
        Ok(Request::Help) => {
            // A reader that goes away, such as `head`, is not a failure.
            let _ = io::stdout().write_all(USAGE.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            eprint!("demo: {why}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    silence_caught_panics();
    let interrupt = Interrupt::default();
    match run(serve, file, &interrupt) {
        Ok(()) => ExitCode::SUCCESS,
        // Whatever failed, the interrupt was the cause.
        Err(_) if interrupt.asked() => {
            eprintln!("demo: interrupted");
            ExitCode::from(130)
        }
        Err(error) => {
            let prefix = if error.is::<io::Error>() { "the output cannot be written: " } else { "" };
            eprintln!("demo: {prefix}{}", one_sentence(&error.to_string()));
            ExitCode::FAILURE
        }
    }
}

fn parse(words: impl Iterator<Item = OsString>) -> Result<Request, String> {
    let (mut serve, mut file) = (false, None);
    for word in words {
        match word.to_str() {
            Some("--help" | "-h") => return Ok(Request::Help),
            Some("--serve") => serve = true,
            Some(flag) if flag.starts_with('-') => return Err(format!("unknown option {flag}")),
            _ if file.is_some() => return Err("one file at most".to_owned()),
            _ => file = Some(PathBuf::from(word)),
        }
    }
    Ok(Request::Run { serve, file })
}

/// An `io::Error` comes from writing to standard output; all other errors are sentences.
fn run(serve: bool, file: Option<PathBuf>, interrupt: &Interrupt) -> Result<(), Box<dyn Error>> {
    interrupt.listen()?;
    let model = file.map_or_else(|| Ok(Model::test_data()), Model::file)?;
    let mut out = io::stdout();
    let cargo = program::cargo_arguments()?;
    writeln!(out, "Building the loader if it is not up to date: cargo {}", cargo.join(" "))?;
    program::build(&cargo)?;

    let mut session = caught(|| Session::start(model))?;
    interrupt.reaches(session.service());
    writeln!(out, "\n{}", session.introduction())?;
    let mut table = Table::begin(&mut out)?;
    for step in steps::all() {
        table.start_row(step.title)?;
        match caught(|| (step.run)(&mut session)) {
            Ok(done) => table.finish_row(&done)?,
            Err(why) => {
                table.abandon_row()?;
                // A process that dies closes its connections a moment before it counts as ended.
                thread::sleep(Duration::from_millis(100));
                let ended = if session.service().is_running() { "" } else { ", since the loader ended" };
                return Err(format!("{} failed{ended}: {why}", step.title).into());
            }
        }
    }
    writeln!(out, "\n{}", caught(|| Ok(session.conclusion()))?)?;

    if serve {
        write!(out, "\n{}", curl::commands(&session))?;
        wait(&session, interrupt)?;
        writeln!(out, "\nStopped.")?;
    }
    Ok(())
}

/// Waits for Ctrl-C.
fn wait(session: &Session, interrupt: &Interrupt) -> Result<(), String> {
    while !interrupt.asked() {
        thread::sleep(Duration::from_millis(100));
        if !session.service().is_running() {
            // A Ctrl-C in the terminal reaches the loader too, and may be a moment earlier there.
            thread::sleep(Duration::from_millis(500));
            return if interrupt.asked() { Ok(()) } else { Err("the loader ended by itself".to_owned()) };
        }
    }
    Ok(())
}

/// The test world panics where a test would fail; here that is an error like any other.
fn caught<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        Err(text.unwrap_or("a panic without a message").to_owned())
    })
}

/// Panics of the main thread are caught and reported as errors; a panic of a server's thread stays visible.
fn silence_caught_panics() {
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if thread::current().name() != Some("main") {
            default(info);
        }
    }));
}

/// The first line; if it ends with a colon, also the last line of what a program said.
fn one_sentence(text: &str) -> String {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or("something failed");
    match lines.next_back().filter(|_| first.ends_with(':')) {
        Some(last) => format!("{first} {last}"),
        None => first.to_owned(),
    }
}
