//! The framing of a request's body: finds the content in the bytes that a client sends.

use std::io::{self, BufRead, Read};

use super::head::Framing;

/// The longest chunk-size line, and the longest trailer section, in bytes.
const MAX_LINE: usize = 1024;

const MAX_TRAILERS: usize = 32;

/// What is left to read of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Decoder {
    /// This many bytes.
    Length(u64),
    /// A chunk-size line comes next.
    Size,
    /// This many bytes of the current chunk, and further chunks.
    Chunk(u64),
    /// Nothing.
    Ended,
}

impl Decoder {
    pub(in crate::http) fn new(framing: Framing) -> Self {
        match framing {
            Framing::Length(0) => Self::Ended,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Size,
        }
    }

    /// Reads content from the client's bytes, none at the end of the body. Malformed chunks are
    /// [`io::ErrorKind::InvalidData`], a body that is cut off is [`io::ErrorKind::UnexpectedEof`].
    pub(in crate::http) fn read(&mut self, source: &mut impl BufRead, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        if *self == Self::Size {
            *self = match chunk_size(source)? {
                0 => {
                    skip_trailers(source)?;
                    Self::Ended
                }
                size => Self::Chunk(size),
            };
        }
        let missing = match self {
            Self::Length(missing) | Self::Chunk(missing) => missing,
            Self::Ended | Self::Size => return Ok(0),
        };
        let limit = usize::try_from(*missing).unwrap_or(usize::MAX).min(out.len());
        let count = source.read(&mut out[..limit])?;
        if count == 0 {
            return Err(cut_off());
        }
        *missing -= count as u64;
        match self {
            Self::Length(0) => *self = Self::Ended,
            Self::Chunk(0) => {
                line(source, 0)?;
                *self = Self::Size;
            }
            _ => {}
        }
        Ok(count)
    }
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the body ended early")
}

/// Accepts nothing but hexadecimal digits. Chunk extensions are ignored.
fn chunk_size(source: &mut impl BufRead) -> io::Result<u64> {
    let line = line(source, MAX_LINE)?;
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
    // White space after the digits is allowed only before an extension (RFC 9112, 7.1.1).
    let digits = if digits.len() < line.len() { digits.trim_ascii_end() } else { digits };
    let valid = !digits.is_empty() && digits.iter().all(u8::is_ascii_hexdigit);
    let size = std::str::from_utf8(digits).ok().and_then(|digits| u64::from_str_radix(digits, 16).ok());
    size.filter(|_| valid).ok_or_else(|| malformed("a chunk's size is not a hexadecimal number"))
}

/// Trailer fields are checked and ignored: they must not be trusted like fields of the head.
fn skip_trailers(source: &mut impl BufRead) -> io::Result<()> {
    let mut trailers = Vec::new();
    loop {
        let line = line(source, MAX_LINE - trailers.len().min(MAX_LINE))?;
        trailers.extend_from_slice(&line);
        trailers.extend_from_slice(b"\r\n");
        if line.is_empty() {
            break;
        }
    }
    match httparse::parse_headers(&trailers, &mut [httparse::EMPTY_HEADER; MAX_TRAILERS]) {
        Ok(httparse::Status::Complete(_)) => Ok(()),
        _ => Err(malformed("a trailer line is not of the form Name: value")),
    }
}

/// Reads a line of at most `limit` bytes and its CRLF, which is left out.
fn line(source: &mut impl BufRead, limit: usize) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    loop {
        let Some(byte) = source.fill_buf()?.first().copied() else { return Err(cut_off()) };
        source.consume(1);
        line.push(byte);
        match line.as_slice() {
            [.., b'\r', b'\n'] => {
                line.truncate(line.len() - 2);
                return Ok(line);
            }
            [.., b'\r', _] | [.., b'\n'] => return Err(malformed("a line of a chunked body does not end in CRLF")),
            [.., byte] if byte.is_ascii_control() && !matches!(byte, b'\r' | b'\t') => {
                return Err(malformed("a line of a chunked body has a control character"));
            }
            _ if line.len() > limit + 1 => return Err(malformed("a chunk or a line of a chunked body is too long")),
            _ => {}
        }
    }
}

/// Decodes a whole chunked body. Returns its content and the bytes after it.
fn decode(body: &[u8], portion: usize) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut source = io::BufReader::with_capacity(portion, body);
    let (mut decoder, mut content, mut buffer) = (Decoder::Size, Vec::new(), vec![0; portion]);
    while decoder != Decoder::Ended {
        let count = decoder.read(&mut source, &mut buffer)?;
        content.extend_from_slice(&buffer[..count]);
    }
    let mut rest = Vec::new();
    source.read_to_end(&mut rest)?;
    Ok((content, rest))
}

/// For the fuzz target: the content must not depend on the portions in which the body is read.
pub(in crate::http) fn fuzz(body: &[u8]) {
    let outcome = |portion| decode(body, portion).map_err(|error| error.kind());
    assert_eq!(outcome(4096), outcome(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_decoded_whatever_portions_they_arrive_in() {
        let body = b"3\r\nabc\r\n0A ;x=\"y\"\r\ndefghijklm\r\n000\r\nTrailer: x\r\n\r\nGET";
        for portion in [1, 2, 3, 64] {
            assert_eq!(decode(body, portion).unwrap(), (b"abcdefghijklm".to_vec(), b"GET".to_vec()));
        }
    }

    #[test]
    fn malformed_chunks_are_refused() {
        let long = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(2000));
        let trailers = format!("0\r\n{}\r\n", "a: b\r\n".repeat(400));
        for body in [
            "0x3\r\nabc\r\n0\r\n\r\n",
            "+3\r\nabc\r\n0\r\n\r\n",
            "-3\r\nabc\r\n0\r\n\r\n",
            "3 \r\nabc\r\n0\r\n\r\n",
            " 3\r\nabc\r\n0\r\n\r\n",
            "1_0\r\nabc\r\n0\r\n\r\n",
            "\r\nabc\r\n0\r\n\r\n",
            ";x\r\nabc\r\n0\r\n\r\n",
            "10000000000000000\r\nabc\r\n0\r\n\r\n",
            "3\nabc\n0\n\n",
            "3\rabc",
            "3\r\nabcd\r\n0\r\n\r\n",
            "3\r\nabc0\r\n\r\n",
            "0\r\nno colon\r\n\r\n",
            &long,
            &trailers,
        ] {
            assert_eq!(decode(body.as_bytes(), 64).unwrap_err().kind(), io::ErrorKind::InvalidData, "{body:.40}");
        }
        for body in ["", "3", "3\r\n", "3\r\nab", "3\r\nabc", "3\r\nabc\r\n", "3\r\nabc\r\n0\r\n", "0\r\nX: y\r\n"] {
            assert_eq!(decode(body.as_bytes(), 64).unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{body}");
        }
    }
}
