//! One request and the duty to answer it.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::Level;
use rustix::event::PollFlags;

use super::reply::{RETRY_AFTER_SECONDS, Reply, ReplyBody};
use super::wire::body::Decoder;
use super::wire::connection::{Connection, Next};
use super::wire::head::{Framing, Head, MAX_HEAD};
use super::wire::stall::{Slot, StallTimer};
use crate::logging::{Current, RequestId};
use crate::metrics::{self, NO_ENDPOINT, Stage, Transfer};

/// What a handler does with a request.
pub(super) type Task = Box<dyn FnOnce(Exchange) + Send>;

/// A request that has to be answered. Dropping it without an answer, as a panic does, answers 500.
pub(super) struct Exchange {
    id: RequestId,
    head: Head,
    body: Decoder,
    /// Reading the body has failed, so it is unknown where the next request would begin.
    broken: bool,
    /// Bytes that were received from the client; those from `used` on have not been read yet.
    bytes: Vec<u8>,
    used: usize,
    connection: Arc<Connection>,
    /// The pattern of the route, for logs and metrics.
    endpoint: &'static str,
    polled: bool,
    pub(super) task: Option<Task>,
    stall: StallTimer,
    /// Status and bytes of an answer that the socket has not taken yet.
    unsent: Option<(u16, Vec<u8>)>,
    answered: bool,
    closes: bool,
    /// The client closed the connection before it had the whole answer.
    client_left: bool,
    started: Instant,
}

impl Exchange {
    /// A request whose head was followed by `bytes`.
    pub(super) fn new(head: Head, bytes: Vec<u8>, connection: Arc<Connection>, stall_timeout: Duration) -> Self {
        Self {
            id: RequestId::next_for(connection.address),
            body: Decoder::new(head.framing),
            closes: !head.keep_alive,
            head,
            broken: false,
            bytes,
            used: 0,
            connection,
            endpoint: NO_ENDPOINT,
            polled: false,
            task: None,
            stall: StallTimer::new(stall_timeout),
            unsent: None,
            answered: false,
            client_left: false,
            started: Instant::now(),
        }
    }

    pub(super) fn id(&self) -> RequestId {
        self.id
    }

    /// The value of a field in the query, as it stands there.
    pub(super) fn query(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.target.split_once('?')?.1.split('&');
        fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
    }

    /// The first header with this name, which is in lower case.
    pub(super) fn header(&self, name: &'static str) -> Option<&str> {
        self.head.field(name)
    }

    /// The declared length of the body, which a chunked one does not have.
    pub(super) fn declared_length(&self) -> Option<u64> {
        match self.head.framing {
            Framing::Length(length) => Some(length),
            Framing::Chunked => None,
        }
    }

    /// The time since the head arrived.
    pub(super) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// How logs and metrics show this request.
    pub(super) fn leads_to(&mut self, endpoint: &'static str, polled: bool) {
        (self.endpoint, self.polled) = (endpoint, polled);
    }

    /// Whether a handler could begin without waiting for the client.
    pub(super) fn body_has_begun(&self) -> bool {
        self.body == Decoder::Ended || self.used < self.bytes.len()
    }

    /// Sends `100 Continue` to a client that expects it before the body.
    pub(super) fn send_continue(&mut self) {
        if std::mem::take(&mut self.head.awaits_continue) {
            const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
            // If there is no room for so little, the client has not read its previous answer.
            if !self.connection.write_now(CONTINUE).is_ok_and(|count| count == CONTINUE.len()) {
                self.connection.shut_down();
            }
        }
    }

    /// From here on a handler works on the request.
    pub(super) fn begin_work(&mut self, slot: Box<dyn Slot>) {
        self.stall.slot = Some(slot);
    }

    /// Answers that no handler has time for the request.
    pub(super) fn answer_busy(self) {
        metrics::QUEUE_FULL.add();
        let reply = Reply::error(503, "all handlers are busy; try again in a moment");
        // If the socket has no room for the answer, dropping the exchange ends the connection.
        drop(self.answer_at_once(reply.with_header("Retry-After", RETRY_AFTER_SECONDS)));
    }

    /// Ends the connection without an answer, because nobody would read it.
    pub(super) fn abandon(mut self) {
        self.answered = true;
        self.connection.give_back(Next::Close);
    }

    /// For the gate, when it has answered or closed the connection itself.
    pub(super) fn leave_unanswered(&mut self) {
        self.answered = true;
    }

