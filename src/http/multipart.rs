//! Reads `multipart/form-data` (RFC 7578) as a stream, with one buffer for parts of any size.

use std::io::{self, Read};

use memchr::memmem::Finder;

use crate::constants::CHUNK;

/// The longest boundary that RFC 2046 allows.
const MAX_BOUNDARY: usize = 70;

/// The size limit of a part's headers.
const MAX_HEAD: usize = 8 * 1024;

/// The size limit of what comes before the first boundary.
const MAX_PREAMBLE: u64 = 64 * 1024;

/// The error for a body that breaks the rules of its content type.
fn malformed(what: &str) -> io::Error {
    io::Error::other(format!("the form is malformed: {what}"))
}

/// The boundary in a `Content-Type: multipart/form-data` value, quoted or not.
pub fn boundary(content_type: &str) -> Option<String> {
    let (essence, parameters) = content_type.split_once(';')?;
    if !essence.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let boundary = parameter(parameters, "boundary")?;
    let valid = (1..=MAX_BOUNDARY).contains(&boundary.len())
        && boundary.bytes().all(|byte| matches!(byte, b' '..=b'~'))
        && !boundary.ends_with(' ');
    valid.then_some(boundary)
}

/// The relevant headers of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartHead {
    pub name: String,
    pub file_name: Option<String>,
}

impl PartHead {
    fn parse(head: &[u8]) -> io::Result<Self> {
        let head = std::str::from_utf8(head).map_err(|_| malformed("a part's headers are not UTF-8"))?;
        let mut disposition = None;
        for line in head.split("\r\n").filter(|line| !line.is_empty()) {
            let (name, value) =
                line.split_once(':').ok_or_else(|| malformed("a part has a header line without a colon"))?;
            if name.eq_ignore_ascii_case("content-disposition") && disposition.replace(value).is_some() {
                return Err(malformed("a part has two Content-Disposition headers"));
            }
        }
        let disposition = disposition.ok_or_else(|| malformed("a part has no Content-Disposition header"))?;
        let (kind, parameters) = disposition.split_once(';').unwrap_or((disposition, ""));
        if !kind.trim().eq_ignore_ascii_case("form-data") {
            return Err(malformed("a part is not form-data"));
        }
        let name = parameter(parameters, "name").ok_or_else(|| malformed("a part has no name"))?;
        Ok(Self { name, file_name: parameter(parameters, "filename") })
    }
}

/// The value of a parameter, a token or a quoted string, in `; a=b; c="d"`.
fn parameter(mut parameters: &str, wanted: &str) -> Option<String> {
    loop {
        parameters = parameters.trim_start_matches([';', ' ', '\t']);
        let (name, rest) = parameters.split_once('=')?;
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let end = rest.find(';').unwrap_or(rest.len());
                (rest[..end].trim().to_owned(), &rest[end..])
            }
        };
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        parameters = rest;
    }
}

/// The text up to the closing quote, and what follows it. Only quotes and backslashes are unescaped, since some clients send
/// Windows paths as they are.
fn unquote(quoted: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = quoted.char_indices().peekable();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[index + 1..])),
            '\\' => match characters.next_if(|(_, next)| matches!(next, '"' | '\\')) {
                Some((_, escaped)) => value.push(escaped),
                None => value.push('\\'),
            },
            other => value.push(other),
        }
    }
    None
}

/// Reads a form part by part: [`next_part`](Self::next_part) goes to a part, reading returns its content.
pub struct Multipart<R> {
    source: R,
    /// `CRLF -- boundary`, which ends a part.
    delimiter: Finder<'static>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Preamble,
    InPart,
    /// Just after a delimiter.
    BetweenParts,
    Finished,
}

impl<R: Read> Multipart<R> {
    /// Reads the form in `source` whose parts are separated by `boundary`.
    pub fn new(source: R, boundary: &str) -> Self {
        let mut buffer = vec![0; CHUNK].into_boxed_slice();
        // The first delimiter may be at the very beginning, without the line break of the others.
        buffer[..2].copy_from_slice(b"\r\n");
        Self {
            source,
            delimiter: Finder::new(&format!("\r\n--{boundary}")).into_owned(),
            buffer,
            start: 0,
            end: 2,
            state: State::Preamble,
        }
    }

