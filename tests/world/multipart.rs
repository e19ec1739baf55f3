//! `multipart/form-data`: the forms that the loader receives, and a parser for those that it sends to the Resource API.

use std::io::{self, BufRead, BufReader, Read};

use super::raw::Head;

/// The bytes of a form before and after one file. The file's own bytes need not be in memory.
#[derive(Clone, Debug)]
pub struct Form {
    /// Value for `Content-Type`.
    pub content_type: String,
    /// The bytes before the file's.
    pub before: Vec<u8>,
    /// The bytes after the file's.
    pub after: Vec<u8>,
}

impl Form {
    /// A form with the file as part `data`, and text fields before and after it.
    pub fn new(filename: &str, before: &[(&str, &str)], after: &[(&str, &str)]) -> Self {
        // Too long to occur in a test's bytes by chance.
        let boundary = "----loader-test-3b7c1f9e5a2d48068b1c";
        let field = |(name, value): &(&str, &str)| {
            format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
        };
        let mut head: String = before.iter().map(field).collect();
        head.push_str(&format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"data\"; filename=\"{filename}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        ));
        let mut tail = "\r\n".to_owned();
        tail.extend(after.iter().map(field));
        tail.push_str(&format!("--{boundary}--\r\n"));
        Self {
            content_type: format!("multipart/form-data; boundary={boundary}"),
            before: head.into_bytes(),
            after: tail.into_bytes(),
        }
    }

    /// `Content-Length` of the form around a file of `size` bytes.
    pub fn length(&self, size: u64) -> u64 {
        self.before.len() as u64 + size + self.after.len() as u64
    }

    /// The form around a file.
    pub fn around<'a>(&'a self, file: impl Read + 'a) -> impl Read + 'a {
        self.before.chain(file).chain(&self.after[..])
    }
}

/// File name and bytes of the part `data` of a whole form; the error says what is wrong with the form.
pub fn file(content_type: &str, body: &[u8]) -> Result<(String, Vec<u8>), &'static str> {
    let boundary =
        content_type.strip_prefix("multipart/form-data;").and_then(|rest| rest.trim().strip_prefix("boundary="));
    let boundary = boundary.ok_or("not multipart/form-data with a boundary")?.trim_matches('"');
    // With a line break in front, the first delimiter looks like the others.
    let body = [b"\r\n", body].concat();
    let delimiter = format!("\r\n--{boundary}").into_bytes();
    let mut rest = &body[find(&body, &delimiter).ok_or("no boundary in the body")? + delimiter.len()..];
    while let Some(part) = rest.strip_prefix(b"\r\n") {
        let end = find(part, &delimiter).ok_or("a part without end")?;
        // A start line in front turns the part's headers into a head.
        let mut reader = BufReader::new(b"PART\r\n".chain(&part[..end]));
        let head = Head::read(&mut reader).ok().flatten().ok_or("a part without head")?;
        let disposition = head.get("Content-Disposition").unwrap_or_default();
        if parameter(disposition, "name").as_deref() == Some("data") {
            let name = parameter(disposition, "filename").filter(|name| !name.is_empty()).ok_or("no file name")?;
            return Ok((name, rest_of(reader).map_err(|_| "a part that cannot be read")?));
        }
        rest = &part[end + delimiter.len()..];
    }
    Err(if rest.starts_with(b"--") { "no part `data`" } else { "bad boundary" })
}

fn rest_of(mut reader: impl BufRead) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The value of a parameter; in a quoted string a backslash escapes the next character, and a semicolon ends nothing.
fn parameter(disposition: &str, name: &str) -> Option<String> {
    let (mut items, mut item, mut quoted) = (Vec::new(), String::new(), false);
    let mut characters = disposition.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => quoted = !quoted,
            '\\' if quoted => item.extend(characters.next()),
            ';' if !quoted => items.push(std::mem::take(&mut item)),
            other => item.push(other),
        }
    }
    items.push(item);
    items.iter().find_map(|item| {
        let (key, value) = item.trim_start().split_once('=')?;
        (key == name).then(|| value.to_owned())
    })
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