    /// Answers, and waits for the client to take the answer. If the answer breaks off, the connection ends, so that the
    /// client cannot take it for complete.
    pub(super) fn answer(mut self, reply: Reply) {
        let reply = checked(reply);
        let status = reply.status;
        let result = self.send(reply);
        self.finish(status, &result);
    }

    /// Answers without waiting. Returns itself if the socket did not take everything, see [`Self::finish_answer`].
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

    /// Sends what [`Self::answer_at_once`] left. Returns itself if there is nothing left to send.
    pub(super) fn finish_answer(mut self) -> Option<Self> {
        let Some((status, rest)) = self.unsent.take() else { return Some(self) };
        let result = self.write_all(&rest).map(|()| rest.len() as u64);
        self.finish(status, &result);
        None
    }

    fn send(&mut self, reply: Reply) -> io::Result<u64> {
        self.stall.restart();
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
            let available = reader.fill_buf().inspect_err(|error| {
                // This is how a reader that waits for a download reports that the client has gone.
                self.client_left = error.kind() == io::ErrorKind::ConnectionAborted;
            })?;
            if available.is_empty() {
                break;
            }
            let count = available.len();
            self.write_all(available)?;
            sent += count as u64;
            transfer.moved(count as u64);
            reader.consume(count);
        }
        if sent == length {
            Ok(sent)
        } else {
            Err(io::Error::other("the content had another length than was announced"))
        }
    }

    fn head_of(&mut self, reply: &Reply) -> Vec<u8> {
        // The rest of the body would have to be read to find the next request.
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
            let result = self.stall.transfer(&self.connection, PollFlags::OUT, write);
            let kind = result.as_ref().err().map(io::Error::kind);
            self.client_left = matches!(kind, Some(io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset));
            bytes = &bytes[result.map_err(|error| explained(error, "the client stopped reading"))?..];
        }
        self.stall.restart();
        Ok(())
    }

    /// Records the answer, and gives the connection back.
    fn finish(&mut self, status: u16, result: &io::Result<u64>) {
        self.answered = true;
        self.record(status, result);
        let next = match result {
            Err(_) => Next::Close,
            Ok(_) if self.closes => Next::Linger,
            Ok(_) => Next::Head(self.bytes.split_off(self.used)),
        };
        self.stall.slot = None;
        self.connection.give_back(next);
    }

    /// One line in the log and one count in the metrics. Answers to polling clients are logged at level debug,
    /// also the 503 of `/ready`, for which programs may ask every second for days.
    fn record(&self, status: u16, result: &io::Result<u64>) {
        let (time, endpoint) = (self.started.elapsed(), self.endpoint);
        metrics::request(endpoint, status, time);
        let _current = Current::enter(self.id);
        let method = self.head.method.as_str();
        let path = self.head.target.split('?').next().unwrap_or_default();
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        match result {
            Ok(bytes) => {
                let level = if self.polled && (status < 400 || status == 503) { Level::Debug } else { Level::Info };
                if log::log_enabled!(level) {
                    let client = self.connection.client();
                    log::log!(level, method, endpoint, path, status, bytes = *bytes, ms, client; "answered");
                }
            }
            Err(error) => {
                let client = self.connection.client();
                // Who reads a model in pieces, as `loader mount` does, leaves when it has enough.
                let level = if self.client_left && status == 206 { Level::Debug } else { Level::Warn };
                log::log!(level, method, endpoint, path, status, ms, client, error:%; "the answer broke off");
            }
        }
    }
}

/// The reply, or an error in its place: until a byte of the stream has been sent, its failure can still be answered.
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

/// Names the client as the cause of a timeout.
fn explained(error: io::Error, cause: &'static str) -> io::Error {
    if error.kind() == io::ErrorKind::TimedOut { io::Error::new(io::ErrorKind::TimedOut, cause) } else { error }
}

/// Reads the body of the request.
impl Read for Exchange {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.broken {
            return Err(io::Error::other("reading the body has failed before"));
        }
        let mut body = self.body;
        let result = body.read(&mut Input(self), out);
        self.body = body;
        match &result {
            Ok(_) if body == Decoder::Ended => self.stall.restart(),
            Ok(_) => {}
            Err(_) => self.broken = true,
        }
        result.map_err(|error| explained(error, "the client stopped sending"))
    }
}

/// The client's bytes: first those that arrived with the head.
struct Input<'a>(&'a mut Exchange);

impl Input<'_> {
    fn receive(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let Exchange { stall, connection, .. } = &mut *self.0;
        stall.transfer(connection, PollFlags::IN, || connection.read(out))
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
