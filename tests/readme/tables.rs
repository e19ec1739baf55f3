//! The tables and links of the documents.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{DOCUMENTS, README, TESTS, repository};
use crate::world::service::Service;

#[test]
fn the_table_of_variables_is_the_one_in_the_help() {
    let help = Service::builder().run(&["--help"], b"");
    let help = String::from_utf8(help.stdout).unwrap();
    let lines = help.split_once("\nEnvironment ").unwrap().1.lines().skip(1).take_while(|line| !line.is_empty());
    let in_help = lines.map(|line| {
        let cells: Vec<&str> = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        assert_eq!(cells.len(), 3, "{line}");
        cells.iter().map(|cell| cell.replace("(none)", "")).collect()
    });
    let in_readme = README.table("## Configuration").into_iter();
    let in_readme = in_readme.map(|row| row.iter().map(|cell| cell.replace('`', "")).collect());
    assert_eq!(in_readme.collect::<Vec<Vec<String>>>(), in_help.collect::<Vec<Vec<String>>>());
}

/// The text of all files with this extension in a directory and below.
fn all_text(directory: &Path, extension: &str) -> String {
    let entries = fs::read_dir(directory).unwrap().flatten().map(|entry| entry.path());
    let text = entries.map(|path| match path {
        path if path.is_dir() => all_text(&path, extension),
        path if path.extension().is_some_and(|found| found == extension) => fs::read_to_string(path).unwrap(),
        _ => String::new(),
    });
    text.collect()
}

#[test]
fn the_messages_that_the_readme_explains_exist_in_the_program() {
    let source = all_text(&repository().join("src"), "rs");
    let rows = README.table("## When something fails");
    assert!(rows.len() > 5);
    for row in rows {
        let message = row[0].split('`').next().unwrap();
        assert!(source.contains(message), "{message:?} is said nowhere");
    }
}

/// The fragment by which a link names a heading.
fn fragment(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn files_and_headings_that_links_name_exist() {
    for document in DOCUMENTS {
        let text = document.text();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") {
                continue;
            }
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let file = match path {
                "" => document.directory().join("README.md"),
                path => document.directory().join(path),
            };
            assert!(file.exists(), "{document:?}: {link}");
            if !heading.is_empty() {
                let there = fs::read_to_string(&file).unwrap();
                let mut headings = there.lines().filter(|line| line.starts_with('#'));
                assert!(headings.any(|line| fragment(line) == heading), "{document:?}: {link}");
            }
        }
    }
}

#[test]
fn paths_in_the_documents_exist() {
    for document in DOCUMENTS {
        let text = document.text();
        for word in text.split('`').skip(1).step_by(2) {
            let path = word.split(' ').next().unwrap();
            if ["src/", "tests/", ".ci/", ".dist/"].iter().any(|top| path.starts_with(top)) {
                assert!(repository().join(path).exists(), "{document:?}: {path}");
            }
        }
    }
}

#[test]
fn tests_that_promises_name_exist() {
    let names = names_of_tests();
    let rows = TESTS.table("## What is promised");
    assert!(rows.len() > 40);
    for row in rows {
        for promised in row[2].split("`, `") {
            let in_module = format!("{promised}::");
            assert!(names.iter().any(|name| name == promised || name.starts_with(&in_module)), "{promised}");
        }
    }
}

/// The names of all tests.
fn names_of_tests() -> Vec<String> {
    let list = Command::new(std::env::current_exe().unwrap()).arg("--list").output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    list.lines().filter_map(|line| line.strip_suffix(": test").map(str::to_owned)).collect()
}

/// The filters after `cargo test --test tests --` select something.
pub fn assert_filters_select(words: &[&str]) {
    let names = names_of_tests();
    for filter in words.iter().filter(|word| !word.starts_with('-')) {
        assert!(names.iter().any(|name| name.contains(filter)), "no test is selected by {filter}");
    }
}

#[test]
fn filters_that_ci_uses_select_tests() {
    let script = fs::read_to_string(repository().join(".ci/run")).unwrap().replace("\\\n", " ");
    let commands = script.lines().filter_map(|line| line.split_once("cargo test --test tests -- "));
    let commands: Vec<&str> = commands.map(|(_, words)| words).collect();
    assert!(commands.len() >= 3);
    for words in commands {
        assert_filters_select(&words.split_whitespace().collect::<Vec<_>>());
    }
}
