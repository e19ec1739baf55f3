//! Log lines: info and below to stdout, warnings and errors to stderr, all of them to a daily file.
//!
//! One line an event, in `key=value` form: `time`, `level`, `message`, the `request` it belongs to, then what the event
//! itself carries. Only this program's own lines are written. Its libraries log headers and bytes at the lower levels, and
//! those hold tokens and signatures.

mod line;
mod panics;
mod request;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use log::{Level, LevelFilter, Log, Metadata, Record};
use simplelog::{CombinedLogger, Config, ConfigBuilder, SharedLogger, WriteLogger};
use time::macros::format_description;
use time::{Date, OffsetDateTime};

use self::line::Lines;

pub use self::request::{Current, RequestId};

/// How many daily files are kept, today's included.
const KEPT_FILES: usize = 7;

/// Starts logging, of panics too. A log directory that cannot be used is a warning: a full disk must not keep the box from
/// its models.
pub fn start(level: LevelFilter, directory: Option<&Path>) {
    let mut loggers: Vec<Box<dyn SharedLogger>> = vec![Box::new(Console {
        level,
        out: WriteLogger::new(level, config(), io::stdout()),
        err: WriteLogger::new(level.min(LevelFilter::Warn), config(), io::stderr()),
    })];
    let mut unusable = None;
    if let Some(directory) = directory {
        let mut file = DailyFile::new(directory);
        unusable = file.open_today().err();
        loggers.push(WriteLogger::new(level, config(), io::LineWriter::new(file)));
    }
    // It fails only where a logger is set already, which a second start in one process would be.
    let _ = log::set_boxed_logger(Box::new(Lines::to(*CombinedLogger::new(loggers))));
    log::set_max_level(level);
    panics::log();
    if let (Some(error), Some(directory)) = (unusable, directory) {
        log::warn!(
            "LOG_DIR {} cannot be used, logging goes on without files until it can: {error}",
            directory.display()
        );
    }
}

/// The time is the one part of a line that `simplelog` writes; the rest is [`Lines`]'.
fn config() -> Config {
    ConfigBuilder::new()
        .set_time_format_custom(format_description!(
            "time=[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"
        ))
        .set_time_level(LevelFilter::Error)
        .set_max_level(LevelFilter::Off)
        .set_target_level(LevelFilter::Off)
        .set_location_level(LevelFilter::Off)
        .set_thread_level(LevelFilter::Off)
        .add_filter_allow_str(env!("CARGO_CRATE_NAME"))
        .build()
}

/// stdout or stderr, by level.
struct Console {
    level: LevelFilter,
    out: Box<WriteLogger<io::Stdout>>,
    err: Box<WriteLogger<io::Stderr>>,
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

/// `loader-YYYY-MM-DD.log` (UTC), a new one each day.
///
/// Writing to it never fails: lines that cannot be kept are lost, and whole lines follow once there is space again. The
/// writer in front of it would otherwise keep what failed and mix it with what comes later.
struct DailyFile {
    directory: PathBuf,
    /// Today's, once it could be opened.
    file: Option<(Date, File)>,
    /// The last write left half a line.
    torn: bool,
}

impl DailyFile {
    fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), file: None, torn: false }
    }

    fn open_today(&mut self) -> io::Result<()> {
        let today = OffsetDateTime::now_utc().date();
        if self.file.as_ref().is_none_or(|(day, _)| *day != today) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
            (self.file, self.torn) = (Some((today, open_day(&self.directory, today)?)), false);
            remove_old(&self.directory);
        }
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let opened = self.open_today();
        // Where there is none for today, yesterday's goes on.
        let Some((_, file)) = &mut self.file else { return opened };
        if self.torn {
            file.write_all(b"\n")?;
        }
        let result = file.write_all(bytes);
        self.torn = result.is_err();
        result
    }
}

impl Write for DailyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.append(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn open_day(directory: &Path, day: Date) -> io::Result<File> {
    let name = format!("loader-{:04}-{:02}-{:02}.log", day.year(), u8::from(day.month()), day.day());
    OpenOptions::new().create(true).append(true).mode(0o600).open(directory.join(name))
}

/// The names sort by date.
fn remove_old(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let mut files: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| is_log(path)).collect();
    files.sort();
    for old in files.iter().rev().skip(KEPT_FILES) {
        let _ = fs::remove_file(old);
    }
}

fn is_log(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.strip_prefix("loader-").and_then(|rest| rest.strip_suffix(".log")).is_some_and(|day| {
        day.len() == 10
            && day.bytes().enumerate().all(|(i, b)| if matches!(i, 4 | 7) { b == b'-' } else { b.is_ascii_digit() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seven_files_are_kept_and_nothing_else_is_touched() {
        let directory = tempfile::tempdir().unwrap();
        for day in 1..=9 {
            fs::write(directory.path().join(format!("loader-2020-01-{day:02}.log")), "x").unwrap();
        }
        fs::write(directory.path().join("loader-notes.log"), "x").unwrap();
        let mut file = DailyFile::new(directory.path());
        file.write_all(b"line\n").unwrap();
        let mut names: Vec<String> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.len(), 8, "{names:?}");
        assert_eq!(names[0], "loader-2020-01-04.log");
        assert!(names.contains(&"loader-notes.log".to_owned()));
        file.file.as_mut().unwrap().0 = Date::MIN;
        file.write_all(b"next day\n").unwrap();
        assert_ne!(file.file.unwrap().0, Date::MIN);
    }
}
