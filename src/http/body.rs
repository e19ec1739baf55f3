//! The framing of a request's body: what a length or chunks leave of the bytes that a client sends.

use std::io::{self, BufRead};

use super::gate::Framing;

/// The longest chunk-size line, and the longest trailer section, in bytes.
const MAX_LINE: usize = 1024;

/// The most trailer fields.
const MAX_TRAILERS: usize = 32;

/// A body, as far as it has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decoder {
    /// So many bytes are missing.
    Length(u64),
    /// At the beginning of a chunk-size line.
    Size,
    /// So many bytes are missing of a chunk.
    Chunk(u64),
    /// All of it has been read.
    Ended,
}

impl Decoder {
    pub(super) fn new(framing: Framing) -> Self {
        match framing {
            Framing::Length(0) => Self::Ended,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Size,
        }
    }

    /// Reads what comes next of the body from the client's bytes. Zero at its end.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] for chunks that break the rules, [`io::ErrorKind::UnexpectedEof`] for a body that is cut
    /// off, and whatever `source` fails with.
    pub(super) fn read(&mut self, source: &mut impl BufRead, out: &mut [u8]) -> io::Result<usize> {
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
    io::Error::new(io::ErrorKind::UnexpectedEof, "the client's body ended early")
}

/// A chunk's size: hexadecimal digits and nothing else. Extensions are ignored.
fn chunk_size(source: &mut impl BufRead) -> io::Result<u64> {
    let line = line(source, MAX_LINE)?;
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
    // Only before an extension may white space follow the digits (RFC 9112, 7.1.1).
    let digits = if digits.len() < line.len() { digits.trim_ascii_end() } else { digits };
    let valid = !digits.is_empty() && digits.iter().all(u8::is_ascii_hexdigit);
    let size = std::str::from_utf8(digits).ok().and_then(|digits| u64::from_str_radix(digits, 16).ok());
    size.filter(|_| valid).ok_or_else(|| malformed("a chunk's size is not a hexadecimal number"))
}

/// Trailers are read over: no field of them could be trusted like one of the head.
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

/// A line without its CRLF, of at most `limit` bytes.
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

/// For the fuzz target: a chunked body comes out the same whatever portions it is read in.
pub(super) fn fuzz(body: &[u8]) {
    let outcome = |portion: usize| {
        let mut source = io::BufReader::with_capacity(portion, body);
        let (mut decoder, mut content, mut buffer) = (Decoder::Size, Vec::new(), vec![0; portion]);
        loop {
            match decoder.read(&mut source, &mut buffer) {
                Ok(0) => return Ok(content),
                Ok(count) => content.extend_from_slice(&buffer[..count]),
                // The last portion goes with the fault after it.
                Err(error) => return Err(error.kind()),
            }
        }
    };
    assert_eq!(outcome(4096), outcome(1));
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Read};

    use super::*;

    fn decode(body: &[u8], portion: usize) -> Result<(Vec<u8>, Vec<u8>), io::ErrorKind> {
        let mut source = BufReader::with_capacity(portion, body);
        let (mut decoder, mut content, mut buffer) = (Decoder::Size, Vec::new(), [0; 5]);
        loop {
            match decoder.read(&mut source, &mut buffer).map_err(|error| error.kind())? {
                0 => break,
                count => content.extend_from_slice(&buffer[..count]),
            }
        }
        let mut rest = Vec::new();
        source.read_to_end(&mut rest).unwrap();
        Ok((content, rest))
    }

    #[test]
    fn chunks_come_out_whatever_portions_they_arrive_in() {
        let body = b"3\r\nabc\r\n0A ;x=\"y\"\r\ndefghijklm\r\n000\r\nTrailer: x\r\n\r\nGET";
        for portion in [1, 2, 3, 64] {
            assert_eq!(decode(body, portion).unwrap(), (b"abcdefghijklm".to_vec(), b"GET".to_vec()));
        }
    }

    #[test]
    fn broken_chunks_are_refused() {
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
            assert_eq!(decode(body.as_bytes(), 64).unwrap_err(), io::ErrorKind::InvalidData, "{body:.40}");
        }
        for body in ["", "3", "3\r\n", "3\r\nab", "3\r\nabc", "3\r\nabc\r\n", "3\r\nabc\r\n0\r\n", "0\r\nX: y\r\n"] {
            assert_eq!(decode(body.as_bytes(), 64).unwrap_err(), io::ErrorKind::UnexpectedEof, "{body}");
        }
    }
}
