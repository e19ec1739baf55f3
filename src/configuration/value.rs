//! The value of a variable as text, and the parsers that check it. A refusal continues a sentence that begins with the variable's name.

use std::fs::File;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::LevelFilter;
use zeroize::Zeroizing;

use super::bind_address::BindAddress;
use crate::names::ModelName;
use crate::secret::Secret;

/// The longest secret that is read from a file.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// What a variable is set to, or its default.
pub(super) struct Value {
    pub(super) text: Zeroizing<String>,
    pub(super) default: &'static str,
    pub(super) is_set: bool,
}

pub(super) fn api_url(value: &Value) -> Result<String, String> {
    let refuse = |reason: &str| format!("{reason}, for example https://api.azaion.com");
    let url = url::Url::parse(&value.text).map_err(|_| refuse("is not a URL"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(refuse("is not an http or https URL"));
    }
    // A password in a URL would reach logs and errors.
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(refuse("may hold a host and a path only"));
    }
    Ok(value.text.trim_end_matches('/').to_owned())
}

pub(super) fn image_tag(value: &Value) -> Result<String, String> {
    let tag = &value.text;
    let is_tag = (1..=128).contains(&tag.len())
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        && !tag.starts_with(['.', '-']);
    if is_tag { Ok(tag.to_string()) } else { Err("is not an image tag such as 1.4.0 or latest".into()) }
}

pub(super) fn bind_address(value: &Value) -> Result<BindAddress, String> {
    BindAddress::parse(&value.text)
}

pub(super) fn loader_url(value: &Value) -> Result<Option<BindAddress>, String> {
    if value.text.is_empty() {
        return Ok(None);
    }
    if value.text.starts_with("unix:") {
        return BindAddress::parse(&value.text).map(Some);
    }
    let authority = value.text.strip_prefix("http://").map(|rest| rest.strip_suffix('/').unwrap_or(rest));
    let address = authority.filter(|text| !text.contains('/')).and_then(|text| BindAddress::parse(text).ok());
    address
        .map(Some)
        .ok_or_else(|| "is neither http://host:port with a host that has an address, nor unix:/path".into())
}

pub(super) fn log_level(value: &Value) -> Result<LevelFilter, String> {
    match value.text.to_ascii_lowercase().as_str() {
        "warning" => Ok(LevelFilter::Warn),
        level => level.parse().map_err(|_| "is not one of off, error, warn, info, debug, trace".into()),
    }
}

pub(super) fn text_if_any(value: &Value) -> Result<Option<String>, String> {
    Ok(Some(value.text.to_string()).filter(|text| !text.is_empty()))
}

pub(super) fn path(value: &Value) -> Result<PathBuf, String> {
    path_if_any(value)?.ok_or_else(|| "is empty; name a path or leave it unset".into())
}

pub(super) fn path_if_any(value: &Value) -> Result<Option<PathBuf>, String> {
    Ok(text_if_any(value)?.map(PathBuf::from))
}

/// The path of a file that can be read now, so that a slip stops the start instead of the first request.
pub(super) fn file_if_any(value: &Value) -> Result<Option<PathBuf>, String> {
    let Some(path) = path_if_any(value)? else { return Ok(None) };
    match File::open(&path).and_then(|file| file.metadata()) {
        Ok(metadata) if metadata.is_dir() => Err(format!("names {}, which is a directory", path.display())),
        Ok(_) => Ok(Some(path)),
        Err(error) => Err(format!("names {}, which cannot be read: {error}", path.display())),
    }
}

/// The secret in a file, without the line feed that editors and `echo` leave at the end.
pub(super) fn read_secret(path: &Path) -> Result<Zeroizing<String>, String> {
    let refuse = |reason: String| format!("names {}, which {reason}", path.display());
    // A buffer that grows would leave copies of the secret in freed memory.
    let mut text = Zeroizing::new(String::with_capacity(MAX_SECRET_BYTES as usize + 1));
    File::open(path)
        .and_then(|file| file.take(MAX_SECRET_BYTES + 1).read_to_string(&mut text))
        .map_err(|error| refuse(format!("cannot be read: {error}")))?;
    if text.len() as u64 > MAX_SECRET_BYTES {
        return Err(refuse(format!("has more than {MAX_SECRET_BYTES} bytes")));
    }
    if text.ends_with('\n') {
        text.pop();
    }
    if text.is_empty() { Err(refuse("is empty; write the value into it".into())) } else { Ok(text) }
}

