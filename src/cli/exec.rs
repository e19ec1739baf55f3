//! `loader exec`: becomes a program that opens its models by path, without plaintext on any disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::command::{Command, Failure};
use super::help;
use super::memory::{reserve, seal};
use super::progress::Progress;
use super::running_service::{RunningService, until_free};
use super::transfer::{copy, model};
use crate::configuration::hide_secrets_from;
use crate::names::ModelName;
use crate::threads::{self, Mailbox};

/// The exit status for failures of this command, as of `env` and `docker run`.
const FAILED: u8 = 125;
const CANNOT_BE_EXECUTED: u8 = 126;
const NOT_FOUND: u8 = 127;

/// How often the progress is checked.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(super) static COMMAND: Command = Command {
    name: "exec",
    arguments: "--model FOLDER/NAME=VAR ... -- COMMAND ...",
    summary: "run a program that opens models by path, without plaintext on a disk",
    help: &[
        "\
Loads models into memory and becomes COMMAND, which opens each of them at the path in its environment variable VAR. Signals
and the exit status are the program's own. For example:

  loader exec --model models/net.onnx=MODEL -- sh -c 'python3 infer.py \"$MODEL\"'

  --model FOLDER/NAME=VAR
                         a model, and the variable for its path; once for each model

The path is /proc/self/fd/N, a sealed memfd: it can be opened and mapped as often as needed and not be changed. It holds
for COMMAND and for the programs that it starts with inherited descriptors (in Python: close_fds=False). The model is in
memory once, until the last of them ends. If one model cannot be loaded, or does not fit into memory, COMMAND is not run.
Memory may be swapped: a box whose swap is not encrypted must not have any.

COMMAND does not get the secrets of the loader in its environment.
",
        help::SERVICE,
        "\
Exit status: that of COMMAND; 125 if a model could not be loaded or the usage was wrong, 126 if COMMAND cannot be
executed, 127 if it was not found.
",
    ],
    run,
};

fn run(words: &[&str]) -> Result<(), Failure> {
    exec(words).map_err(|failure| match failure {
        Failure::Arguments(reason) => Failure::Status(FAILED, format!("{reason}; {}", COMMAND.usage())),
        Failure::Setup(reason) | Failure::Runtime(reason) => Failure::Status(FAILED, reason),
        status @ Failure::Status(..) => status,
    })
}

fn exec(words: &[&str]) -> Result<(), Failure> {
    let models = parse(words).map_err(Failure::arguments)?;
    // As they came: the program's arguments need not be UTF-8.
    let mut command = std::env::args_os().skip_while(|word| word != "--").skip(1);
    let Some(name) = command.next() else { return Err(Failure::arguments("COMMAND is missing after --")) };
    let mut program = process::Command::new(&name);
    program.args(command);
    hide_secrets_from(&mut program);
    let files = load_all(models)?;
    for (variable, file) in &files {
        program.env(variable, format!("/proc/self/fd/{}", file.as_raw_fd()));
    }
    let error = program.exec();
    let status = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_BE_EXECUTED };
    Err(Failure::Status(status, format!("{} cannot be executed: {error}", name.display())))
}

/// The models by their variables.
fn parse(words: &[&str]) -> Result<BTreeMap<String, ModelName>, String> {
    let mut models = BTreeMap::new();
    let mut words = words.iter();
    loop {
        let word = *words.next().ok_or("-- and COMMAND are missing")?;
        let value = match word.strip_prefix("--model") {
            _ if word == "--" => break,
            Some("") => words.next().ok_or("--model needs FOLDER/NAME=VAR")?,
            Some(value) if value.starts_with('=') => &value[1..],
            _ => return Err(format!("unknown argument {word}; COMMAND comes after --")),
        };
        let (name, variable) =
            value.rsplit_once('=').ok_or_else(|| format!("{value} is not of the form FOLDER/NAME=VAR"))?;
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if !variable.bytes().all(is_name) || variable.is_empty() || variable.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(format!("{variable:?} cannot be the name of a variable"));
        }
        let model = model(name).map_err(|failure| failure.message())?;
        if models.insert(variable.to_owned(), model).is_some() {
            return Err(format!("two models have the variable {variable}"));
        }
    }
    if models.is_empty() { Err("--model is missing".into()) } else { Ok(models) }
}

