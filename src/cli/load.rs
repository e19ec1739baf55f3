//! `loader load`: a model's plaintext from the running service, into a file or to standard output.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::command::{Command, Failure};
use super::help;
use super::progress::Progress;
use super::running_service::{RunningService, until_free};
use super::transfer::{Begun, CopyError, Load, copy, model};
use crate::names::ModelName;

pub(super) static COMMAND: Command = Command {
    name: "load",
    arguments: "FOLDER/NAME [OUT] [--continue]",
    summary: "load a model into a file, or to standard output",
    help: &[
        "\
Loads a model from the running service and writes its plaintext.

  OUT                    a file; a hyphen or nothing stands for standard output
  --continue             fetch only what an earlier load into OUT did not, if the model is still the same

A file appears under its name when it is complete. Until then it is OUT.partial, with OUT.partial.tag beside it, which
stay if the transfer breaks off. Shows its progress on standard error: with a bar on a terminal, with a line every 10 s
elsewhere. Incomplete output to a pipe is told by the exit status only.
",
        help::SERVICE,
    ],
    run,
};

fn run(words: &[&str]) -> Result<(), Failure> {
    let (mut resume, mut names) = (false, Vec::new());
    for word in words {
        match *word {
            "--continue" => resume = true,
            "-" => names.push(*word),
            word if word.starts_with('-') => return Err(Failure::arguments(format!("unknown option {word}"))),
            word => names.push(word),
        }
    }
    let (name, output) = match *names {
        [name] | [name, "-"] => (name, None),
        [name, output] => (name, Some(Path::new(output))),
        _ => return Err(Failure::arguments("name one model and at most one file")),
    };
    let model = model(name)?;
    let Some(path) = output else {
        if resume {
            return Err(Failure::arguments("--continue needs a file, OUT"));
        }
        if io::stdout().is_terminal() {
            return Err(Failure::runtime("standard output is a terminal; name a file or redirect it"));
        }
        return to_stream(&model, &mut io::stdout().lock(), "standard output");
    };
    let name = format!("the output {}", path.display());
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Err(Failure::runtime(format!("{name} is a directory; name a file"))),
        // A device or a pipe is written to as it is: a rename would put a file in its place.
        Ok(metadata) if !metadata.is_file() => {
            let unwritten = |error| Failure::runtime(format!("{name} cannot be written: {error}"));
            to_stream(&model, &mut File::options().write(true).open(path).map_err(unwritten)?, &name)
        }
        _ => to_file(&model, path, &name, resume),
    }
}

fn to_stream(model: &ModelName, output: &mut impl Write, name: &str) -> Result<(), Failure> {
    let service = RunningService::from_environment()?;
    let load = until_free(|| service.load(model, None))?;
    Ok(receive(&service, load, output, name)?)
}

fn to_file(model: &ModelName, path: &Path, name: &str, resume: bool) -> Result<(), Failure> {
    let service = RunningService::from_environment()?;
    let partial = Partial::of(path);
    let begun = if resume { partial.begun(model) } else { None };
    let load = until_free(|| service.load(model, begun.as_ref()))?;
    let unwritten = |error| Failure::runtime(format!("{name} cannot be written: {error}"));
    let mut file = partial.open(model, &load).map_err(unwritten)?;
    receive(&service, load, &mut file, name).map_err(|error| match error {
        CopyError::Body(reason) => Failure::runtime(format!("{reason}; to resume, repeat the command with --continue")),
        CopyError::Output(reason) => {
            partial.remove();
            Failure::Runtime(reason)
        }
    })?;
    file.sync_all().and_then(|()| fs::rename(&partial.file, path)).map_err(unwritten)?;
    partial.remove();
    Ok(())
}

fn receive(service: &RunningService, load: Load, output: &mut impl Write, name: &str) -> Result<(), CopyError> {
    let Load { first, length, mut body, .. } = load;
    let (mut progress, mut done) = (Progress::on(io::stderr()), first);
    let result = copy(service, &mut body, output, name, |count| {
        done += count;
        progress.show_long("loading", done, length);
    });
    match &result {
        Ok(()) => progress.finish_bar("loaded", length, length),
        Err(_) => progress.end(),
    }
    result
}

/// A file that is not complete yet, and next to it a file with the model and the entity tag of its bytes.
struct Partial {
    file: PathBuf,
    tag: PathBuf,
}

impl Partial {
    fn of(path: &Path) -> Self {
        let with = |suffix: &str| {
            let mut path = path.as_os_str().to_owned();
            path.push(suffix);
            PathBuf::from(path)
        };
        Self { file: with(".partial"), tag: with(".partial.tag") }
    }

    /// How far an earlier load of this model came.
    fn begun(&self, model: &ModelName) -> Option<Begun> {
        let bytes = fs::metadata(&self.file).ok()?.len();
        let text = fs::read_to_string(&self.tag).ok()?;
        let tag = text.strip_suffix(&format!(" {model}\n"))?.to_owned();
        (bytes > 0 && !tag.contains(['\r', '\n'])).then_some(Begun { bytes, tag })
    }

    /// Opens the file, to continue after the bytes that `load` leaves out. It is locked as long as it is open.
    fn open(&self, model: &ModelName, load: &Load) -> io::Result<File> {
        let file = File::options().create(true).append(true).open(&self.file)?;
        let in_use = || io::Error::other(format!("another process is writing {}", self.file.display()));
        file.try_lock().map_err(|_| in_use())?;
        let metadata = file.metadata()?;
        // The other process may just have given it its final name, or have written more.
        let is_same = fs::metadata(&self.file).is_ok_and(|found| found.ino() == metadata.ino());
        if !is_same || (load.first > 0 && metadata.len() != load.first) {
            return Err(in_use());
        }
        if load.first == 0 {
            // In this order, the tag never belongs to other bytes.
            remove_if_there(&self.tag)?;
            file.set_len(0)?;
            fs::write(&self.tag, format!("{} {model}\n", load.tag))?;
        }
        Ok(file)
    }

    /// Errors are ignored: the command has its result.
    fn remove(&self) {
        let _ = fs::remove_file(&self.file);
        let _ = fs::remove_file(&self.tag);
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
