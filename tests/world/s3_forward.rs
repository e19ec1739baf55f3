//! How the S3 proxy forwards requests to the server, and answers to the client.

use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::net::TcpStream;

use super::raw::{self, Framing, Head};
use super::tcp::reset_on_close;

/// The body of an answer, whose length is known.
pub(super) struct Body<'a> {
    pub(super) reader: Box<dyn Read + 'a>,
    pub(super) length: u64,
}

/// Forwards a request; `false` if the fault ended it on the way.
pub(super) fn send_request(
    mut server: &TcpStream,
    head: &mut Head,
    reader: &mut impl BufRead,
    framing: Framing,
    allowed: Option<u64>,
) -> io::Result<bool> {
    let (mut body, length): (Box<dyn Read>, u64) = match framing {
        Framing::Length(length) => (Box::new(reader), length),
        framing => {
            // The servers want a length, so a chunked body, which is rare, is collected first.
            let body = raw::read_body(reader, framing)?;
            let length = body.len() as u64;
            if framing == Framing::Chunked {
                head.remove("Transfer-Encoding");
                head.set("Content-Length", length);
            }
            (Box::new(io::Cursor::new(body)), length)
        }
    };
    let part = allowed.map_or(length, |allowed| allowed.min(length));
    // These fail if a server answers early and closes: its answer can still be read.
    let sent = server.write_all(&head.to_bytes()).and_then(|()| io::copy(&mut body.by_ref().take(part), &mut server));
    match sent {
        Ok(count) if count < part => Err(ErrorKind::UnexpectedEof.into()),
        _ => Ok(allowed.is_none()),
    }
}

/// An answer's head, framed by length, and its body.
pub(super) fn read_answer<'a>(reader: &'a mut impl BufRead, method: &str) -> io::Result<(Head, Body<'a>)> {
    let mut head = loop {
        let head = Head::read(reader)?.ok_or(ErrorKind::UnexpectedEof)?;
        if head.status()? / 100 != 1 {
            break head;
        }
    };
    let bodiless = method == "HEAD" || matches!(head.status()?, 204 | 304);
    head.remove("Connection");
    let body: Body<'a> = match head.framing()? {
        _ if bodiless => Body { reader: Box::new(io::empty()), length: 0 },
        Framing::Length(length) => Body { reader: Box::new(reader.take(length)), length },
        framing => {
            let mut bytes = Vec::new();
            if framing == Framing::Chunked {
                bytes = raw::read_body(reader, framing)?;
            } else {
                reader.read_to_end(&mut bytes)?;
            }
            head.remove("Transfer-Encoding");
            head.set("Content-Length", bytes.len());
            let length = bytes.len() as u64;
            Body { reader: Box::new(io::Cursor::new(bytes)), length }
        }
    };
    Ok((head, body))
}

/// Ends when the client gives up or the proxy goes down.
pub(super) fn hang(mut client: &TcpStream) -> io::Result<bool> {
    io::copy(&mut client, &mut io::sink())?;
    Ok(false)
}

pub(super) fn reset(client: &TcpStream) -> bool {
    reset_on_close(client);
    false
}
