//! The Prometheus text format, version 0.0.4.

use std::fmt::{Display, Write};

/// A document to which families of samples are added.
#[derive(Debug, Default)]
pub struct Text {
    document: String,
    /// The family that was begun last.
    family: &'static str,
}

impl Text {
    /// The `Content-Type` of the format.
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    /// Begins a family of samples.
    pub fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.family = name;
        let _ = write!(self.document, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// Adds a sample to the family that was begun last. Labels are not escaped: they come from this program.
    pub fn sample(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        let _ = write!(self.document, "{}{suffix}", self.family);
        for (index, (name, label)) in labels.iter().enumerate() {
            let _ = write!(self.document, "{}{name}=\"{label}\"", if index == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.document, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// Adds a family of one sample without labels.
    pub fn single(&mut self, name: &'static str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample("", &[], value);
    }

    /// The finished document.
    pub fn into_bytes(self) -> Vec<u8> {
        self.document.into_bytes()
    }
}
