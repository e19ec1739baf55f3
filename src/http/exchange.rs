//! One request and the duty to answer it: its head, its body as a `Read`, and the response that this program writes itself.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use log::Level;
use tiny_http::{Method, Request};

use super::connection::{ACCEPT_LOOP_PATIENCE, Listener, Peer, TamedReader, take_body};
use super::pace::{Pace, PacedWriter};
use super::reply::{Reply, ReplyBody, reason_phrase};
use super::router::endpoint_of;
use crate::constants::AGENT;
use crate::logging::{Current, RequestId};
use crate::metrics::{self, Stage};
use crate::transfer::Transfer;

/// A client that sends on although it was refused gets so long to read the answer before its connection ends.
const LINGER: Duration = Duration::from_secs(1);

/// How many bytes of a refused body are read to keep the answer from being lost.
const LINGER_BYTES: u64 = 4 << 20;

/// How a request frames its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
    /// Contradictory or unknown: where the next request would begin is anybody's guess.
    Malformed(&'static str),
}

impl Framing {
    fn of(request: &Request) -> Self {
        let values = |name: &'static str| {
            request.headers().iter().filter(move |header| header.field.equiv(name)).map(|header| header.value.as_str())
        };
        let mut encodings = values("Transfer-Encoding");
        let mut lengths = values("Content-Length");
        match (encodings.next(), lengths.next()) {
            (None, None) => Self::Length(0),
            (Some(encoding), None) if encodings.next().is_none() && encoding.trim().eq_ignore_ascii_case("chunked") => {
                Self::Chunked
            }
            (Some(_), None) => {
                Self::Malformed("the Transfer-Encoding is not supported; send a Content-Length or chunked")
            }
            (Some(_), Some(_)) => Self::Malformed("the request has both a Content-Length and a Transfer-Encoding"),
            (None, Some(length)) => {
                let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
                match length.parse() {
                    Ok(length) if digits && lengths.next().is_none() => Self::Length(length),
                    _ => Self::Malformed("the Content-Length is not one number of bytes"),
                }
            }
        }
    }
}

/// A request's body. It is read from the client as it is asked for.
pub struct Body {
    /// None where the count of the reader could not be tamed; such a body is never read and never dropped.
    reader: Option<TamedReader>,
    framing: Framing,
    /// Bytes not yet read, of a body with a length.
    remaining: u64,
    ended: bool,
    /// Set until the client has been told to send.
    awaits_continue: bool,
    /// What the body came to, if it was not well.
    broken: bool,
    pace: Pace,
}

impl Body {
    /// The declared length; none for a chunked body.
    #[must_use]
    pub fn declared_length(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(length) => Some(length),
            Framing::Chunked | Framing::Malformed(_) => None,
        }
    }

    /// Whether all of it has been read.
    fn is_consumed(&self) -> bool {
        self.ended || (self.remaining == 0 && matches!(self.framing, Framing::Length(_)))
    }

    fn read_from_client(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() || self.is_consumed() {
            return Ok(0);
        }
        let reader = match (&mut self.reader, self.framing) {
            (Some(reader), Framing::Length(_) | Framing::Chunked) => reader,
            _ => return Err(io::Error::other("the request's body cannot be read")),
        };
        let limit = match self.framing {
            Framing::Length(_) => out.len().min(usize::try_from(self.remaining).unwrap_or(usize::MAX)),
            _ => out.len(),
        };
        let count = self.pace.transfer(|| reader.read(&mut out[..limit])).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                io::Error::new(io::ErrorKind::TimedOut, "the client stopped sending")
            }
            _ => error,
        })?;
        match (count, self.framing) {
            (0, Framing::Chunked) => self.ended = true,
            (0, _) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the client's body ended early")),
            (count, _) => self.remaining = self.remaining.saturating_sub(count as u64),
        }
        Ok(count)
    }
}

/// A request that has to be answered.
///
/// Dropping it without an answer, as a panic does, answers 500.
pub struct Exchange {
    id: RequestId,
    method: Method,
    url: String,
    headers: Vec<tiny_http::Header>,
    peer: Option<Peer>,
    body: Body,
    writer: Option<Box<dyn Write + Send>>,
    /// Set when the `tiny_http` server that this came from reads no more requests.
    retired: Arc<AtomicBool>,
    /// How long the client may keep the writing of its answer waiting.
    patience: Duration,
    lingers: bool,
    started: Instant,
}

