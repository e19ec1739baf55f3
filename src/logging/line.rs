//! The form of a line: `key=value` pairs, whose values are escaped so that none can fake another pair or line.

use std::fmt::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::kv::{Error, Key, Value, VisitSource};
use log::{Level, Log, Metadata, Record};

use super::Current;
use super::flood::{Floods, Omitted};

/// Formats each record and passes it on, unless it belongs to a flood.
pub(super) struct LineLogger<L> {
    logger: L,
    floods: Mutex<Floods>,
    /// Signals that lines were left out.
    omitted: Condvar,
}

impl<L: Log> LineLogger<L> {
    pub(super) fn to(logger: L) -> Self {
        Self { logger, floods: Mutex::new(Floods::new(Instant::now())), omitted: Condvar::new() }
    }

    /// Runs for ever, and reports once a second which lines were left out.
    pub(super) fn report_floods(&self) {
        loop {
            drop(self.omitted.wait_while(self.floods(), |floods| !floods.is_pending()));
            thread::sleep(Duration::from_secs(1));
            let omitted = self.floods().end_window(Instant::now());
            self.report(&omitted);
        }
    }

    fn admits(&self, record: &Record<'_>) -> bool {
        let mut floods = self.floods();
        let over = floods.end_window(Instant::now());
        let (before, admitted) = (floods.is_pending(), floods.admits(record, client_of(record)));
        if floods.is_pending() && !before {
            self.omitted.notify_one();
        }
        drop(floods);
        self.report(&over);
        admitted
    }

    fn report(&self, omitted: &[Omitted]) {
        for lines in omitted {
            self.write(lines.level, &lines.target, &format_omitted(lines));
        }
    }

    fn write(&self, level: Level, target: &str, line: &str) {
        let metadata = Metadata::builder().level(level).target(target).build();
        self.logger.log(&Record::builder().metadata(metadata).args(format_args!("{line}")).build());
    }

    // Not by `threads::lock`: threads depend on logging.
    fn floods(&self) -> MutexGuard<'_, Floods> {
        self.floods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<L: Log> Log for LineLogger<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        is_ours(metadata) && self.logger.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) && self.admits(record) {
            self.write(record.level(), record.target(), &format(record));
        }
    }

    fn flush(&self) {
        let omitted = self.floods().end_now(Instant::now());
        self.report(&omitted);
        self.logger.flush();
    }
}

/// Libraries log headers and bodies, which hold tokens and signatures.
fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.target().split("::").next() == Some(env!("CARGO_CRATE_NAME"))
}

/// The client that a line is about: the one in the line, else the one that sent the request.
fn client_of(record: &Record<'_>) -> Option<String> {
    let named = record.key_values().get(Key::from_str("client")).map(|client| client.to_string());
    named.or_else(|| Some(Current::get()?.client()?.to_string()))
}

fn format_omitted(lines: &Omitted) -> String {
    let mut line = Line::new(lines.level, &lines.message);
    if let Some(client) = &lines.client {
        line.pair("client", client);
    }
    line.pair("omitted", lines.count);
    line.0
}

fn format(record: &Record<'_>) -> String {
    let mut line = Line::new(record.level(), &record.args().to_string());
    if let Some(id) = Current::get() {
        line.pair("request", id);
    }
    let _ = record.key_values().visit(&mut line);
    line.0
}

struct Line(String);

impl Line {
    fn new(level: Level, message: &str) -> Self {
        let mut line = Self(String::with_capacity(128));
        line.pair("level", level.as_str().to_ascii_lowercase());
        // Always in quotes, so that people find the sentences.
        let _ = write!(line.0, " message={message:?}");
        line
    }

    /// Appends `key=value`. The value is put into quotes and escaped unless it is one plain word.
    fn pair(&mut self, key: &str, value: impl fmt::Display) {
        let value = value.to_string();
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:{}@+%".contains(&b);
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        // Writing to a `String` cannot fail.
        let _ = if !value.is_empty() && value.bytes().all(plain) {
            write!(self.0, "{key}={value}")
        } else {
            write!(self.0, "{key}={value:?}")
        };
    }
}

