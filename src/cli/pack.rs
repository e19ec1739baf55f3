//! `loader pack`: makes an archive for `IMAGES_PATH` from what `docker save` writes.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::progress::Progress;
use crate::constants::CHUNK;
use crate::security::{AesKey, EncryptWriter};

/// The arguments of `loader pack`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Arguments {
    key_file: Option<PathBuf>,
    input: Option<PathBuf>,
    output: Option<PathBuf>,
}

impl Arguments {
    /// Reads the words behind `pack`. A single hyphen stands for standard input or output.
    pub(super) fn parse(words: &[&str]) -> Result<Self, String> {
        let mut arguments = Self::default();
        let mut files = Vec::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.strip_prefix("--key-file") {
                Some("") => arguments.key_file = Some(words.next().ok_or("--key-file needs a file")?.into()),
                Some(value) if value.starts_with('=') => arguments.key_file = Some(value[1..].into()),
                _ if word.starts_with('-') && *word != "-" => return Err(format!("unknown option {word}")),
                _ => files.push(*word),
            }
        }
        if files.len() > 2 {
            return Err("at most two files, the input and the output".into());
        }
        let file = |index: usize| files.get(index).filter(|name| **name != "-").map(PathBuf::from);
        (arguments.input, arguments.output) = (file(0), file(1));
        if arguments.key_file.is_none() { Err("--key-file is missing".into()) } else { Ok(arguments) }
    }
}

/// Encrypts the input to the output. An output file appears under its name when it is complete.
pub(super) fn pack(arguments: &Arguments) -> Result<(), String> {
    let key_file = arguments.key_file.as_deref().unwrap_or(Path::new(""));
    let named = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
    let fragment = Zeroizing::new(fs::read(key_file).map_err(|error| named(key_file, error))?);
    if fragment.is_empty() {
        return Err(format!("{} is empty; it must hold the key fragment", key_file.display()));
    }
    let key = AesKey::from_secret(&fragment);
    let mut total = 0;
    let input: Box<dyn Read> = match &arguments.input {
        Some(path) => {
            let file = File::open(path).map_err(|error| named(path, error))?;
            total = file.metadata().map_or(0, |metadata| metadata.len());
            Box::new(file)
        }
        None if io::stdin().is_terminal() => {
            return Err("standard input is a terminal; pipe docker save into it".into());
        }
        None => Box::new(io::stdin().lock()),
    };
    let Some(path) = &arguments.output else {
        if io::stdout().is_terminal() {
            return Err("standard output is a terminal; name a file or redirect it".into());
        }
        return encrypt(input, total, io::stdout().lock(), &key).map_err(|error| error.to_string());
    };
    let mut partial = path.clone().into_os_string();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let written = File::create(&partial).and_then(|mut file| {
        encrypt(input, total, &mut file, &key)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    });
    written.map_err(|error| {
        let _ = fs::remove_file(&partial);
        named(path, error)
    })
}

/// Encrypts `total` bytes (0 if that is not known), and shows how far it is on standard error.
fn encrypt(input: impl Read, total: u64, output: impl Write, key: &AesKey) -> io::Result<()> {
    let mut progress = Progress::on(io::stderr());
    let result = encrypt_all(input, output, key, |done| progress.show_long("encrypting", done, total));
    match &result {
        Ok(done) => progress.finish_bar("encrypted", *done, total),
        Err(_) => progress.end(),
    }
    result.map(drop)
}

fn encrypt_all(mut input: impl Read, output: impl Write, key: &AesKey, mut show: impl FnMut(u64)) -> io::Result<u64> {
    let mut writer = EncryptWriter::new(output, key)?;
    let (mut buffer, mut done) = (Zeroizing::new(vec![0; CHUNK]), 0);
    loop {
        match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                writer.write_all(&buffer[..count])?;
                done += count as u64;
                show(done);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if done == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the input is empty; did docker save fail?"));
    }
    writer.finish()?.flush()?;
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
            Ok(Arguments { key_file: Some("k".into()), input: input.map(Into::into), output: output.map(Into::into) })
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