    /// Skips the rest of the current part and goes to the next one. None at the end of the form.
    pub fn next_part(&mut self) -> io::Result<Option<PartHead>> {
        match self.state {
            State::Finished => return Ok(None),
            State::Preamble => {
                self.state = State::InPart;
                let skipped = io::copy(&mut self.by_ref().take(MAX_PREAMBLE), &mut io::sink())?;
                if skipped == MAX_PREAMBLE {
                    return Err(malformed("it does not begin with the boundary of its Content-Type"));
                }
            }
            State::InPart | State::BetweenParts => {
                io::copy(self, &mut io::sink())?;
            }
        }
        // Two hyphens end the form, whatever follows them.
        if self.at_least(2)? && self.buffer[self.start..].starts_with(b"--") {
            self.state = State::Finished;
            return Ok(None);
        }
        while self.at_least(1)? && matches!(self.buffer[self.start], b' ' | b'\t') {
            self.start += 1;
        }
        if !self.at_least(2)? || !self.buffer[self.start..].starts_with(b"\r\n") {
            return Err(malformed("a boundary is not followed by a line break"));
        }
        let head = self.read_head()?;
        self.state = State::InPart;
        PartHead::parse(&head).map(Some)
    }

    /// The header lines up to the empty line. They begin with the line break after the boundary, so that a part without
    /// headers has an empty line as well.
    fn read_head(&mut self) -> io::Result<Vec<u8>> {
        let mut wanted = 4;
        loop {
            if !self.at_least(wanted)? {
                return Err(malformed("it ends within a part's headers"));
            }
            if let Some(length) = memchr::memmem::find(&self.buffer[self.start..self.end], b"\r\n\r\n") {
                let head = self.buffer[self.start..self.start + length].to_vec();
                self.start += length + 4;
                return Ok(head);
            }
            wanted = self.end - self.start + 1;
            if wanted > MAX_HEAD {
                return Err(malformed("a part's headers are too long"));
            }
        }
    }

