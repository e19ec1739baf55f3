//! `loader upload`: a model from a file or a pipe to the running service, which encrypts and publishes it.

use std::fs::File;
use std::io::{self, IsTerminal, Seek};
use std::os::fd::AsFd;
use std::path::Path;

use super::command::{Command, Failure};
use super::help;
use super::progress::Progress;
use super::running_service::{RunningService, until_free};
use super::transfer::{Content, model};

pub(super) static COMMAND: Command = Command {
    name: "upload",
    arguments: "FOLDER/NAME [IN]",
    summary: "upload a model from a file or standard input",
    help: &[
        "\
Has the running service encrypt a model and publish it. It is sent as it is read; nothing holds all of it.

  IN                     a file; a hyphen or nothing stands for standard input

Shows its progress on standard error: with a bar on a terminal, with a line every 10 s elsewhere. An upload that breaks
off changes nothing for those who load the model.
",
        help::SERVICE,
    ],
    run,
};

fn run(words: &[&str]) -> Result<(), Failure> {
    if let Some(option) = words.iter().find(|word| word.starts_with('-') && **word != "-") {
        return Err(Failure::arguments(format!("unknown option {option}")));
    }
    let (name, input) = match *words {
        [name] | [name, "-"] => (name, None),
        [name, input] => (name, Some(Path::new(input))),
        _ => return Err(Failure::arguments("name one model and at most one file")),
    };
    let model = model(name)?;
    let mut content = open(input).map_err(Failure::runtime)?;
    content.wait_for_some().map_err(Failure::runtime)?;
    let service = RunningService::from_environment()?;
    let total = content.length.unwrap_or(0);
    let (mut progress, mut sent) = (Progress::on(io::stderr()), 0);
    // A service that is busy says so before it takes anything of the content.
    let result = until_free(|| {
        service.upload(&model, &mut content, |done| {
            sent = done;
            progress.show_long("uploading", done, total);
        })
    });
    match &result {
        Ok(()) => progress.finish_bar("uploaded", sent, total),
        Err(_) => progress.end(),
    }
    Ok(result?)
}

fn open(path: Option<&Path>) -> Result<Content, String> {
    let (mut file, name) = match path {
        Some(path) => {
            let name = format!("the input {}", path.display());
            (File::open(path).map_err(|error| format!("{name} cannot be read: {error}"))?, name)
        }
        None if io::stdin().is_terminal() => {
            return Err("standard input is a terminal; name a file or pipe the model into it".into());
        }
        None => {
            let unread = |error| format!("standard input cannot be read: {error}");
            (File::from(io::stdin().as_fd().try_clone_to_owned().map_err(unread)?), "standard input".into())
        }
    };
    let metadata = file.metadata().map_err(|error| format!("{name} cannot be read: {error}"))?;
    // Only the length of a regular file is what can be read of it; standard input may have been read in part.
    let length = metadata.is_file().then(|| metadata.len().saturating_sub(file.stream_position().unwrap_or(0)));
    // Files of /proc have the length 0.
    Ok(Content::new(file, name, length.filter(|length| *length > 0)))
}