impl<'kvs> VisitSource<'kvs> for Line {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        self.pair(key.as_str(), value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::logging::RequestId;

    fn line(message: &str, pairs: &[(&str, &str)]) -> String {
        format(&Record::builder().level(Level::Warn).args(format_args!("{message}")).key_values(&pairs).build())
    }

    #[test]
    fn a_line_is_level_message_request_and_pairs() {
        assert_eq!(line("it broke", &[("status", "200")]), r#"level=warn message="it broke" status=200"#);
        let id = RequestId::next_for(None);
        let current = Current::enter(id);
        assert_eq!(line("x", &[]), format!(r#"level=warn message="x" request={id}"#));
        drop(current);
        assert_eq!(line("x", &[]), r#"level=warn message="x""#);
    }

    #[test]
    fn no_value_fakes_a_pair_or_a_line() {
        for (value, expected) in [
            ("/load/m.bin", "/load/m.bin"),
            ("", r#""""#),
            ("a b", r#""a b""#),
            ("a=b", r#""a=b""#),
            ("x\nlevel=error message=\"root logged in\"", r#""x\nlevel=error message=\"root logged in\"""#),
            ("\u{1b}[2J\r\0", r#""\u{1b}[2J\r\0""#),
            ("back\\slash", r#""back\\slash""#),
            ("\u{2028}\u{202e}", r#""\u{2028}\u{202e}""#),
        ] {
            assert_eq!(line("m", &[("path", value)]), format!(r#"level=warn message="m" path={expected}"#));
            // A message is always in quotes.
            let message = line(value, &[]);
            assert!(
                message.starts_with("level=warn message=\"") && !message.contains(['\n', '\r', '\u{1b}']),
                "{message}"
            );
        }
    }

    /// Keeps the lines that reach it.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<String>>>);

    impl Log for Kept {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &Record<'_>) {
            self.0.lock().unwrap().push(record.args().to_string());
        }

        fn flush(&self) {}
    }

    fn log_one(lines: &LineLogger<Kept>, target: &str, pairs: &[(&str, &str)]) {
        let mut record = Record::builder();
        record.level(Level::Warn).target(target).file_static(Some("a.rs")).line(Some(1)).key_values(&pairs);
        lines.log(&record.args(format_args!("refused")).build());
    }

    #[test]
    fn a_flood_becomes_a_line_with_its_number_and_other_clients_keep_their_lines() {
        let kept = Kept::default();
        let lines = LineLogger::to(kept.clone());
        let current = Current::enter(RequestId::next_for("10.0.0.7".parse().ok()));
        for _ in 0..500 {
            log_one(&lines, "loader::a", &[("client", "10.0.0.9")]);
            log_one(&lines, "loader::a", &[]);
        }
        drop(current);
        log_one(&lines, "loader::a", &[("client", "10.0.0.8")]);
        lines.flush();
        let kept = kept.0.lock().unwrap();
        let written = |client: &str| kept.iter().filter(|line| line.contains(client)).count();
        let omitted = |client: &str| -> usize {
            let prefix = format!("level=warn message=\"refused\" client={client} omitted=");
            kept.iter().filter_map(|line| line.strip_prefix(&prefix)).map(|count| count.parse::<usize>().unwrap()).sum()
        };
        assert_eq!(written("10.0.0.8"), 1);
        // On a slow machine this takes several seconds, and each has its own line about the omitted ones.
        let [nine, seven] = [omitted("10.0.0.9"), omitted("10.0.0.7")];
        let single = |client: &str| kept.iter().filter(|line| line.ends_with(&format!("client={client}"))).count();
        assert_eq!(single("10.0.0.9") + nine, 500);
        assert!(nine > 0 && seven > 0 && single("10.0.0.9") >= 10, "{kept:?}");
    }

    #[test]
    fn lines_of_libraries_are_not_written() {
        let kept = Kept::default();
        let lines = LineLogger::to(kept.clone());
        for target in ["ureq::pool", "loaderx", "tiny_http", ""] {
            log_one(&lines, target, &[]);
        }
        assert!(kept.0.lock().unwrap().is_empty());
    }
}
