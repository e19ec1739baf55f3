//! The table that the demo prints, a row as each step ends.

use std::io::{self, Write};
use std::time::Duration;

/// Width of the first column.
const TITLE: usize = 46;

/// What a step has done.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Bytes moved, if the step moves any.
    pub bytes: Option<u64>,
    /// How long it took.
    pub time: Duration,
    /// Where the bytes are now: rows without a time.
    pub parts: Vec<(&'static str, u64)>,
}

/// A table that is being printed.
pub struct Table<W> {
    out: W,
}

impl<W: Write> Table<W> {
    /// Prints the column heads.
    pub fn begin(mut out: W) -> io::Result<Self> {
        writeln!(out, "{:<TITLE$}{:>16}{:>12}{:>10}", "step", "bytes", "time", "MB/s")?;
        Ok(Self { out })
    }

    /// Says which step is running.
    pub fn start_row(&mut self, title: &str) -> io::Result<()> {
        write!(self.out, "{title:<TITLE$}")?;
        self.out.flush()
    }

    /// Prints the result of a step.
    pub fn finish_row(&mut self, done: &Done) -> io::Result<()> {
        let bytes = done.bytes.map_or_else(|| "-".to_owned(), grouped);
        let time = format!("{:.3} s", done.time.as_secs_f64());
        writeln!(self.out, "{bytes:>16}{time:>12}{:>10}", speed(done))?;
        for (title, bytes) in &done.parts {
            writeln!(self.out, "{:<TITLE$}{:>16}", format!("  {title}"), grouped(*bytes))?;
        }
        Ok(())
    }

    /// Ends the line of a step that failed.
    pub fn abandon_row(&mut self) -> io::Result<()> {
        writeln!(self.out, "{:>16}", "failed")
    }
}

/// The speed; none for a few bytes, where it would say nothing.
fn speed(done: &Done) -> String {
    match done.bytes {
        Some(bytes @ 100_000..) => format!("{:.1}", bytes as f64 / 1e6 / done.time.as_secs_f64().max(1e-9)),
        _ => "-".to_owned(),
    }
}

/// A number of bytes in words.
pub fn counted(bytes: u64) -> String {
    format!("{} {}", grouped(bytes), if bytes == 1 { "byte" } else { "bytes" })
}

/// Digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
