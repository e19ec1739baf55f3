//! `loader pack`: makes an archive for `IMAGES_PATH` from what `docker save` writes.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

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
    let input: Box<dyn Read> = match &arguments.input {
        Some(path) => Box::new(File::open(path).map_err(|error| named(path, error))?),
        None if io::stdin().is_terminal() => {
            return Err("standard input is a terminal; pipe docker save into it".into());
        }
        None => Box::new(io::stdin().lock()),
    };
    let Some(path) = &arguments.output else {
        if io::stdout().is_terminal() {
            return Err("standard output is a terminal; name a file or redirect it".into());
        }
        return encrypt(input, io::stdout().lock(), &key).map_err(|error| error.to_string());
    };
    let mut partial = path.clone().into_os_string();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let written = File::create(&partial).and_then(|mut file| {
        encrypt(input, &mut file, &key)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    });
    written.map_err(|error| {
        let _ = fs::remove_file(&partial);
        named(path, error)
    })
}

fn encrypt(mut input: impl Read, output: impl Write, key: &AesKey) -> io::Result<()> {
    let mut writer = EncryptWriter::new(output, key)?;
    if io::copy(&mut input, &mut writer)? == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the input is empty; did docker save fail?"));
    }
    writer.finish()?.flush()
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
