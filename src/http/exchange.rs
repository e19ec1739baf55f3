//! One request and the duty to answer it: its head, its body as a `Read`, and the connection that the answer goes to.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::Level;
use rustix::event::PollFlags;

use super::body::Decoder;
use super::connection::{Connection, Next};
use super::gate::{Framing, Head, MAX_HEAD};
use super::handlers::Place;
use super::patience::Patience;
use super::reply::{RETRY_AFTER_SECONDS, Reply, ReplyBody};
use super::router::{Route, endpoint_of};
use crate::logging::{Current, RequestId};
use crate::metrics::Transfer;
use crate::metrics::{self, Stage};

/// A request that has to be answered. Dropping it without an answer, as a panic does, answers 500.
pub struct Exchange {
    id: RequestId,
    head: Head,
    body: Decoder,
    /// The body has failed: where the next request would begin is anybody's guess.
    broken: bool,
    /// What has been read of the client and not yet used, from `used` on.
    bytes: Vec<u8>,
    used: usize,
    connection: Arc<Connection>,
    /// Where it leads, once that is known.
    pub(super) route: Option<Route>,
    /// Its place among the requests that are worked on.
    place: Option<Place>,
    patience: Patience,
    stall_limit: Duration,
    /// The rest of an answer that the socket did not take at once.
    unsent: Option<(u16, Vec<u8>)>,
    answered: bool,
    closes: bool,
    started: Instant,
}

impl Exchange {
    /// A request whose head was followed by `bytes`. Its client may keep a handler waiting for `stall_limit`.
    pub(super) fn new(head: Head, bytes: Vec<u8>, connection: Arc<Connection>, stall_limit: Duration) -> Self {
        Self {
            id: RequestId::next_for(connection.address),
            body: Decoder::new(head.framing),
            closes: !head.keep_alive,
            head,
            broken: false,
            bytes,
            used: 0,
            connection,
            route: None,
            place: None,
            patience: Patience::new(stall_limit),
            stall_limit,
            unsent: None,
            answered: false,
            started: Instant::now(),
        }
    }

    /// The id of this request in the log and in `X-Request-Id`.
    pub(super) fn id(&self) -> RequestId {
        self.id
    }

    /// The path with its query.
    pub fn target(&self) -> &str {
        &self.head.target
    }

    /// The first header with this name, which is in lower case.
    pub fn header(&self, name: &'static str) -> Option<&str> {
        self.head.field(name)
    }

    /// The declared length of the body; none for a chunked one.
    pub fn declared_length(&self) -> Option<u64> {
        match self.head.framing {
            Framing::Length(length) => Some(length),
            Framing::Chunked => None,
        }
    }

    /// How long ago its head came.
    pub(super) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Whether a handler could begin without waiting for the client.
    pub(super) fn body_has_begun(&self) -> bool {
        self.body == Decoder::Ended || self.used < self.bytes.len()
    }

    /// Asks a client that waits for it to send the body.
    pub(super) fn invite(&mut self) {
        if std::mem::take(&mut self.head.awaits_continue) {
            const INVITATION: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
            // The last answer has not been read where there is no room for so little.
            if !self.connection.write_now(INVITATION).is_ok_and(|count| count == INVITATION.len()) {
                self.connection.shut_down();
            }
        }
    }

    /// From here on a handler works on the request.
    pub(super) fn begin_work(&mut self, place: Place) {
        self.place = Some(place);
    }

    /// Answers that there is no room for the request.
    pub(super) fn answer_busy(self) {
        metrics::QUEUE_FULL.add();
        let reply = Reply::error(503, "all handlers are busy; try again in a moment");
        // Where the socket has no room for that either, dropping the exchange ends the connection.
        drop(self.answer_at_once(reply.with_header("Retry-After", RETRY_AFTER_SECONDS)));
    }

    /// Ends it without an answer: there is nobody to read one.
    pub(super) fn abandon(mut self) {
        self.answered = true;
        self.connection.give_back(Next::Close);
    }

    /// Somebody else answers, or nobody can.
    pub(super) fn leave_unanswered(&mut self) {
        self.answered = true;
    }

    /// Answers, and waits for the client to take the answer.
    ///
    /// A response that breaks off on its way ends the connection, so that the client cannot take it for complete.
    pub(super) fn answer(mut self, reply: Reply) {
        let reply = checked(reply);
        let status = reply.status;
        let result = self.send(reply);
        self.finish(status, &result);
    }

    /// Answers without waiting. Gives itself back if the client has to be waited for, see [`Self::finish_answer`].
    pub(super) fn answer_at_once(mut self, reply: Reply) -> Option<Self> {
        let status = reply.status;
        let mut bytes = self.head_of(&reply);
        let head = bytes.len();
        if let ReplyBody::Whole { bytes: body, .. } = &reply.body
            && self.head.method != "HEAD"
        {
            bytes.extend_from_slice(body);
        }
        match self.connection.write_now(&bytes) {
            Ok(written) if written < bytes.len() => {
                self.unsent = Some((status, bytes.split_off(written)));
                return Some(self);
            }
            result => self.finish(status, &result.map(|count| (count - head) as u64)),
        }
        None
    }

    /// Writes what [`Self::answer_at_once`] left, if it left something; else gives itself back.
    pub(super) fn finish_answer(mut self) -> Option<Self> {
        let Some((status, rest)) = self.unsent.take() else { return Some(self) };
        self.patience = Patience::new(self.stall_limit);
        let result = self.write_all(&rest).map(|()| rest.len() as u64);
        self.finish(status, &result);
        None
    }

