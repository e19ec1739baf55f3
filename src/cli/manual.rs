//! The manual page `.dist/loader.1`, which a test makes from the tables of commands and of variables.

use super::COMMANDS;
use super::help::{INTRODUCTION, of_secrets};
use crate::configuration::VARIABLES;

/// Text for roff: no line is taken for a request, and hyphens are the characters that people type.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    let lines = text.lines().map(|line| match line.starts_with(['.', '\'']) {
        true => format!("\\&{line}\n"),
        false => format!("{line}\n"),
    });
    lines.collect()
}

/// Paragraphs as they are in the help: their line breaks and indented tables stay.
fn as_it_is(text: &str) -> String {
    format!(".nf\n{}.fi\n", escaped(text))
}

fn generate() -> String {
    let mut page = format!(
        ".\\\" Made by UPDATE_DOCS=1 cargo test manual.\n.TH LOADER 1 \"\" \"loader {}\"\n.SH NAME\n{}\
         .SH SYNOPSIS\n.B loader\n.br\n.B loader\n.I COMMAND\n.RI [ ARGUMENTS ]\n.SH DESCRIPTION\nWithout a command, loader \
         serves its HTTP API, configured by the variables below. The commands are for technicians and scripts.\n.SH COMMANDS\n",
        env!("CARGO_PKG_VERSION"),
        escaped(INTRODUCTION),
    );
    for command in COMMANDS {
        page += &format!(".SS {}", escaped(&command.usage()));
        page += &as_it_is(&format!("{}\n", super::help::body(command)));
    }
    page += ".SH ENVIRONMENT\n";
    for variable in VARIABLES {
        page += &format!(".TP\n.B {}\n{}", variable.name, escaped(variable.help));
        if !variable.default.is_empty() {
            page += &format!("(default: {})\n", escaped(variable.default).trim_end());
        }
    }
    page += &format!(".PP\n{}", escaped(&of_secrets()));
    page += ".SH EXIT STATUS\n0 done or stopped by a signal, 1 failed, 2 wrong usage or configuration;\nof exec: see there.\n";
    page
}

/// `UPDATE_DOCS=1 cargo test manual` makes the page.
#[test]
fn the_manual_page_is_made_from_the_tables() {
    let (made, path) = (generate(), concat!(env!("CARGO_MANIFEST_DIR"), "/.dist/loader.1"));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        return std::fs::write(path, &made).unwrap();
    }
    let page = std::fs::read_to_string(path).unwrap_or_default();
    assert!(page == made, "loader.1 is not up to date; run UPDATE_DOCS=1 cargo test manual");
}