impl Exchange {
    pub(super) fn new(
        mut request: Request,
        listener: &Listener,
        retired: Arc<AtomicBool>,
        stall_limit: Duration,
    ) -> Self {
        let framing = Framing::of(&request);
        let header = |name: &'static str| request.headers().iter().find(|header| header.field.equiv(name));
        let awaits_continue = header("Expect").is_some();
        // An upgrade leaves the whole connection to the reader, and nothing in it counts.
        let upgrade =
            header("Connection").is_some_and(|header| header.value.as_str().to_ascii_lowercase().contains("upgrade"));
        let peer = listener.peer_of(&request);
        let declared = request.body_length();
        let reader = take_body(&mut request).and_then(|reader| match declared {
            Some(declared) if !upgrade => match TamedReader::of_declared_length(reader, declared) {
                Ok(reader) => Some(reader),
                Err(reader) => {
                    // Seen only if the library changed. A leaked reader costs two descriptors; a dropped one the process.
                    log::error!("a request body of {declared} bytes could not be tamed");
                    std::mem::forget(reader);
                    None
                }
            },
            _ => Some(TamedReader::of_no_length(reader)),
        });
        let remaining = match framing {
            Framing::Length(length) => length,
            _ => 0,
        };
        Self {
            id: RequestId::next(),
            method: request.method().clone(),
            url: request.url().to_owned(),
            headers: request.headers().to_vec(),
            peer,
            body: Body {
                reader,
                framing,
                remaining,
                ended: false,
                awaits_continue,
                broken: upgrade,
                pace: Pace::new(stall_limit),
            },
            writer: Some(request.into_writer()),
            retired,
            patience: ACCEPT_LOOP_PATIENCE,
            lingers: true,
            started: Instant::now(),
        }
    }

    /// The id of this request in the log and in `X-Request-Id`.
    #[must_use]
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// The method.
    #[must_use]
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// The request target as it came.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The first header with this name.
    #[must_use]
    pub fn header(&self, name: &'static str) -> Option<&str> {
        self.headers.iter().find(|header| header.field.equiv(name)).map(|header| header.value.as_str())
    }

    /// The client, if its connection can be told.
    #[must_use]
    pub fn peer(&self) -> Option<&Peer> {
        self.peer.as_ref()
    }

    /// Allows the client to keep a handler waiting, as the accept loop must not be kept.
    pub(super) fn wait_for_client(&mut self, limit: Duration) {
        self.patience = limit;
        if let Some(peer) = &self.peer {
            peer.set_timeouts(limit);
        }
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// Whether the body may have to be waited for, now or when the exchange ends.
    #[must_use]
    pub fn may_block(&self) -> bool {
        !matches!(self.body.framing, Framing::Length(0))
    }

    /// The length of the request line and the headers, about.
    #[must_use]
    pub fn head_length(&self) -> usize {
        let headers = self.headers.iter().map(|header| header.field.as_str().as_str().len() + header.value.len() + 4);
        self.url.len() + headers.sum::<usize>()
    }

    /// Why the request cannot be understood at all, if so.
    #[must_use]
    pub fn malformed(&self) -> Option<&'static str> {
        match self.body.framing {
            Framing::Malformed(reason) => Some(reason),
            _ => None,
        }
    }

    /// Answers.
    ///
    /// A response that breaks off on its way ends the connection, so that the client cannot take it for complete. The answer
    /// is whether the connection goes on.
    pub fn answer(mut self, reply: Reply) -> bool {
        let reply = checked(reply);
        let status = reply.status;
        let result = self.write(reply);
        self.record(status, &result);
        self.end(result.is_ok())
    }

    /// One line in the log, and one count in the metrics. Probes and pages that poll are seen at level debug only.
    fn record(&self, status: u16, result: &io::Result<u64>) {
        let time = self.started.elapsed();
        let endpoint = endpoint_of(&self.url);
        metrics::request(endpoint, status, time);
        let _current = Current::enter(self.id);
        let method = self.method.as_str();
        let path = self.url.split('?').next().unwrap_or_default();
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let polled = matches!(endpoint, "/health" | "/status" | "/unlock/status" | "/metrics");
        match result {
            Ok(bytes) => {
                let level = if polled && status < 400 { Level::Debug } else { Level::Info };
                log::log!(level, method, endpoint, path, status, bytes = *bytes, ms; "answered");
            }
            Err(error) => log::warn!(method, endpoint, path, status, ms, error:%; "the answer was broken off"),
        }
    }

    /// Answers without waiting for anything, not even for a client that goes on sending what nobody will read.
    pub(super) fn answer_at_once(mut self, reply: Reply) {
        self.lingers = false;
        self.answer(reply);
    }

    /// Ends the exchange without an answer, and the connection after the answers that are still on their way.
    pub(super) fn abandon(mut self) {
        self.writer = None;
        if let Some(peer) = &self.peer {
            peer.stop_reading();
        }
    }

