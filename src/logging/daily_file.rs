//! The log files, one for each day, and the disk space that they may take.

use std::cmp::Reverse;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{Date, OffsetDateTime};

/// The format of the first pair of a line.
pub(super) const TIME: &[BorrowedFormatItem<'static>] =
    format_description!("time=[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// How many daily files are kept, including today's.
const KEPT_FILES: usize = 7;

/// The disk space that one day's lines may take.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// A longer file is full. The rest of [`MAX_BYTES`] has room for the line that passed this limit, and for the last line.
const FULL: u64 = MAX_BYTES - 64 * 1024;

/// Room for the last line, which says that the file is full.
const LAST_LINE: u64 = 512;

/// `loader-YYYY-MM-DD.log` (UTC), a new one each day.
///
/// Writing to it never fails: lines that cannot be written are lost, and once there is space again, whole lines follow.
pub(super) struct DailyFile {
    directory: PathBuf,
    now: Box<dyn Fn() -> OffsetDateTime + Send>,
    /// Today's file, once it could be opened.
    today: Option<Day>,
    /// The beginning of an unfinished line.
    line: Vec<u8>,
}

impl DailyFile {
    pub(super) fn new(directory: &Path) -> Self {
        Self::with_clock(directory, OffsetDateTime::now_utc)
    }

    fn with_clock(directory: &Path, now: impl Fn() -> OffsetDateTime + Send + 'static) -> Self {
        Self { directory: directory.to_owned(), now: Box::new(now), today: None, line: Vec::new() }
    }

    pub(super) fn open_today(&mut self) -> io::Result<()> {
        let now = (self.now)();
        let date = now.date();
        if self.today.as_ref().is_some_and(|day| day.date == date) {
            return Ok(());
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let mut today = Day::open(&self.directory, date)?;
        remove_old(&self.directory, date);
        if let Some(before) = self.today.take().filter(|day| day.omitted > 0) {
            let message = format!("{} lines were left out of {}, which was full", before.omitted, name_of(before.date));
            today.append(&warning(now, &message), now)?;
        }
        self.today = Some(today);
        Ok(())
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let opened = self.open_today();
        // If today's file cannot be opened, yesterday's takes the line.
        let Some(day) = &mut self.today else { return opened };
        day.append(line, (self.now)())
    }
}

impl Write for DailyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        if self.line.ends_with(b"\n") {
            let line = std::mem::take(&mut self.line);
            let _ = self.append(&line);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One day's file.
struct Day {
    date: Date,
    file: File,
    bytes: u64,
    /// The last line, which says that the file is full, has been written.
    closed: bool,
    /// How many lines were left out.
    omitted: u64,
    /// The last write left half a line.
    torn: bool,
}

impl Day {
    fn open(directory: &Path, date: Date) -> io::Result<Self> {
        let path = directory.join(name_of(date));
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { date, file, bytes, closed: bytes > FULL, omitted: 0, torn: false })
    }

    fn append(&mut self, line: &[u8], now: OffsetDateTime) -> io::Result<()> {
        if !self.closed && self.bytes <= FULL && self.bytes + line.len() as u64 <= MAX_BYTES - LAST_LINE {
            return self.write(line);
        }
        self.omitted += 1;
        if std::mem::replace(&mut self.closed, true) {
            return Ok(());
        }
        self.write(&warning(now, "this day's file is full: later lines are left out of it, but not of the output"))
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let whole = if std::mem::take(&mut self.torn) { [b"\n", line].concat() } else { line.to_vec() };
        let result = self.file.write_all(&whole);
        if result.is_ok() {
            self.bytes += whole.len() as u64;
        } else {
            self.torn = true;
            self.bytes = self.file.metadata()?.len();
        }
        result
    }
}

/// A line about the file itself.
fn warning(now: OffsetDateTime, message: &str) -> Vec<u8> {
    let time = now.format(TIME).unwrap_or_default();
    format!("{time} level=warn message={message:?}\n").into_bytes()
}

fn name_of(day: Date) -> String {
    format!("loader-{:04}-{:02}-{:02}.log", day.year(), u8::from(day.month()), day.day())
}

/// Removes the files that are too many. Today's file always stays, and earlier days count before later ones: files of the
/// future come from a clock that was wrong, and would otherwise push out everything that is written from now on.
fn remove_old(directory: &Path, today: Date) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).filter(|name| is_log(name));
    let today = name_of(today);
    // The names sort by date.
    let mut others: Vec<String> = names.filter(|name| *name != today).collect();
    others.sort_by_key(|name| (*name > today, Reverse(name.clone())));
    for name in others.iter().skip(KEPT_FILES - 1) {
        let _ = fs::remove_file(directory.join(name));
    }
}

fn is_log(name: &str) -> bool {
    name.strip_prefix("loader-").and_then(|rest| rest.strip_suffix(".log")).is_some_and(|day| {
        day.len() == 10
            && day.bytes().enumerate().all(|(i, b)| if matches!(i, 4 | 7) { b == b'-' } else { b.is_ascii_digit() })
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use tempfile::TempDir;

    use super::*;

    const DAY: i64 = 24 * 60 * 60;

    /// A directory, the file in it, and the file's clock in seconds since 1970.
    fn at(seconds: i64) -> (TempDir, DailyFile, Arc<AtomicI64>) {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(AtomicI64::new(seconds));
        let file = reopen(&directory, &clock);
        (directory, file, clock)
    }

    fn reopen(directory: &TempDir, clock: &Arc<AtomicI64>) -> DailyFile {
        let clock = Arc::clone(clock);
        DailyFile::with_clock(directory.path(), move || {
            OffsetDateTime::from_unix_timestamp(clock.load(Ordering::Relaxed)).unwrap()
        })
    }

    fn names(directory: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(directory.path()).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn read(directory: &TempDir, name: &str) -> String {
        fs::read_to_string(directory.path().join(name)).unwrap()
    }

    fn leave(directory: &TempDir, days: &[&str]) {
        for day in days {
            fs::write(directory.path().join(format!("loader-{day}.log")), "x").unwrap();
        }
    }

    #[test]
    fn seven_files_are_kept_and_nothing_else_is_touched() {
        let (directory, mut file, clock) = at(1_600_000_000);
        for day in 1..=9 {
            leave(&directory, &[&format!("2020-01-{day:02}")]);
        }
        fs::write(directory.path().join("loader-notes.log"), "x").unwrap();
        file.write_all(b"line\n").unwrap();
        let kept = names(&directory);
        assert_eq!(kept.len(), 8, "{kept:?}");
        assert_eq!((kept[0].as_str(), kept[6].as_str()), ("loader-2020-01-04.log", "loader-2020-09-13.log"));
        assert_eq!(kept[7], "loader-notes.log");
        clock.fetch_add(DAY, Ordering::Relaxed);
        file.write_all(b"next day\n").unwrap();
        assert_eq!(names(&directory)[0], "loader-2020-01-05.log");
        assert_eq!(read(&directory, "loader-2020-09-14.log"), "next day\n");
    }

    #[test]
    fn a_board_whose_clock_starts_in_1970_keeps_its_lines() {
        let (directory, mut file, clock) = at(5);
        let days: Vec<String> = (18..=24).map(|day| format!("2026-11-{day}")).collect();
        leave(&directory, &days.iter().map(String::as_str).collect::<Vec<_>>());
        file.write_all(b"booted\n").unwrap();
        assert_eq!(names(&directory).len(), KEPT_FILES);
        assert_eq!(read(&directory, "loader-1970-01-01.log"), "booted\n");
        assert!(!names(&directory).contains(&"loader-2026-11-18.log".to_owned()), "the oldest goes");
        // The clock is set to a day that has a file already.
        clock.store(1_795_564_800, Ordering::Relaxed);
        file.write_all(b"in time\n").unwrap();
        assert_eq!(read(&directory, "loader-2026-11-25.log"), "in time\n");
    }

    #[test]
    fn files_from_the_future_do_not_push_out_yesterday_s() {
        let (directory, mut file, clock) = at(1_600_000_000);
        leave(&directory, &["2099-01-01", "2099-01-02", "2099-01-03", "2099-01-04", "2099-01-05", "2099-01-06"]);
        for _ in 0..KEPT_FILES {
            file.write_all(b"line\n").unwrap();
            clock.fetch_add(DAY, Ordering::Relaxed);
        }
        let kept = names(&directory);
        assert!(kept.len() == KEPT_FILES && kept.iter().all(|name| name.starts_with("loader-2020-09-")), "{kept:?}");
    }

    #[test]
    fn a_day_s_file_has_a_limit_and_says_how_many_lines_were_left_out() {
        let (directory, mut file, clock) = at(DAY);
        let line = [vec![b'x'; 999], vec![b'\n']].concat();
        for _ in 0..17_000 {
            file.write_all(&line).unwrap();
        }
        let path = directory.path().join("loader-1970-01-02.log");
        let full = fs::metadata(&path).unwrap().len();
        assert!(full > FULL && full <= MAX_BYTES, "{full}");
        let text = fs::read_to_string(&path).unwrap();
        let last = text.lines().next_back().unwrap();
        assert!(
            last.starts_with("time=1970-01-02T00:00:00.000Z level=warn message=\"this day's file is full"),
            "{last}"
        );
        file.write_all(b"short\n").unwrap();
        drop(file);
        // It is still full after a restart.
        let mut file = reopen(&directory, &clock);
        for _ in 0..3 {
            file.write_all(&line).unwrap();
        }
        assert!(fs::metadata(&path).unwrap().len() <= MAX_BYTES);
        assert_eq!(fs::read_to_string(&path).unwrap().matches("is full").count(), 1);
        clock.fetch_add(DAY, Ordering::Relaxed);
        file.write_all(b"next day\n").unwrap();
        let text = read(&directory, "loader-1970-01-03.log");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        let expected = "level=warn message=\"3 lines were left out of loader-1970-01-02.log, which was full\"";
        assert!(lines[0].ends_with(expected) && lines[1] == "next day", "{text}");
    }

    #[test]
    fn a_line_in_pieces_is_one_line() {
        let (directory, mut file, clock) = at(DAY - 1);
        file.write_all(b"time=").unwrap();
        clock.fetch_add(5, Ordering::Relaxed);
        file.write_all(b"now\n").unwrap();
        assert_eq!(names(&directory), ["loader-1970-01-02.log"]);
        assert_eq!(read(&directory, "loader-1970-01-02.log"), "time=now\n");
    }
}
