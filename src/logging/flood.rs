//! A client that makes one line thousands of times a second fills no flash: after ten in a second the lines from one place
//! in the source for one client become one line a second, with the number of those left out. Other lines are not concerned.

use std::collections::HashMap;
use std::mem;
use std::time::{Duration, Instant};

use log::{Level, Record};

/// Lines from one place for one client that are written one by one.
const IN_A_SECOND: u64 = 10;

/// Lines are counted over this time.
const WINDOW: Duration = Duration::from_secs(1);

/// Places and clients that are told apart. Whoever sends from more addresses than that shares the count of one.
const MAX_SOURCES: usize = 1024;

/// The clients that are not told apart.
const OTHERS: &str = "others";

/// Where a line comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Source {
    file: Option<&'static str>,
    line: Option<u32>,
    level: Level,
    client: Option<String>,
}

/// What one source did in the window.
#[derive(Default)]
struct Lines {
    /// It had too many in the window before, so each of its lines is left out until it calms down.
    floods: bool,
    count: u64,
    /// How many were left out, and the first of them.
    omitted: Option<Omitted>,
}

/// Lines that were left out, and what stands for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Omitted {
    pub(super) level: Level,
    pub(super) target: String,
    /// The first one's.
    pub(super) message: String,
    pub(super) client: Option<String>,
    pub(super) count: u64,
}

/// Counts lines by their source.
pub(super) struct Floods {
    /// When the window began.
    began: Instant,
    sources: HashMap<Source, Lines>,
    /// Lines were left out that nothing stands for yet.
    pending: bool,
}

impl Floods {
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, sources: HashMap::new(), pending: false }
    }

    /// Whether a line is to be written. Where it is not, it will be part of what [`end_window`](Self::end_window) gives.
    pub(super) fn admits(&mut self, record: &Record<'_>, client: Option<String>) -> bool {
        let mut source = Source { file: record.file_static(), line: record.line(), level: record.level(), client };
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source) {
            source.client = Some(OTHERS.to_owned());
        }
        let lines = self.sources.entry(source.clone()).or_default();
        lines.count += 1;
        if lines.count <= IN_A_SECOND && !lines.floods {
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

    /// Whether lines were left out that nothing stands for yet.
    pub(super) fn is_pending(&self) -> bool {
        self.pending
    }

    /// What was left out, once the window is over.
    pub(super) fn end_window(&mut self, now: Instant) -> Vec<Omitted> {
        if now.saturating_duration_since(self.began) < WINDOW {
            return Vec::new();
        }
        self.end_now(now)
    }

    /// What was left out so far.
    pub(super) fn end_now(&mut self, now: Instant) -> Vec<Omitted> {
        (self.began, self.pending) = (now, false);
        let mut all = Vec::new();
        self.sources.retain(|_, lines| {
            all.extend(lines.omitted.take());
            lines.floods = mem::take(&mut lines.count) > IN_A_SECOND;
            lines.floods
        });
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock of the test's own, and what was written.
    struct Log {
        now: Instant,
        floods: Floods,
    }

    impl Log {
        fn new() -> Self {
            let now = Instant::now();
            Self { now, floods: Floods::new(now) }
        }

        /// Logs so many lines from one place and says how many of them were written.
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
    fn ten_lines_in_a_second_are_written_and_the_rest_is_one_line_with_their_number() {
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
        // The second in which it calms down is counted, too.
        assert_eq!(log.lines(10, 1, Some("a")), 0);
        assert_eq!(log.second()[0].count, 10);
        assert_eq!(log.lines(10, 1, Some("a")), 10);
        assert!(log.second().is_empty());
    }

    #[test]
    fn other_clients_and_other_places_are_not_concerned() {
        let mut log = Log::new();
        log.lines(1000, 1, Some("a"));
        assert_eq!(log.lines(10, 1, Some("b")), 10);
        assert_eq!(log.lines(10, 1, None), 10);
        assert_eq!(log.lines(10, 2, Some("a")), 10);
        assert_eq!(log.second().len(), 1);
    }

    #[test]
    fn clients_without_number_cost_bounded_memory_and_lines() {
        let mut log = Log::new();
        let written: u64 = (0..100_000).map(|n| log.lines(1, 1, Some(&n.to_string()))).sum();
        assert_eq!(written, MAX_SOURCES as u64 + IN_A_SECOND);
        assert_eq!(log.floods.sources.len(), MAX_SOURCES + 1);
        let omitted = log.second();
        assert_eq!(omitted.len(), 1);
        assert_eq!((omitted[0].client.as_deref(), omitted[0].count), (Some(OTHERS), 100_000 - written));
        assert_eq!(log.floods.sources.len(), 1, "the others still flood, the rest is forgotten");
    }

    #[test]
    fn what_is_pending_at_the_end_is_not_lost() {
        let mut log = Log::new();
        log.lines(12, 1, None);
        assert_eq!(log.floods.end_now(log.now)[0].count, 2);
    }
}
