//! `loader pack`: makes an archive for `IMAGES_PATH` from what `docker save` writes.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::command::{Command, Failure};
use super::progress::Progress;
use crate::constants::CHUNK;
use crate::security::{AesKey, EncryptWriter};

pub(super) static COMMAND: Command = Command {
    name: "pack",
    arguments: "--key-file FILE [IN] [OUT]",
    summary: "encrypt a docker save tar into an archive for IMAGES_PATH",
    help: &["\
Encrypts a docker save tar into an archive for IMAGES_PATH.

  --key-file FILE        holds the key fragment
  IN, OUT                files; a hyphen or nothing stands for standard input and output

Shows its progress on standard error: with a bar on a terminal, with a line every 10 s elsewhere.
"],
    run,
};

fn run(words: &[&str]) -> Result<(), Failure> {
    pack(&Arguments::parse(words).map_err(Failure::arguments)?).map_err(Failure::runtime)
}

#[derive(Debug, PartialEq, Eq)]
struct Arguments {
    key_file: PathBuf,
    input: Option<PathBuf>,
    output: Option<PathBuf>,
}

impl Arguments {
    /// A single hyphen stands for standard input or output.
    fn parse(words: &[&str]) -> Result<Self, String> {
        let (mut key_file, mut files) = (None, Vec::new());
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.strip_prefix("--key-file") {
                Some("") => key_file = Some(*words.next().ok_or("--key-file needs a file")?),
                Some(value) if value.starts_with('=') => key_file = Some(&value[1..]),
                _ if word.starts_with('-') && *word != "-" => return Err(format!("unknown option {word}")),
                _ => files.push(*word),
            }
        }
        if files.len() > 2 {
            return Err("at most two files, the input and the output".into());
        }
        let file = |index: usize| files.get(index).filter(|name| **name != "-").map(PathBuf::from);
        let key_file = key_file.ok_or("--key-file is missing")?.into();
        Ok(Self { key_file, input: file(0), output: file(1) })
    }
}

/// The tar that is encrypted.
struct Input {
    read: Box<dyn Read>,
    /// What errors call it.
    name: String,
    /// Its length in bytes; 0 if that is not known.
    total: u64,
}

/// Encrypts the input to the output. An output file appears under its name when it is complete.
fn pack(arguments: &Arguments) -> Result<(), String> {
    let key_file = &arguments.key_file;
    let unread = |error| format!("the key file {} cannot be read: {error}", key_file.display());
    let fragment = Zeroizing::new(fs::read(key_file).map_err(unread)?);
    if fragment.is_empty() {
        return Err(format!("the key file {} is empty; it must hold the key fragment", key_file.display()));
    }
    let key = AesKey::from_secret(&fragment);
    let input = Input::open(arguments.input.as_deref())?;
    let Some(path) = &arguments.output else {
        if io::stdout().is_terminal() {
            return Err("standard output is a terminal; name a file or redirect it".into());
        }
        return encrypt(input, io::stdout().lock(), "standard output", &key);
    };
    let name = format!("the output {}", path.display());
    let unwritten = |error| format!("{name} cannot be written: {error}");
    if fs::canonicalize(path).is_ok_and(|path| fs::canonicalize(key_file).is_ok_and(|key_file| path == key_file)) {
        return Err(format!("{name} is the key file; name another"));
    }
    // A device or a pipe is written to as it is: a rename would put a file in its place.
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
        let output = File::options().write(true).open(path).map_err(unwritten)?;
        return encrypt(input, output, &name, &key);
    }
    let mut partial = path.clone().into_os_string();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let mut file = File::create(&partial).map_err(unwritten)?;
    let written = encrypt(input, &mut file, &name, &key)
        .and_then(|()| file.sync_all().and_then(|()| fs::rename(&partial, path)).map_err(unwritten));
    written.inspect_err(|_| {
        let _ = fs::remove_file(&partial);
    })
}

impl Input {
    fn open(path: Option<&Path>) -> Result<Self, String> {
        let Some(path) = path else {
            if io::stdin().is_terminal() {
                return Err("standard input is a terminal; pipe docker save into it".into());
            }
            return Ok(Self { read: Box::new(io::stdin().lock()), name: "standard input".into(), total: 0 });
        };
        let name = format!("the input {}", path.display());
        let file = File::open(path).map_err(|error| format!("{name} cannot be read: {error}"))?;
        let total = file.metadata().map_or(0, |metadata| metadata.len());
        Ok(Self { read: Box::new(file), name, total })
    }

    /// Reads at most a buffer full; 0 is the end.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, String> {
        loop {
            match self.read.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read.map_err(|error| format!("{} cannot be read: {error}", self.name)),
            }
        }
    }
}

/// Encrypts all of the input and shows the progress on standard error. Errors call the output `to`.
fn encrypt(input: Input, output: impl Write, to: &str, key: &AesKey) -> Result<(), String> {
    let (mut progress, total) = (Progress::on(io::stderr()), input.total);
    let result = encrypt_all(input, output, to, key, |done| progress.show_long("encrypting", done, total));
    match &result {
        Ok(done) => progress.finish_bar("encrypted", *done, total),
        Err(_) => progress.end(),
    }
    result.map(drop)
}

fn encrypt_all(
    mut input: Input,
    output: impl Write,
    to: &str,
    key: &AesKey,
    mut show: impl FnMut(u64),
) -> Result<u64, String> {
    let unwritten = |error| format!("{to} cannot be written: {error}");
    let (mut buffer, mut done) = (Zeroizing::new(vec![0; CHUNK]), 0);
    let mut count = input.fill(&mut buffer)?;
    if count == 0 {
        return Err(format!("{} is empty; did docker save fail?", input.name));
    }
    // Only now: it writes at once, and for an empty input nothing must be written.
    let mut writer = EncryptWriter::new(output, key).map_err(unwritten)?;
    while count > 0 {
        writer.write_all(&buffer[..count]).map_err(unwritten)?;
        done += count as u64;
        show(done);
        count = input.fill(&mut buffer)?;
    }
    writer.finish().and_then(|mut output| output.flush()).map_err(unwritten)?;
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Arguments, String> {
        Arguments::parse(words)
    }

    #[test]
    fn files_default_to_the_standard_streams() {
        let expected = |input: Option<&str>, output: Option<&str>| {
            Ok(Arguments { key_file: "k".into(), input: input.map(Into::into), output: output.map(Into::into) })
        };
        assert_eq!(parse(&["--key-file", "k"]), expected(None, None));
        assert_eq!(parse(&["--key-file=k", "in"]), expected(Some("in"), None));
        assert_eq!(parse(&["in", "out", "--key-file", "k"]), expected(Some("in"), Some("out")));
        assert_eq!(parse(&["--key-file", "k", "-", "out"]), expected(None, Some("out")));
        for bad in [&["in"][..], &["--key-file"], &["--key-file", "k", "a", "b", "c"], &["--fast", "--key-file", "k"]] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