    /// Reads until this many bytes are in the buffer. False if the body ends first.
    fn at_least(&mut self, count: usize) -> io::Result<bool> {
        while self.end - self.start < count {
            if !self.fill()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads once, after what is in the buffer. False at the end of the body.
    fn fill(&mut self) -> io::Result<bool> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let count = self.source.read(&mut self.buffer[self.end..])?;
        self.end += count;
        Ok(count > 0)
    }
}

/// Reads the content of the current part.
impl<R: Read> Read for Multipart<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.state != State::InPart || out.is_empty() {
            return Ok(0);
        }
        let delimiter = self.delimiter.needle().len();
        loop {
            let found = self.delimiter.find(&self.buffer[self.start..self.end]);
            // If there is no delimiter, one may begin at the end of the buffer.
            let content = found.unwrap_or((self.end - self.start).saturating_sub(delimiter - 1));
            if content > 0 {
                let count = content.min(out.len());
                out[..count].copy_from_slice(&self.buffer[self.start..self.start + count]);
                self.start += count;
                return Ok(count);
            }
            if found.is_some() {
                self.start += delimiter;
                self.state = State::BetweenParts;
                return Ok(0);
            }
            if !self.fill()? {
                return Err(malformed("it ends before its last boundary"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(body: &[u8], portion: usize) -> io::Result<Vec<(PartHead, Vec<u8>)>> {
        struct Dribble<'a>(&'a [u8], usize);
        impl Read for Dribble<'_> {
            fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
                let count = self.1.min(out.len()).min(self.0.len());
                out[..count].copy_from_slice(&self.0[..count]);
                self.0 = &self.0[count..];
                Ok(count)
            }
        }
        let mut form = Multipart::new(Dribble(body, portion), "XX");
        let mut parts = Vec::new();
        while let Some(head) = form.next_part()? {
            let mut content = Vec::new();
            form.read_to_end(&mut content)?;
            parts.push((head, content));
        }
        Ok(parts)
    }

    fn part(name: &str, file_name: Option<&str>, content: &[u8]) -> (PartHead, Vec<u8>) {
        (PartHead { name: name.into(), file_name: file_name.map(Into::into) }, content.to_vec())
    }

    #[test]
    fn parts_are_read_whatever_portions_they_arrive_in() {
        let body = b"--XX\r\nContent-Disposition: form-data; name=\"folder\"\r\n\r\nmodels\r\n\
                     --XX \t\r\ncontent-type: a/b\r\ncontent-disposition:form-data;filename=x;name=data\r\n\r\n\
                     \r\n-\r\n--X\r\n--XY\r\r\n\r\n--XX--";
        let expected = vec![part("folder", None, b"models"), part("data", Some("x"), b"\r\n-\r\n--X\r\n--XY\r\r\n")];
        for portion in [1, 2, 3, 7, usize::MAX] {
            assert_eq!(read_all(body, portion).unwrap(), expected, "portions of {portion}");
            let preamble = [b"to be ignored\r\n", &body[..], b"\r\nepilogue"].concat();
            assert_eq!(read_all(&preamble, portion).unwrap(), expected, "portions of {portion}");
        }
    }

    #[test]
    fn an_empty_part_is_empty() {
        let body = b"--XX\r\nContent-Disposition: form-data; name=a; filename=\"\"\r\n\r\n\r\n--XX--\r\n";
        assert_eq!(read_all(body, 1).unwrap(), [part("a", Some(""), b"")]);
    }

    #[test]
    fn a_large_part_passes_through_one_buffer() {
        let content: Vec<u8> = (0..3 * CHUNK).map(|i| if i % 5 == 0 { b'\r' } else { b'\n' }).collect();
        let head = b"--XX\r\nContent-Disposition: form-data; name=a\r\n\r\n";
        let body = [head, &content[..], b"\r\n--XX--"].concat();
        for portion in [1021, usize::MAX] {
            assert!(read_all(&body, portion).unwrap() == [part("a", None, &content)]);
        }
    }

    #[test]
    fn malformed_forms_are_refused() {
        let head = "--XX\r\nContent-Disposition: form-data; name=a\r\n\r\n";
        for (body, expected) in [
            (String::new(), "ends before its last boundary"),
            ("garbage".into(), "ends before its last boundary"),
            ("g".repeat(100_000), "does not begin with the boundary"),
            ("--XX".into(), "not followed by a line break"),
            ("--XXY\r\n".into(), "not followed by a line break"),
            ("--XX\nContent-Disposition: form-data; name=a\n\nx\n--XX--".into(), "not followed by a line break"),
            ("--XX\r\nContent-Disposition: form-data; name=a\r\n".into(), "within a part's headers"),
            (format!("--XX\r\n{}", "h".repeat(20_000)), "headers are too long"),
            (format!("{head}data"), "ends before its last boundary"),
            (format!("{head}data\r\n--XX"), "not followed by a line break"),
            ("--XX\r\n\r\ndata\r\n--XX--".into(), "no Content-Disposition"),
            ("--XX\r\nno colon\r\n\r\ndata\r\n--XX--".into(), "without a colon"),
            ("--XX\r\nContent-Disposition: form-data\r\n\r\ndata\r\n--XX--".into(), "no name"),
            ("--XX\r\nContent-Disposition: attachment; name=a\r\n\r\ndata\r\n--XX--".into(), "not form-data"),
        ] {
            let error = read_all(body.as_bytes(), usize::MAX).unwrap_err().to_string();
            assert!(error.contains(expected), "{:?}: {error}", &body[..body.len().min(80)]);
        }
    }

    #[test]
    fn boundaries_are_read_quoted_and_unquoted() {
        for (content_type, expected) in [
            ("multipart/form-data; boundary=abc", Some("abc")),
            ("Multipart/Form-Data;charset=utf-8; BOUNDARY=\"a b\\\"c\"", Some("a b\"c")),
            ("multipart/form-data; boundary=abc ; x=y", Some("abc")),
            ("multipart/form-data", None),
            ("multipart/form-data; boundary=", None),
            ("multipart/form-data; boundary=\"unclosed", None),
            ("multipart/mixed; boundary=abc", None),
            ("application/json", None),
        ] {
            assert_eq!(boundary(content_type).as_deref(), expected, "{content_type}");
        }
        assert_eq!(boundary(&format!("multipart/form-data; boundary={}", "b".repeat(71))), None);
    }
}