    fn send(&mut self, reply: Reply) -> io::Result<u64> {
        self.patience = Patience::new(self.stall_limit);
        let mut head = self.head_of(&reply);
        let head_only = self.head.method == "HEAD";
        let (length, mut reader) = match reply.body {
            ReplyBody::Whole { bytes, .. } => {
                let body = if head_only { &[][..] } else { &bytes };
                // One write, one packet.
                head.extend_from_slice(body);
                return self.write_all(&head).map(|()| body.len() as u64);
            }
            ReplyBody::Stream { length, reader } => (length, reader),
        };
        self.write_all(&head)?;
        if head_only {
            return Ok(0);
        }
        let transfer = Transfer::begin(Stage::Send, "the model", 0, Some(length));
        let mut sent = 0;
        loop {
            let available = reader.fill_buf()?;
            if available.is_empty() {
                break;
            }
            let count = available.len();
            self.write_all(available)?;
            sent += count as u64;
            transfer.moved(count as u64);
            reader.consume(count);
        }
        if sent == length { Ok(sent) } else { Err(io::Error::other("the length was not the announced one")) }
    }

    fn head_of(&mut self, reply: &Reply) -> Vec<u8> {
        // What is left of a body would have to be read to find the next request.
        self.closes |= self.broken || self.body != Decoder::Ended;
        let connection = match (self.closes, self.head.is_1_0) {
            (true, _) => Some("close"),
            (false, true) => Some("keep-alive"),
            (false, false) => None,
        };
        reply.head(self.id, connection)
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let write = || self.connection.write(bytes);
            let count = self.patience.transfer(&self.connection, self.place.as_ref(), PollFlags::OUT, write).map_err(
                |error| match error.kind() {
                    io::ErrorKind::TimedOut => io::Error::new(io::ErrorKind::TimedOut, "the client stopped reading"),
                    _ => error,
                },
            )?;
            bytes = &bytes[count..];
        }
        self.patience.begin_anew(self.place.as_ref());
        Ok(())
    }

    /// Writes the line in the log, and leaves the connection to the next request or ends it.
    fn finish(&mut self, status: u16, result: &io::Result<u64>) {
        self.answered = true;
        self.record(status, result);
        let next = match result {
            Err(_) => Next::Close,
            Ok(_) if self.closes => Next::Linger,
            Ok(_) => Next::Head(self.bytes.split_off(self.used)),
        };
        self.place = None;
        self.connection.give_back(next);
    }

    /// One line in the log, and one count in the metrics. Probes and pages that poll are seen at level debug only.
    fn record(&self, status: u16, result: &io::Result<u64>) {
        let time = self.started.elapsed();
        let endpoint = endpoint_of(&self.head.target);
        metrics::request(endpoint, status, time);
        let _current = Current::enter(self.id);
        let method = self.head.method.as_str();
        let path = self.head.target.split('?').next().unwrap_or_default();
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let polled = matches!(endpoint, "/health" | "/status" | "/unlock/status" | "/metrics");
        match result {
            Ok(bytes) => {
                let level = if polled && status < 400 { Level::Debug } else { Level::Info };
                if log::log_enabled!(level) {
                    let client = self.connection.client();
                    log::log!(level, method, endpoint, path, status, bytes = *bytes, ms, client; "answered");
                }
            }
            Err(error) => {
                let client = self.connection.client();
                log::warn!(method, endpoint, path, status, ms, client, error:%; "the answer was broken off");
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

/// Reading the exchange reads the request's body.
impl Read for Exchange {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.broken {
            return Err(io::Error::other("the request's body has failed before"));
        }
        let mut body = self.body;
        let result = body.read(&mut Input(self), out);
        self.body = body;
        match &result {
            Ok(_) if body == Decoder::Ended => self.patience.begin_anew(self.place.as_ref()),
            Ok(_) => {}
            Err(_) => self.broken = true,
        }
        result.map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => io::Error::new(io::ErrorKind::TimedOut, "the client stopped sending"),
            _ => error,
        })
    }
}

/// The bytes of the client, of which some have been read with the head.
struct Input<'a>(&'a mut Exchange);

impl Input<'_> {
    fn receive(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let Exchange { patience, connection, place, .. } = &mut *self.0;
        patience.transfer(connection, place.as_ref(), PollFlags::IN, || connection.read(out))
    }
}

impl Read for Input<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.0.used == self.0.bytes.len() {
            return self.receive(out);
        }
        let count = (&self.0.bytes[self.0.used..]).read(out)?;
        self.0.used += count;
        Ok(count)
    }
}

impl BufRead for Input<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.0.used == self.0.bytes.len() {
            let mut bytes = std::mem::take(&mut self.0.bytes);
            self.0.used = 0;
            bytes.resize(MAX_HEAD, 0);
            let count = self.receive(&mut bytes)?;
            bytes.truncate(count);
            self.0.bytes = bytes;
        }
        Ok(&self.0.bytes[self.0.used..])
    }

    fn consume(&mut self, count: usize) {
        self.0.used += count;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.unsent.is_some() {
            self.connection.give_back(Next::Close);
        } else if !self.answered {
            self.closes = true;
            let bytes = Reply::error(500, "the request could not be handled").into_last_answer(self.id);
            let result = self.connection.write_now(&bytes).map(|count| count as u64);
            self.finish(500, &result);
        }
    }
}
