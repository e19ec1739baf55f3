//! The progress of a long command: a bar on a terminal, a line now and then elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often the bar is repainted.
const REPAINT_EVERY: Duration = Duration::from_millis(100);

/// How often a line is written if there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Width of the bar. Together with its text it fits into 80 columns.
const CELLS: u64 = 24;

/// Shows progress on one output.
pub(super) struct Progress<W> {
    output: W,
    bar: bool,
    shown: Option<Instant>,
    /// The step that was shown last.
    step: String,
    painted: bool,
}

impl<W: Write + IsTerminal> Progress<W> {
    /// Chooses the bar or the lines by what `output` is.
    pub(super) fn on(output: W) -> Self {
        // A dumb terminal cannot erase a line.
        let bar = output.is_terminal() && std::env::var_os("TERM").is_none_or(|name| name != "dumb");
        Self::new(output, bar)
    }
}

impl<W: Write> Progress<W> {
    fn new(output: W, bar: bool) -> Self {
        Self { output, bar, shown: None, step: String::new(), painted: false }
    }

    /// Shows `done` of `total` bytes (0 if the total is not known) of `step`, if it is time to or the step is new.
    pub(super) fn show(&mut self, step: &str, done: u64, total: u64) {
        self.show_at(Instant::now(), step, done, total);
    }

    /// As [`show`](Self::show), but the first line comes only after its time: for commands that are often short.
    pub(super) fn show_long(&mut self, step: &str, done: u64, total: u64) {
        if self.step.is_empty() {
            step.clone_into(&mut self.step);
            self.shown = Some(Instant::now());
        }
        self.show(step, done, total);
    }

    fn show_at(&mut self, now: Instant, step: &str, done: u64, total: u64) {
        let pause = if self.bar { REPAINT_EVERY } else { LINE_EVERY };
        let is_time = self.shown.is_none_or(|shown| now.saturating_duration_since(shown) >= pause);
        if !is_time && step == self.step {
            return;
        }
        self.shown = Some(now);
        step.clone_into(&mut self.step);
        self.paint(done, total);
    }

    /// Write errors are ignored: a command does not fail because nobody watches it.
    fn paint(&mut self, done: u64, total: u64) {
        let amount = match (done, total) {
            (0, 0) => String::new(),
            (done, 0) => size(done),
            // The length of a step may be known only after it has begun.
            (done, total) => format!("{:3} %  {} of {}", percent(done, total), size(done), size(total)),
        };
        let step = &self.step;
        let _ = if self.bar {
            let cells = if total == 0 { 0 } else { percent(done, total) * CELLS / 100 };
            let bar: String = (0..CELLS).map(|cell| if cell < cells { '#' } else { '.' }).collect();
            let bar = if total == 0 { String::new() } else { format!("[{bar}] ") };
            self.painted = true;
            write!(self.output, "\r\x1b[K{step:16} {bar}{amount}").and_then(|()| self.output.flush())
        } else {
            writeln!(self.output, "{}", format!("{step:16} {amount}").trim_end())
        };
    }

    /// Shows the last step and ends the bar's line.
    pub(super) fn finish(&mut self, step: &str, done: u64, total: u64) {
        if self.bar || step != self.step {
            step.clone_into(&mut self.step);
            self.paint(done, total);
        }
        self.end();
    }

    /// As [`finish`](Self::finish), but writes nothing if there is no bar.
    pub(super) fn finish_bar(&mut self, step: &str, done: u64, total: u64) {
        if self.bar {
            self.finish(step, done, total);
        }
    }

    /// Ends the bar's line, so that later output has a line of its own.
    pub(super) fn end(&mut self) {
        if std::mem::take(&mut self.painted) {
            let _ = writeln!(self.output);
        }
    }
}

fn percent(done: u64, total: u64) -> u64 {
    (u128::from(done) * 100 / u128::from(total.max(1))).min(100) as u64
}

/// A number of bytes for people, in the decimal units in which disks are sold.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{} kB", bytes / 1_000),
        1_000_000..1_000_000_000 => format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10),
        _ => format!("{}.{:02} GB", bytes / 1_000_000_000, bytes / 10_000_000 % 100),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(bar: bool, seconds: &[(u64, &str, u64)]) -> String {
        let (start, mut progress) = (Instant::now(), Progress::new(Vec::new(), bar));
        for (second, step, done) in seconds {
            progress.show_at(start + Duration::from_secs(*second), step, *done, 2_000_000);
        }
        progress.finish("ready", 2_000_000, 2_000_000);
        String::from_utf8(progress.output).unwrap()
    }

    #[test]
    fn without_a_terminal_there_is_a_line_for_each_step_and_every_ten_seconds() {
        let text = shown(false, &[(0, "one", 0), (1, "two", 0), (5, "two", 1), (11, "two", 1_000_000), (12, "two", 2)]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "one                0 %  0 B of 2.0 MB",
                "two                0 %  0 B of 2.0 MB",
                "two               50 %  1.0 MB of 2.0 MB",
                "ready            100 %  2.0 MB of 2.0 MB"
            ]
        );
    }

    #[test]
    fn a_bar_is_one_line_of_fewer_than_80_columns() {
        let text = shown(true, &[(0, "loading_images", 999_999), (1, "loading_images", 1_500_000)]);
        assert!(text.ends_with('\n') && text.matches('\n').count() == 1, "{text:?}");
        for frame in text.trim_end().split("\r\x1b[K").skip(1) {
            assert!(frame.len() < 80 && frame.contains('#'), "{frame:?}");
        }
    }

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in
            [(0, "0 B"), (999, "999 B"), (1_999, "1 kB"), (1_250_000, "1.2 MB"), (17_179_869_184, "17.17 GB")]
        {
            assert_eq!(size(bytes), text);
        }
    }
}
