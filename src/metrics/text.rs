//! The Prometheus text format, version 0.0.4.

use std::fmt::{Display, Write};

/// A document in the making.
#[derive(Debug, Default)]
pub struct Text {
    document: String,
    /// The family that samples belong to.
    family: &'static str,
}

impl Text {
    /// The format's name in `Content-Type`.
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    /// Begins a family of samples.
    pub fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.family = name;
        let _ = write!(self.document, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// A sample of the family that was begun last. Label values are this program's own words, which need no escapes.
    pub fn sample(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        let _ = write!(self.document, "{}{suffix}", self.family);
        for (index, (name, label)) in labels.iter().enumerate() {
            let _ = write!(self.document, "{}{name}=\"{label}\"", if index == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.document, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// A family of one sample without labels.
    pub fn single(&mut self, name: &'static str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample("", &[], value);
    }

    /// The document.
    pub fn into_bytes(self) -> Vec<u8> {
        self.document.into_bytes()
    }
}
