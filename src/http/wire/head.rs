//! Request heads, checked against RFC 9110 and RFC 9112 before anything else sees them.

use httparse::{EMPTY_HEADER, Status};

use super::target::{self, is_authority};

/// The size limit of a request line with its headers.
pub(in crate::http) const MAX_HEAD: usize = 16 * 1024;

const MAX_TARGET: usize = 8000;
const MAX_EMPTY_LINES: usize = 8;
const MAX_FIELDS: usize = 100;

/// Methods that an endpoint without them answers with 405. Any other is 501, and so is `CONNECT`, which is for proxies.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "QUERY"];

/// Fields that must not appear twice, since it would be unclear which of the two counts.
const SINGLE_FIELDS: [&str; 5] = ["host", "content-length", "content-type", "authorization", "origin"];

/// The last answer on a connection, given by the gate instead of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) struct Refusal {
    pub(in crate::http) status: u16,
    pub(in crate::http) detail: &'static str,
}

const fn refusal(status: u16, detail: &'static str) -> Refusal {
    Refusal { status, detail }
}

const TOO_LARGE: Refusal = refusal(431, "the request line and headers may have 16384 bytes at most");
const TOO_MANY_FIELDS: Refusal = refusal(431, "a request may have 100 header fields at most");
const CONTROL_CHARACTER: Refusal =
    refusal(400, "the request head has a control character; this port speaks plain HTTP/1.1");
const TARGET_TOO_LONG: Refusal = refusal(414, "the request target may have 8000 bytes at most");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Framing {
    Length(u64),
    Chunked,
}

/// A valid request head.
#[derive(Debug)]
pub(in crate::http) struct Head {
    pub(in crate::http) method: String,
    /// In origin form (`/path?query`), or `*`.
    pub(in crate::http) target: String,
    /// The client speaks HTTP/1.0, so the connection ends after one answer unless it asks to keep it.
    pub(in crate::http) is_1_0: bool,
    pub(in crate::http) framing: Framing,
    pub(in crate::http) keep_alive: bool,
    pub(in crate::http) awaits_continue: bool,
    /// Names are in lower case.
    fields: Vec<(String, String)>,
}

