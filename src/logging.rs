//! Log lines: info and below go to stdout, warnings and errors to stderr, and all of them to a daily file.
//!
//! Each event is one line of `key=value` pairs: `time`, `level`, `message`, the `request` that it belongs to, then the event's
//! own pairs. Lines of libraries are left out. No client can fill the disk with lines: floods are counted instead of written
//! (`flood`), and a day's file has a limit (`daily_file`).

mod daily_file;
mod flood;
mod line;
mod panics;
mod request;

use std::io::{self, Write};
use std::path::Path;
use std::thread;

use log::{Level, LevelFilter, Log, Metadata, Record};
use simplelog::{CombinedLogger, Config, ConfigBuilder, SharedLogger, WriteLogger};

use self::daily_file::{DailyFile, TIME};
use self::line::LineLogger;

pub use self::request::{Current, RequestId};

/// Starts logging, panics included. A log directory that cannot be used is only a warning: a full disk must not keep the box
/// from its models.
pub fn start(level: LevelFilter, directory: Option<&Path>) {
    let mut loggers: Vec<Box<dyn SharedLogger>> = vec![Box::new(Console {
        level,
        out: lines_to(io::stdout(), level),
        // A line is one write, so that it does not mix with the lines of stdout if both go to the same place.
        err: lines_to(io::LineWriter::new(io::stderr()), level.min(LevelFilter::Warn)),
    })];
    let mut unusable = None;
    if let Some(directory) = directory {
        let mut file = DailyFile::new(directory);
        unusable = file.open_today().err();
        loggers.push(lines_to(file, level));
    }
    let logger: &'static LineLogger<_> = Box::leak(Box::new(LineLogger::to(*CombinedLogger::new(loggers))));
    // It fails only if a logger has been set before, by an earlier start in this process.
    let _ = log::set_logger(logger);
    log::set_max_level(level);
    // Without this thread, a flood is reported when the next line is written.
    let _ = thread::Builder::new().name("log".to_owned()).spawn(|| logger.report_floods());
    panics::log();
    if let (Some(error), Some(directory)) = (unusable, directory) {
        log::warn!(
            "LOG_DIR {} cannot be used, so there are no log files until it can be: {error}",
            directory.display()
        );
    }
}

/// The writer is boxed, because `simplelog` would be compiled again for each type of writer.
type Output = WriteLogger<Box<dyn Write + Send>>;

/// `simplelog` writes nothing but the time of a line; [`LineLogger`] makes the rest.
fn lines_to(out: impl Write + Send + 'static, level: LevelFilter) -> Box<Output> {
    let config = ConfigBuilder::new()
        .set_time_format_custom(TIME)
        .set_time_level(LevelFilter::Error)
        .set_max_level(LevelFilter::Off)
        .set_target_level(LevelFilter::Off)
        .set_location_level(LevelFilter::Off)
        .set_thread_level(LevelFilter::Off)
        .build();
    WriteLogger::new(level, config, Box::new(out))
}

/// Writes to stdout or stderr, depending on the level.
struct Console {
    level: LevelFilter,
    out: Box<Output>,
    err: Box<Output>,
}

impl Log for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.level
    }

    fn log(&self, record: &Record<'_>) {
        if record.level() <= Level::Warn { self.err.log(record) } else { self.out.log(record) }
    }

    fn flush(&self) {
        self.out.flush();
        self.err.flush();
    }
}

impl SharedLogger for Console {
    fn level(&self) -> LevelFilter {
        self.level
    }

    fn config(&self) -> Option<&Config> {
        None
    }

    fn as_log(self: Box<Self>) -> Box<dyn Log> {
        self
    }
}
