//! Limits floods of lines, so that no client can fill the flash with them. After ten lines within a second from one place in
//! the source about one client, further ones become one line a second with their number. Other lines are not affected.

use std::collections::HashMap;
use std::mem;
use std::time::{Duration, Instant};

use log::{Level, Record};

/// How many lines of one source are written one by one within a [`WINDOW`].
const LIMIT: u64 = 10;

/// The time over which lines are counted.
const WINDOW: Duration = Duration::from_secs(1);

/// How many sources are told apart. A client with more addresses shares one count with all further clients.
const MAX_SOURCES: usize = 1024;

/// Stands for the clients that are not told apart.
const OTHERS: &str = "others";

/// Where a line comes from, and which client it is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct LineSource {
    file: Option<&'static str>,
    line: Option<u32>,
    level: Level,
    client: Option<String>,
}

/// The lines of one source in the window.
#[derive(Default)]
struct LineCount {
    /// There were too many in the previous window, so all are left out until a window has few.
    floods: bool,
    count: u64,
    omitted: Option<Omitted>,
}

/// Lines that were left out. One line is written in their place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Omitted {
    pub(super) level: Level,
    pub(super) target: String,
    /// The message of the first one.
    pub(super) message: String,
    pub(super) client: Option<String>,
    pub(super) count: u64,
}

/// Counts lines by source.
pub(super) struct Floods {
    /// When the current window began.
    began: Instant,
    sources: HashMap<LineSource, LineCount>,
    /// Lines were left out and have not been reported yet.
    pending: bool,
}

impl Floods {
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, sources: HashMap::new(), pending: false }
    }

    /// Whether a line is to be written. If not, [`end_window`](Self::end_window) will report it.
    pub(super) fn admits(&mut self, record: &Record<'_>, client: Option<String>) -> bool {
        let mut source = LineSource { file: record.file_static(), line: record.line(), level: record.level(), client };
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source) {
            source.client = Some(OTHERS.to_owned());
        }
        let lines = self.sources.entry(source.clone()).or_default();
        lines.count += 1;
        if lines.count <= LIMIT && !lines.floods {
            return true;
        }
        let omitted = lines.omitted.get_or_insert_with(|| Omitted {
            level: source.level,
            target: record.target().to_owned(),
            message: record.args().to_string(),
            client: source.client,
            count: 0,
        });
        omitted.count += 1;
        self.pending = true;
        false
    }

    /// Whether lines were left out and have not been reported yet.
    pub(super) fn is_pending(&self) -> bool {
        self.pending
    }

    /// The lines that were left out, once the window is over.
    pub(super) fn end_window(&mut self, now: Instant) -> Vec<Omitted> {
        if now.saturating_duration_since(self.began) < WINDOW {
            return Vec::new();
        }
        self.end_now(now)
    }

    /// The lines that were left out so far.
    pub(super) fn end_now(&mut self, now: Instant) -> Vec<Omitted> {
        (self.began, self.pending) = (now, false);
        let mut all = Vec::new();
        self.sources.retain(|_, lines| {
            all.extend(lines.omitted.take());
            lines.floods = mem::take(&mut lines.count) > LIMIT;
            lines.floods
        });
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The counts, and a clock that the test sets.
    struct Log {
        now: Instant,
        floods: Floods,
    }

    impl Log {
        fn new() -> Self {
            let now = Instant::now();
            Self { now, floods: Floods::new(now) }
        }

        /// Logs `count` lines from one place. Returns how many of them were written.
        fn lines(&mut self, count: u64, place: u32, client: Option<&str>) -> u64 {
            let written = (0..count).filter(|n| {
                let mut record = Record::builder();
                record.file_static(Some("a.rs")).line(Some(place)).level(Level::Warn).target("loader::a");
                self.floods.admits(&record.args(format_args!("refused {n}")).build(), client.map(str::to_owned))
            });
            written.count() as u64
        }

        fn second(&mut self) -> Vec<Omitted> {
            self.now += WINDOW;
            self.floods.end_window(self.now)
        }
    }

    #[test]
    fn ten_lines_a_second_are_written_and_the_others_become_one_line_with_their_number() {
        let mut log = Log::new();
        assert_eq!(log.lines(5000, 1, Some("10.0.0.9")), 10);
        assert!(log.floods.is_pending());
        assert!(log.floods.end_window(log.now + WINDOW / 2).is_empty(), "the second is not over");
        let expected = Omitted {
            level: Level::Warn,
            target: "loader::a".into(),
            message: "refused 10".into(),
            client: Some("10.0.0.9".into()),
            count: 4990,
        };
        assert_eq!(log.second(), [expected]);
        assert!(!log.floods.is_pending() && log.second().is_empty());
    }

    #[test]
    fn a_flood_that_lasts_is_one_line_a_second_until_it_ends() {
        let mut log = Log::new();
        let mut written = log.lines(100, 1, Some("a"));
        for _ in 0..60 {
            written += log.second().len() as u64;
            written += log.lines(100, 1, Some("a"));
        }
        assert_eq!(written, 10 + 60);
        assert_eq!(log.second()[0].count, 100);
        // The second in which the flood ends is still counted.
        assert_eq!(log.lines(10, 1, Some("a")), 0);
        assert_eq!(log.second()[0].count, 10);
        assert_eq!(log.lines(10, 1, Some("a")), 10);
        assert!(log.second().is_empty());
    }

    #[test]
    fn other_clients_and_other_places_are_not_affected() {
        let mut log = Log::new();
        log.lines(1000, 1, Some("a"));
        assert_eq!(log.lines(10, 1, Some("b")), 10);
        assert_eq!(log.lines(10, 1, None), 10);
        assert_eq!(log.lines(10, 2, Some("a")), 10);
        assert_eq!(log.second().len(), 1);
    }

    #[test]
    fn any_number_of_clients_takes_bounded_memory_and_lines() {
        let mut log = Log::new();
        let written: u64 = (0..100_000).map(|n| log.lines(1, 1, Some(&n.to_string()))).sum();
        assert_eq!(written, MAX_SOURCES as u64 + LIMIT);
        assert_eq!(log.floods.sources.len(), MAX_SOURCES + 1);
        let omitted = log.second();
        assert_eq!(omitted.len(), 1);
        assert_eq!((omitted[0].client.as_deref(), omitted[0].count), (Some(OTHERS), 100_000 - written));
        assert_eq!(log.floods.sources.len(), 1, "the others still flood, all other sources are forgotten");
    }

    #[test]
    fn pending_lines_are_reported_at_the_end() {
        let mut log = Log::new();
        log.lines(12, 1, None);
        assert_eq!(log.floods.end_now(log.now)[0].count, 2);
    }
}