impl Head {
    /// The first field with this name, which is in lower case.
    pub(in crate::http) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.fields.iter().filter(move |(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// The comma-separated elements of all fields with this name, in lower case.
    fn elements<'a>(&'a self, name: &'a str) -> impl Iterator<Item = String> + 'a {
        let elements = self.all(name).flat_map(|value| value.split(',')).map(str::trim);
        elements.map(str::to_ascii_lowercase)
    }
}

/// The bytes of a head as they arrive. Each is scanned once, however small the portions.
#[derive(Debug, Default)]
pub(in crate::http) struct HeadBuffer {
    bytes: Vec<u8>,
    /// Up to here there is neither a fault nor the end of the head.
    scanned: usize,
    empty_lines: usize,
}

impl HeadBuffer {
    pub(in crate::http) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The memory in use.
    pub(in crate::http) fn size(&self) -> usize {
        self.bytes.capacity()
    }

    /// The head and the bytes after it, once it is complete.
    pub(in crate::http) fn take_head(&mut self) -> Result<Option<(Head, Vec<u8>)>, Refusal> {
        let Some(end) = self.find_end()? else {
            return match self.bytes.len() {
                0..MAX_HEAD => Ok(None),
                _ if self.bytes.contains(&b'\n') => Err(TOO_LARGE),
                _ => Err(TARGET_TOO_LONG),
            };
        };
        if end > MAX_HEAD {
            return Err(TOO_LARGE);
        }
        let mut bytes = std::mem::take(self).bytes;
        let rest = bytes.split_off(end);
        parse(&mut bytes).map(|head| Some((head, rest)))
    }

    /// Where the head ends, if it does. A lone CR or LF ends a line for some parsers and not for others, and control characters
    /// have no place in a head, so these are refused as soon as they arrive.
    fn find_end(&mut self) -> Result<Option<usize>, Refusal> {
        // Some clients send an empty line after their last request (RFC 9112, 2.2).
        if self.scanned == 0 {
            let empty = self.bytes.chunks_exact(2).take_while(|pair| pair == b"\r\n").count();
            self.bytes.drain(..empty * 2);
            self.empty_lines += empty;
            if self.empty_lines > MAX_EMPTY_LINES {
                return Err(refusal(400, "the request begins with empty lines"));
            }
        }
        while let Some(byte) = self.bytes.get(self.scanned) {
            match byte {
                b'\r' => match self.bytes.get(self.scanned + 1) {
                    None => return Ok(None),
                    Some(b'\n') if self.bytes[..self.scanned].ends_with(b"\r\n") => return Ok(Some(self.scanned + 2)),
                    Some(b'\n') => self.scanned += 1,
                    Some(_) => return Err(refusal(400, "a CR in the request head is not followed by LF")),
                },
                b'\n' => return Err(refusal(400, "a line of the request head ends in LF without CR")),
                b'\t' | b' '..=b'~' | 0x80.. => {}
                _ => return Err(CONTROL_CHARACTER),
            }
            self.scanned += 1;
        }
        Ok(None)
    }
}

/// Parses a complete head whose lines end in CRLF and which has no control characters.
fn parse(bytes: &mut [u8]) -> Result<Head, Refusal> {
    let line_end = bytes.iter().position(|byte| *byte == b'\r').unwrap_or(bytes.len());
    serve_minor_versions_as_1_1(&mut bytes[..line_end])?;
    let line = &bytes[..line_end];
    if line.iter().any(|byte| !byte.is_ascii()) {
        return Err(refusal(400, "the request target has characters that must be percent-encoded"));
    }
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes) {
        Ok(Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => return Err(TOO_MANY_FIELDS),
        Err(httparse::Error::HeaderName | httparse::Error::HeaderValue) => {
            return Err(refusal(400, "a header line is not of the form Name: value"));
        }
        Ok(Status::Partial) | Err(_) => {
            return Err(refusal(400, "the request line is not of the form METHOD target HTTP/1.1"));
        }
    }
    let method = request.method.unwrap_or_default().to_owned();
    let target = request.path.unwrap_or_default();
    let is_1_0 = request.version == Some(0);
    let fields = request
        .headers
        .iter()
        .map(|field| (field.name.to_ascii_lowercase(), String::from_utf8_lossy(field.value).into_owned()))
        .collect();
    let mut head = Head {
        method,
        target: String::new(),
        is_1_0,
        framing: Framing::Length(0),
        keep_alive: false,
        awaits_continue: false,
        fields,
    };
    if !METHODS.contains(&head.method.as_str()) {
        return Err(refusal(501, "this method is not implemented"));
    }
    for name in SINGLE_FIELDS {
        if head.all(name).nth(1).is_some() {
            return Err(refusal(400, "a header field that is allowed once appears twice"));
        }
    }
    if target.len() > MAX_TARGET {
        return Err(TARGET_TOO_LONG);
    }
    match head.field("host") {
        None if !is_1_0 => return Err(refusal(400, "the request has no Host header")),
        Some(host) if !is_authority(host) => {
            return Err(refusal(400, "the Host header is not a host name or address with an optional port"));
        }
        _ => {}
    }
    let (authority, path) = target::parse(target, head.method == "OPTIONS").map_err(|detail| refusal(400, detail))?;
    head.target = path;
    if let Some(authority) = authority {
        // It replaces the Host header (RFC 9112, 3.2.2).
        head.fields.retain(|(name, _)| name != "host");
        head.fields.push(("host".to_owned(), authority.to_owned()));
    }
    head.framing = framing(&head)?;
    head.keep_alive = is_kept_alive(&head);
    if !is_1_0 && head.field("expect").is_some() {
        if head.elements("expect").any(|expectation| expectation != "100-continue") {
            return Err(refusal(417, "the only expectation that can be met is 100-continue"));
        }
        head.awaits_continue = head.framing != Framing::Length(0);
    }
    Ok(head)
}

/// A client of a later minor version than HTTP/1.1 is served as if it spoke 1.1 (RFC 9110, 2.5).
fn serve_minor_versions_as_1_1(line: &mut [u8]) -> Result<(), Refusal> {
    let malformed = refusal(400, "the request line is not of the form METHOD target HTTP/1.1");
    let start = line.len().checked_sub(8).ok_or(malformed)?;
    match &mut line[start..] {
        [b'H', b'T', b'T', b'P', b'/', major @ b'0'..=b'9', b'.', minor @ b'0'..=b'9'] => {
            if *major != b'1' {
                return Err(refusal(505, "this service speaks HTTP/1.1 and HTTP/1.0"));
            }
            *minor = (*minor).min(b'1');
            Ok(())
        }
        _ => Err(malformed),
    }
}

/// Refuses any framing on which two parsers could disagree (RFC 9112, 6).
fn framing(head: &Head) -> Result<Framing, Refusal> {
    let length = match head.field("content-length") {
        Some(digits) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(digits.parse().map_err(|_| refusal(400, "the Content-Length is larger than any body"))?)
        }
        Some(_) => return Err(refusal(400, "the Content-Length is not one number of bytes")),
        None => None,
    };
    if head.field("transfer-encoding").is_none() {
        return Ok(Framing::Length(length.unwrap_or(0)));
    }
    if length.is_some() {
        return Err(refusal(400, "the request has both a Content-Length and a Transfer-Encoding"));
    }
    if head.is_1_0 {
        return Err(refusal(400, "HTTP/1.0 has no Transfer-Encoding"));
    }
    let codings: Vec<String> = head.elements("transfer-encoding").collect();
    let is_other = |coding: &String| !coding.is_empty() && coding != "chunked";
    match codings.as_slice() {
        [chunked] if chunked == "chunked" => Ok(Framing::Chunked),
        [others @ .., last] if last == "chunked" && others.iter().all(is_other) => {
            Err(refusal(501, "the only Transfer-Encoding that is implemented is chunked"))
        }
        _ => Err(refusal(400, "the Transfer-Encoding does not end in chunked, once")),
    }
}

fn is_kept_alive(head: &Head) -> bool {
    let has = |option: &str| head.elements("connection").any(|element| element == option);
    !has("close") && (!head.is_1_0 || has("keep-alive"))
}

/// For the fuzz target: the outcome must not depend on the portions in which a head arrives.
pub(in crate::http) fn fuzz(bytes: &[u8]) {
    let outcome = |portion: usize| {
        let mut buffer = HeadBuffer::default();
        for (number, bytes) in bytes.chunks(portion).enumerate() {
            buffer.push(bytes);
            match buffer.take_head() {
                Ok(None) => {}
                Ok(Some((head, rest))) => {
                    return Ok(Some((format!("{head:?}"), number * portion + bytes.len() - rest.len())));
                }
                Err(refusal) => return Err(refusal),
            }
        }
        Ok(None)
    };
    let whole = outcome(MAX_HEAD);
    if bytes.len() < MAX_HEAD {
        assert_eq!(whole, outcome(7));
        assert_eq!(whole, outcome(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Result<Head, u16> {
        let mut buffer = HeadBuffer::default();
        buffer.push(text.as_bytes());
        match buffer.take_head() {
            Ok(Some((head, _))) => Ok(head),
            Ok(None) => Err(0),
            Err(refusal) => Err(refusal.status),
        }
    }

    #[test]
    fn a_head_is_found_whatever_portions_it_arrives_in() {
        let text = b"\r\n\r\nPOST /a?b HTTP/1.1\r\nHost: box:80\r\ncontent-LENGTH: 3 \r\n\r\nabcGET";
        fuzz(text);
        let mut buffer = HeadBuffer::default();
        buffer.push(text);
        let (head, rest) = buffer.take_head().unwrap().unwrap();
        assert_eq!((head.method.as_str(), head.target.as_str()), ("POST", "/a?b"));
        assert_eq!((head.framing, rest.as_slice()), (Framing::Length(3), &b"abcGET"[..]));
        assert!(head.keep_alive && !head.awaits_continue);
    }

    #[test]
    fn the_authority_of_an_absolute_target_counts() {
        let head = head("GET HTTP://box:8080?x HTTP/1.7\r\nHost: other\r\n\r\n").unwrap();
        assert_eq!((head.target.as_str(), head.field("host")), ("/?x", Some("box:8080")));
    }

    #[test]
    fn an_oversized_head_is_refused_before_it_is_complete() {
        let long = "x".repeat(20_000);
        assert_eq!(head(&format!("GET /{long}")).unwrap_err(), 414);
        assert_eq!(head(&format!("GET / HTTP/1.1\r\nX: {long}")).unwrap_err(), 431);
        assert_eq!(head(&format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", &long[..9000])).unwrap_err(), 414);
        assert_eq!(head(&format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(101))).unwrap_err(), 431);
    }
}