    fn write(&mut self, reply: Reply) -> io::Result<u64> {
        let closes = !self.can_go_on();
        let Some(writer) = &mut self.writer else { return Ok(0) };
        let reply = reply.with_header("X-Request-Id", self.id.to_string());
        let mut writer = PacedWriter { writer: &mut **writer, pace: Pace::new(self.patience) };
        write_reply(&mut writer, reply, self.method == Method::Head, closes)
    }

    /// Whether the next request on this connection can be found.
    fn can_go_on(&self) -> bool {
        // What follows the last chunk, trailers, `tiny_http` would take for the next request.
        let finds_next = self.body.is_consumed() && !self.body.broken && self.body.framing != Framing::Chunked;
        finds_next && !self.retired.load(Ordering::Relaxed)
    }

    /// Leaves the connection to the next request, or ends it. Answers whether it goes on.
    fn end(&mut self, answered: bool) -> bool {
        let goes_on = answered && self.can_go_on();
        if let (false, Some(peer)) = (goes_on, self.peer.clone()) {
            if answered {
                self.linger(&peer);
            }
            // Once reader and writer are gone, the end of the reading side ends a Unix connection, too.
            self.writer = None;
            self.body.reader = None;
            // To a Unix client the answer said that the connection closes; more would end the connections of others.
            if !answered || matches!(peer, Peer::Tcp(_)) {
                peer.disconnect();
            }
        }
        self.writer = None;
        goes_on
    }

    /// Closing a socket with unread bytes resets the connection, and a reset overtakes the answer. So the client is told
    /// that there is no more, and what it still sends is read for a moment.
    fn linger(&mut self, peer: &Peer) {
        if !self.lingers || self.body.awaits_continue || matches!(self.body.framing, Framing::Malformed(_)) {
            return;
        }
        let Peer::Tcp(_) = peer else { return };
        peer.set_timeouts(LINGER / 4);
        peer.stop_writing();
        let (started, mut read, mut waste) = (Instant::now(), 0, vec![0; 16 * 1024]);
        while started.elapsed() < LINGER && read < LINGER_BYTES {
            match self.body.read_from_client(&mut waste) {
                Ok(0) | Err(_) => return,
                Ok(count) => read += count as u64,
            }
        }
    }
}

/// The reply, or an error in its place: as long as no byte of a stream has been sent, its failure still is an answer.
fn checked(mut reply: Reply) -> Reply {
    let ReplyBody::Stream { reader, .. } = &mut reply.body else { return reply };
    match reader.fill_buf() {
        Ok(_) => reply,
        Err(error) => {
            log::warn!("the model cannot be loaded: {error}");
            Reply::error(500, format!("the model cannot be loaded: {error}"))
        }
    }
}

fn write_reply(writer: &mut impl Write, reply: Reply, head_only: bool, closes: bool) -> io::Result<u64> {
    let head = head_of(&reply, closes);
    let (length, mut reader) = match reply.body {
        ReplyBody::Whole { bytes, .. } => {
            // One write, one packet.
            let body = if head_only { &[][..] } else { &bytes };
            writer.write_all(&[&head, body].concat())?;
            writer.flush()?;
            return Ok(body.len() as u64);
        }
        ReplyBody::Stream { length, reader } => (length, reader),
    };
    writer.write_all(&head)?;
    let mut sent = 0;
    if !head_only {
        let transfer = Transfer::begin(Stage::Send, "the model", 0, Some(length));
        loop {
            let available = reader.fill_buf()?;
            if available.is_empty() {
                break;
            }
            writer.write_all(available)?;
            let count = available.len();
            sent += count as u64;
            transfer.moved(count as u64);
            reader.consume(count);
        }
    }
    writer.flush()?;
    if head_only || sent == length { Ok(sent) } else { Err(io::Error::other("the length was not the announced one")) }
}

/// Reading the exchange reads the request's body.
impl Read for Exchange {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.body.awaits_continue && !self.body.is_consumed() {
            self.body.awaits_continue = false;
            if let Some(writer) = &mut self.writer {
                writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
                writer.flush()?;
            }
        }
        self.body.read_from_client(out).inspect_err(|_| self.body.broken = true)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.writer.is_some() {
            let result = self.write(Reply::error(500, "the request could not be handled"));
            self.record(500, &result);
            self.end(result.is_ok());
        }
    }
}

fn head_of(reply: &Reply, closes: bool) -> Vec<u8> {
    let mut head = format!(
        "HTTP/1.1 {} {}\r\nServer: {AGENT}\r\nDate: {}\r\nContent-Type: {}\r\nContent-Length: {}\r\n",
        reply.status,
        reason_phrase(reply.status),
        httpdate::fmt_http_date(SystemTime::now()),
        reply.content_type(),
        reply.length(),
    );
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if closes {
        head.push_str("Connection: close\r\n");
    }
    head.push_str("\r\n");
    head.into_bytes()
}
