//! The README says what the program does: its tables are compared with the program and its source.

use std::fs;
use std::path::Path;

use crate::world::service::Service;

/// The folders of `tests/` that hold tests.
const SUBJECTS: [&str; 7] = ["api", "clients", "images", "models", "operations", "readme", "upstream"];

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).unwrap()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The rows of the table below a heading, as cells.
fn table(heading: &str) -> Vec<Vec<String>> {
    let readme = readme();
    let section = readme.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading}")).1;
    let rows = section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| {
        row.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect::<Vec<_>>()
    };
    rows.skip(2).map(cells).collect()
}

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
    let in_readme = table("### Configuration").into_iter();
    let in_readme = in_readme.map(|row| row.iter().map(|cell| cell.replace('`', "")).collect());
    assert_eq!(in_readme.collect::<Vec<Vec<String>>>(), in_help.collect::<Vec<Vec<String>>>());
}

#[test]
fn the_messages_it_explains_are_those_of_the_program() {
    let mut source = String::new();
    let mut directories = vec![root().join("src")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            match entry.path() {
                path if path.is_dir() => directories.push(path),
                path if path.extension().is_some_and(|extension| extension == "rs") => {
                    source.push_str(&fs::read_to_string(path).unwrap());
                }
                _ => {}
            }
        }
    }
    let rows = table("## When something fails");
    assert!(rows.len() > 5);
    for row in rows {
        let message = row[0].split('`').next().unwrap();
        assert!(source.contains(message), "{message:?} is said nowhere");
    }
}

#[test]
fn files_and_tests_that_it_names_exist() {
    let readme = readme();
    for target in readme.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        if !target.starts_with('#') && !target.starts_with("http") {
            assert!(root().join(target).exists(), "{target}");
        }
    }
    for row in table("## What it promises") {
        for name in row[2].split("`, `").filter_map(|name| name.split('`').next()) {
            assert!(is_test_or_module(name), "{name}");
        }
    }
}

/// Whether a test of this name, or a module with tests, is in one of the folders of subjects.
fn is_test_or_module(name: &str) -> bool {
    let (module, test) = name.rsplit_once("::").unwrap_or((name, ""));
    SUBJECTS.iter().map(|subject| root().join("tests").join(subject)).any(|subject| {
        let source = |module: &str| fs::read_to_string(subject.join(module.replace("::", "/") + ".rs"));
        source(module).is_ok_and(|source| source.contains(&format!("fn {test}(")))
            || source(name).is_ok_and(|source| source.contains("#[test]"))
            || subject.join(name.replace("::", "/")).is_dir()
    })
}