/// How far all models are, in bytes.
#[derive(Default)]
struct Counters {
    done: AtomicU64,
    total: AtomicU64,
}

/// Loads all models at once; the first failure ends it.
fn load_all(models: BTreeMap<String, ModelName>) -> Result<Vec<(String, File)>, Failure> {
    let service = Arc::new(RunningService::from_environment()?);
    let counters = Arc::new(Counters::default());
    let loaded = Arc::new(Mailbox::default());
    let (count, mut threads) = (models.len(), Vec::new());
    for (variable, model) in models {
        let (service, counters, loaded) = (Arc::clone(&service), Arc::clone(&counters), Arc::clone(&loaded));
        let waiting = thread::current();
        let load = move || {
            loaded.put(load(&service, &model, &counters).map(|file| (variable, file)));
            waiting.unpark();
        };
        let thread = threads::spawn("load", load);
        threads.push(thread.map_err(|error| Failure::runtime(format!("no thread can be started: {error}")))?);
    }
    let (mut progress, mut files) = (Progress::on(io::stderr()), Vec::new());
    loop {
        // Before the mailbox is emptied, so that nothing is put into it later.
        let have_ended = threads.iter().all(JoinHandle::is_finished);
        for result in loaded.take_all() {
            files.push(result.inspect_err(|_| progress.end())?);
        }
        let total = counters.total.load(Ordering::Relaxed);
        if files.len() == count {
            progress.finish_bar("loaded", total, total);
            return Ok(files);
        }
        if have_ended {
            return Err(Failure::runtime("a thread that loads has failed"));
        }
        progress.show_long("loading", counters.done.load(Ordering::Relaxed), total);
        thread::park_timeout(LOOK_EVERY);
    }
}

fn load(service: &RunningService, model: &ModelName, counters: &Counters) -> Result<File, Failure> {
    let of_model = |reason: &dyn std::fmt::Display| Failure::runtime(format!("{model} is not loaded: {reason}"));
    let mut load = until_free(|| service.load(model, None)).map_err(|error| of_model(&error))?;
    counters.total.fetch_add(load.length, Ordering::Relaxed);
    let mut file = reserve(&model.to_string(), load.length).map_err(|reason| of_model(&reason))?;
    let counted = |count| {
        counters.done.fetch_add(count, Ordering::Relaxed);
    };
    copy(service, &mut load.body, &mut file, "its memory", counted)
        .map_err(|error| of_model(&Failure::from(error).message()))?;
    // For a program that reads the descriptor itself.
    file.rewind().and_then(|()| seal(&file)).map_err(|error| of_model(&error))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn each_model_has_a_variable_of_its_own() {
        let models = parse(&["--model", "models/a=b.bin=A", "--model=models/c=_2", "--", "--model"]).unwrap();
        let text: Vec<String> = models.iter().map(|(variable, model)| format!("{variable} {model}")).collect();
        assert_eq!(text, ["A models/a=b.bin", "_2 models/c"]);
        for (words, reason) in [
            (&["--", "true"][..], "--model is missing"),
            (&["--model", "models/a=A"], "-- and COMMAND are missing"),
            (&["--model"], "--model needs"),
            (&["--model", "models/a", "--"], "not of the form FOLDER/NAME=VAR"),
            (&["--model", "models/a=", "--"], "cannot be the name"),
            (&["--model", "models/a=2A", "--"], "cannot be the name"),
            (&["--model", "a=A", "--"], "a is not of the form FOLDER/NAME"),
            (&["--model", "no folder/a=A", "--"], "folder must be"),
            (&["--model", "models/a=A", "--model", "models/b=A", "--"], "two models have the variable A"),
            (&["--model", "models/a=A", "true"], "unknown argument true; COMMAND comes after --"),
        ] {
            let error = parse(words).unwrap_err();
            assert!(error.contains(reason), "{words:?}: {error}");
        }
    }
}
