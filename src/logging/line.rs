//! The form of a line: `key=value` pairs, of which no value can fake another pair or another line.

use std::fmt::{self, Write};

use log::kv::{Error, Key, Value, VisitSource};
use log::{Log, Metadata, Record};

use super::Current;

/// Gives each record its form and passes it on.
pub(super) struct Lines<L>(L);

impl<L: Log> Lines<L> {
    pub(super) fn to(logger: L) -> Self {
        Self(logger)
    }
}

impl<L: Log> Log for Lines<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = format(record);
        let mut whole = Record::builder();
        whole.metadata(record.metadata().clone()).module_path(record.module_path());
        self.0.log(&whole.args(format_args!("{line}")).build());
    }

    fn flush(&self) {
        self.0.flush();
    }
}

fn format(record: &Record<'_>) -> String {
    let mut line = Line(String::with_capacity(128));
    line.pair("level", record.level().as_str().to_ascii_lowercase());
    // Sentences are always quoted, so that a reader by eye finds them.
    let _ = write!(line.0, " message={:?}", record.args().to_string());
    if let Some(id) = Current::get() {
        line.pair("request", id);
    }
    let _ = record.key_values().visit(&mut line);
    line.0
}

struct Line(String);

impl Line {
    /// Appends `key=value`, the value as it is where it is one plain word, else in quotes with escapes.
    fn pair(&mut self, key: &str, value: impl fmt::Display) {
        let value = value.to_string();
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:{}@+%".contains(&b);
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        // A `String` takes everything.
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
    use log::Level;

    use super::*;
    use crate::logging::RequestId;

    fn line(message: &str, pairs: &[(&str, &str)]) -> String {
        format(&Record::builder().level(Level::Warn).args(format_args!("{message}")).key_values(&pairs).build())
    }

    #[test]
    fn a_line_is_level_message_request_and_pairs() {
        assert_eq!(line("it broke", &[("status", "200")]), r#"level=warn message="it broke" status=200"#);
        let id = RequestId::next();
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
            // A message is quoted in any case.
            let message = line(value, &[]);
            assert!(
                message.starts_with("level=warn message=\"") && !message.contains(['\n', '\r', '\u{1b}']),
                "{message}"
            );
        }
    }
}