pub(super) fn salt(value: &Value) -> Result<Secret, String> {
    // A variable that a script forgot to fill in would protect nothing.
    if value.text.is_empty() {
        return Err("is empty; set the salt of your installation or leave it unset".into());
    }
    Ok(Secret::new(value.text.as_str()))
}

pub(super) fn token(value: &Value) -> Result<Option<Secret>, String> {
    if !value.is_set {
        return Ok(None);
    }
    if value.text.is_empty() {
        return Err("is empty; set the token of your installation or leave it unset".into());
    }
    if !value.text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("may hold visible ASCII characters only, since it travels in a header".into());
    }
    Ok(Some(Secret::new(value.text.as_str())))
}

pub(super) fn host_names(value: &Value) -> Result<Vec<String>, String> {
    let names = value.text.split(',').map(str::trim).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
            let is_name = !name.is_empty()
                && !name.starts_with('.')
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
            let refusal =
                "holds more than host names, such as box17.example.com,loader; ports and wildcards are not allowed";
            if is_name { Ok(name) } else { Err(refusal.into()) }
        })
        .collect()
}

pub(super) fn models(value: &Value) -> Result<Vec<ModelName>, String> {
    let models = value.text.split(',').map(str::trim).filter(|model| !model.is_empty());
    models
        .map(|model| {
            let (folder, file) = model.split_once('/').ok_or("holds more than folder/name, such as models/m.bin")?;
            ModelName::new(folder, file).map_err(|error| format!("holds {model:?}: {error}"))
        })
        .collect()
}

/// A flag that is set to nothing has its default: compose files write "unset" so.
pub(super) fn flag(value: &Value) -> Result<bool, String> {
    let text = if value.text.is_empty() { value.default } else { &value.text };
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err("is neither true nor false".into()),
    }
}

/// A parser of whole numbers in a range.
pub(super) fn number<T: TryFrom<u64>>(range: RangeInclusive<u64>) -> impl Fn(&Value) -> Result<T, String> {
    move |value| {
        let number = digits(&value.text).filter(|number| range.contains(number));
        let refusal = || format!("is not a whole number from {} to {}", range.start(), range.end());
        number.and_then(|number| T::try_from(number).ok()).ok_or_else(refusal)
    }
}

/// A parser of times, in units of this many seconds.
pub(super) fn time(unit: u64, range: RangeInclusive<u64>) -> impl Fn(&Value) -> Result<Duration, String> {
    let number = number::<u64>(range);
    move |value| number(value).map(|count| Duration::from_secs(count * unit))
}

/// A parser of numbers of bytes: digits, and `K`, `M` or `G` for powers of 1,024.
pub(super) fn bytes(smallest: u64) -> impl Fn(&Value) -> Result<u64, String> {
    move |value| {
        let units = [("K", 1 << 10), ("k", 1 << 10), ("M", 1 << 20), ("m", 1 << 20), ("G", 1 << 30), ("g", 1 << 30)];
        let (number, unit) = units
            .iter()
            .find_map(|(letter, unit)| Some((value.text.strip_suffix(letter)?, *unit)))
            .unwrap_or((&value.text, 1));
        match digits(number).and_then(|number| number.checked_mul(unit)) {
            Some(bytes) if bytes >= smallest => Ok(bytes),
            Some(bytes) => Err(format!("is {bytes}, which is too small; give a number of bytes such as 512M or 16G")),
            None => Err("is not a number of bytes such as 17179869184, 512M or 16G".into()),
        }
    }
}

/// Digits only: `parse` alone would take a sign as well.
fn digits(text: &str) -> Option<u64> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}
