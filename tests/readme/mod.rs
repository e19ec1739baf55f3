//! The documents: their tables and links are compared with the program and its source, and their shell blocks are run.

mod blocks;
mod tables;

use std::fs;
use std::path::{Path, PathBuf};

/// A `README.md` of the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its directory, from the root of the repository.
    directory: &'static str,
}

/// For the person who arrives.
pub const README: Document = Document { directory: "" };
/// For whoever builds, installs and operates boxes.
pub const DIST: Document = Document { directory: ".dist" };
/// What is promised, and how to run what.
const TESTS: Document = Document { directory: "tests" };
/// How fast it is.
const BENCH: Document = Document { directory: "tests/bench" };

const DOCUMENTS: [Document; 4] = [README, DIST, TESTS, BENCH];

impl Document {
    fn directory(self) -> PathBuf {
        repository().join(self.directory)
    }

    fn text(self) -> String {
        fs::read_to_string(self.directory().join("README.md")).unwrap()
    }

    /// What follows a heading.
    fn section(self, heading: &str) -> String {
        let text = self.text();
        let section = text.split_once(&format!("\n{heading}\n"));
        section.unwrap_or_else(|| panic!("{self:?} has no {heading}")).1.to_owned()
    }

    /// The first block after a heading in a fence of this language.
    pub fn block(self, heading: &str, language: &str) -> String {
        let section = self.section(heading);
        let (_, block) = section.split_once(&format!("\n```{language}\n")).unwrap();
        block.split_once("```").unwrap().0.to_owned()
    }

    /// The rows of the first table after a heading, as cells.
    fn table(self, heading: &str) -> Vec<Vec<String>> {
        let section = self.section(heading);
        let rows = section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
        let cells = |row: &str| {
            row.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect::<Vec<_>>()
        };
        rows.skip(2).map(cells).collect()
    }
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The configuration of nginx for a site of boxes.
pub fn site_cache() -> String {
    DIST.block("### A site of boxes behind one uplink", "nginx")
}
