//! Reading `/proc` and `/sys`: no errors, little memory, and text that is safe to print.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The longest part, in characters: a corrupt device must not make the string too long to read out on the phone.
const MAX_PART_CHARS: usize = 128;

/// The most bytes read of one file. Only `/proc/cpuinfo` is longer; its fields are near its start, or, on the small boards
/// that have `Model`, at the end of a few kilobytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

const SOC: &str = "sys/bus/soc/devices";

/// A part's value, where it was read, and what would change it.
pub(super) struct Fact {
    pub(super) value: String,
    pub(super) source: String,
    pub(super) changed_by: &'static str,
}

/// The directory that holds `proc` and `sys`: `/` outside tests. Paths below it are given without the first slash.
#[derive(Clone, Copy)]
pub(super) struct Root<'a>(pub &'a Path);

impl Root<'_> {
    pub(super) fn path(self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    /// The names in a directory, sorted, because the kernel promises no order. Empty if it cannot be read.
    pub(super) fn names(self, directory: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(directory)) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    pub(super) fn bytes(self, file: &str) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.path(file)).ok()?.take(MAX_FILE_BYTES).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// The whole file, with its lines.
    pub(super) fn text(self, file: &str) -> Option<String> {
        Some(String::from_utf8_lossy(&self.bytes(file)?).into_owned())
    }

    /// The one value that a file holds.
    pub(super) fn value(self, file: &str) -> Option<String> {
        clean(&self.text(file)?)
    }

    /// The one value of a file, as a part of the string.
    pub(super) fn fact(self, file: &str, changed_by: &'static str) -> Option<Fact> {
        Some(Fact { value: self.value(file)?, source: format!("/{file}"), changed_by })
    }

    /// A file of the SoC bus, where drivers of SoCs repeat what the device tree says.
    pub(super) fn soc(self, file: &str, changed_by: &'static str) -> Option<Fact> {
        self.names(SOC).iter().find_map(|name| self.fact(&format!("{SOC}/{name}/{file}"), changed_by))
    }

    /// The value of the first line `key : value` of `/proc/cpuinfo` that has one.
    pub(super) fn cpuinfo(self, key: &str, changed_by: &'static str) -> Option<Fact> {
        let value = cpuinfo_field(&self.text("proc/cpuinfo")?, key)?;
        Some(Fact { value, source: format!("{key} in /proc/cpuinfo"), changed_by })
    }
}

/// The case counts: on x86 `model` is a number, on a Raspberry Pi `Model` is the board.
fn cpuinfo_field(cpuinfo: &str, key: &str) -> Option<String> {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.trim() == key)
        .find_map(|(_, value)| clean(value))
}

/// Printable ASCII with single spaces, cut to [`MAX_PART_CHARS`], or nothing if there is none. Device-tree strings end
/// in NUL, serials are padded with blanks, and a failing disk may return anything at all.
pub(super) fn clean(text: &str) -> Option<String> {
    let printable: String =
        text.chars().map(|character| if character.is_ascii_graphic() { character } else { ' ' }).collect();
    let words: Vec<&str> = printable.split_whitespace().collect();
    let short: String = words.join(" ").chars().take(MAX_PART_CHARS).collect();
    let short = short.trim_end();
    (!short.is_empty()).then(|| short.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_printable_single_spaced_and_short() {
        assert_eq!(clean("  Intel(R)\tXeon(R)   CPU\n").as_deref(), Some("Intel(R) Xeon(R) CPU"));
        assert_eq!(clean("Raspberry Pi 4\0").as_deref(), Some("Raspberry Pi 4"));
        assert_eq!(clean("a\x1b[31mb\u{202e}\u{fffd}c\x7f").as_deref(), Some("a [31mb c"));
        assert_eq!(clean(" \0\n"), None);
        assert_eq!(clean(&"x".repeat(500)), Some("x".repeat(MAX_PART_CHARS)));
        assert_eq!(clean(&format!("{} y", "x".repeat(MAX_PART_CHARS - 1))), Some("x".repeat(MAX_PART_CHARS - 1)));
    }

    #[test]
    fn cpuinfo_keys_are_exact_and_empty_values_skipped() {
        let cpuinfo =
            "processor\t: 0\nmodel\t\t: 167\nmodel name\t: \nmodel name\t: Some CPU @ 2:1\nModel\t\t: Board\n";
        assert_eq!(cpuinfo_field(cpuinfo, "model name").as_deref(), Some("Some CPU @ 2:1"));
        assert_eq!(cpuinfo_field(cpuinfo, "Model").as_deref(), Some("Board"));
        assert_eq!(cpuinfo_field(cpuinfo, "Hardware"), None);
    }
}
