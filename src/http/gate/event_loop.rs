//! The thread of the gate.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};

use super::clients::{Clients, State, Wait};
use super::feed::{Feed, write_head};
use super::limits::{Limits, OVERFLOW};
use super::listener::Listener;
use super::state::Gate;
use crate::http::exchange::Exchange;
use crate::http::handlers::Handlers;
use crate::http::heartbeat::Watchdog;
use crate::http::reply::{RETRY_AFTER_SECONDS, Reply};
use crate::http::wire::connection::{Connection, Next};
use crate::http::wire::head::{MAX_HEAD, Refusal};
use crate::logging::{Current, RequestId};
use crate::metrics;
use crate::threads::lock;

/// A head must be complete within this time, or within the stall timeout if that is shorter.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The memory for all incomplete heads. An honest head arrives at once and needs none of it.
const MAX_HEADS: usize = 4 << 20;

/// A client that sends on after its last answer gets this much time, and this many bytes, to read that answer. Closing at once
/// would reset the connection, and the client might lose the answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 << 20;

/// A connection that has been idle for less than this makes room only if no head is unfinished.
const NEWCOMER: Duration = Duration::from_secs(1);

/// How long, and how often, a new client waits for requests that are being answered from memory.
const MOMENT: Duration = Duration::from_micros(200);
const MOMENTS: usize = 25;

/// When the service stops, clients that were accepted may send their first request for this long.
const CLOSING: Duration = Duration::from_secs(1);

/// How often time limits are checked.
const TICK: Duration = Duration::from_millis(100);

/// The most connections or events that are handled in one go.
const BATCH: usize = 256;

/// Both directions have ended.
const GONE: EventFlags = EventFlags::HUP.union(EventFlags::ERR);

/// The data of an event is the number of a listener, a wake-up, or the token of a connection.
const WAKE: u64 = 1 << 16;
const FIRST_CLIENT: u64 = WAKE + 1;

const TIMED_OUT: Refusal = Refusal { status: 408, detail: "the request did not arrive in time" };
const NO_ROOM: Refusal = Refusal { status: 503, detail: "there are too many connections; try again in a moment" };

/// The state of the thread.
pub(super) struct EventLoop {
    listeners: Vec<Listener>,
    max_clients: usize,
    stall_timeout: Duration,
    gate: Arc<Gate>,
    handlers: Arc<Handlers>,
    feed: Feed,
    /// The heads of this round for `tiny_http`.
    heads: Vec<u8>,
    clients: Clients,
    next_token: u64,
    /// What sockets are read into.
    buffer: Vec<u8>,
    stop: Arc<AtomicBool>,
    closing_since: Option<Instant>,
}

impl EventLoop {
    pub(super) fn new(
        listeners: Vec<Listener>,
        limits: &Limits,
        gate: Arc<Gate>,
        handlers: Arc<Handlers>,
        feed: Feed,
        stop: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let events = &gate.events;
        epoll::add(&events.epoll, &events.wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        for (number, listener) in listeners.iter().enumerate() {
            let flags = EventFlags::IN | EventFlags::ONESHOT;
            epoll::add(&events.epoll, listener, EventData::new_u64(number as u64), flags)?;
        }
        Ok(Self {
            listeners,
            max_clients: limits.capacity(),
            stall_timeout: limits.stall,
            gate,
            handlers,
            feed,
            heads: Vec::new(),
            clients: Clients::default(),
            next_token: FIRST_CLIENT,
            buffer: vec![0; MAX_HEAD],
            stop,
            closing_since: None,
        })
    }

    /// Runs as long as the process, unless an error ends it for which there is no remedy.
    pub(super) fn run(&mut self, mut accept_loop: Watchdog) -> io::Result<()> {
        let mut events = Vec::with_capacity(BATCH);
        let mut last_tick = Instant::now();
        let tick = Timespec { tv_sec: 0, tv_nsec: TICK.subsec_nanos() as _ };
        let gate = Arc::clone(&self.gate);
        loop {
            match epoll::wait(&gate.events.epoll, rustix::buffer::spare_capacity(&mut events), Some(&tick)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            // First of all, so that an event of a connection finds it returned.
            self.take_returned();
            for exchange in gate.awaiting.take_all() {
                self.clients.set(exchange.connection().token, State::Body(exchange));
            }
            for event in events.drain(..) {
                match event.data.u64() {
                    WAKE => drop(rustix::io::read(&gate.events.wake, &mut [0; 8]).ok()),
                    number if number < WAKE => self.accept(number as usize),
                    token => self.on_event(token, event.flags),
                }
            }
            self.flush()?;
            if last_tick.elapsed() >= TICK {
                last_tick = Instant::now();
                self.tick();
                gate.heartbeat.beat();
                accept_loop.check();
            }
        }
    }

    fn accept(&mut self, number: usize) {
        for _ in 0..BATCH {
            let Some(listener) = self.listeners.get(number) else { return };
            match listener.accept() {
                Ok((socket, address)) => self.admit(socket, address),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The client has left already.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    log::error!("a connection cannot be accepted: {error}");
                    self.make_room();
                    // The next tick tries again.
                    return;
                }
            }
        }
        self.listen(number);
    }

    fn listen(&self, number: usize) {
        let (data, events) = (EventData::new_u64(number as u64), EventFlags::IN | EventFlags::ONESHOT);
        if let Some(listener) = self.listeners.get(number)
            && let Err(error) = epoll::modify(&self.gate.events.epoll, listener, data, events)
        {
            log::error!("connections cannot be accepted: epoll: {error}");
        }
    }

    fn admit(&mut self, socket: OwnedFd, address: Option<IpAddr>) {
        let has_room = self.has_room() || self.make_room() || self.wait_for_room();
        if self.clients.len() >= self.max_clients + OVERFLOW {
            let Some((_, longest)) = self.clients.longest(Wait::Lingering) else { return };
            self.drop_client(longest);
        }
        let token = self.next_token;
        self.next_token += 1;
        let connection = Arc::new(Connection::new(token, socket, address, Arc::clone(&self.gate.events)));
        self.clients.add(connection);
        metrics::CONNECTIONS.add();
        if has_room {
            // If its request has arrived with it, it is not an idle connection that the next client replaces.
            self.on_event(token, EventFlags::IN);
        } else {
            self.refuse(token, NO_ROOM);
        }
    }

    fn has_room(&self) -> bool {
        self.clients.in_use() < self.max_clients
    }

    /// Requests on their way to the accept loop may be answered, and their connections idle, in a moment.
    fn wait_for_room(&mut self) -> bool {
        for _ in 0..MOMENTS {
            if lock(&self.gate.passed).is_empty() || self.flush().is_err() {
                break;
            }
            std::thread::sleep(MOMENT);
            self.take_returned();
            if self.has_room() || self.make_room() {
                return true;
            }
        }
        false
    }

    /// Passes the heads of this round to `tiny_http`.
    fn flush(&mut self) -> io::Result<()> {
        if !self.heads.is_empty() {
            self.feed.pass(&self.heads)?;
            self.heads.clear();
        }
        Ok(())
    }

    /// Ends the connection that will be missed least. False if all are in use. An honest head is complete when it is read, so
    /// an incomplete one may go, however young it is. A client that has just connected may be about to send its request.
    fn make_room(&mut self) -> bool {
        let (idle, head) = (self.clients.longest(Wait::Idle), self.clients.longest(Wait::Head));
        if let Some((since, token)) = idle
            && (head.is_none() || since.elapsed() >= NEWCOMER)
        {
            self.drop_client(token);
        } else if let Some((_, token)) = head.or(self.clients.longest(Wait::Body)) {
            self.refuse(token, TIMED_OUT);
        } else {
            return false;
        }
        true
    }

    fn drop_client(&mut self, token: u64) {
        if self.clients.remove(token) {
            metrics::CONNECTIONS.remove();
        }
    }

    /// Answers in place of an endpoint, and ends the connection when the client has read the answer.
    fn refuse(&mut self, token: u64, refusal: Refusal) {
        let Some(client) = self.clients.get_mut(token) else { return };
        let (connection, since) = (Arc::clone(&client.connection), client.since);
        let id = RequestId::next_for(connection.address);
        let _current = Current::enter(id);
        let (status, client) = (refusal.status, connection.client());
        metrics::request(metrics::NO_ENDPOINT, status, since.elapsed());
        log::info!(status, client; "refused: {}", refusal.detail);
        // A request that waits for its body must not answer as well.
        if let Some(State::Body(mut exchange)) = self.clients.set(token, State::Lingering(0)) {
            exchange.leave_unanswered();
        }
        let mut reply = Reply::error(status, refusal.detail);
        if status == NO_ROOM.status {
            reply = reply.with_header("Retry-After", RETRY_AFTER_SECONDS);
        }
        let answer = reply.into_last_answer(id);
        // A client that has sent all it wants to send cannot lose the answer when the connection is closed.
        let is_written = connection.write_now(&answer).is_ok_and(|count| count == answer.len());
        if is_written && connection.is_open() {
            connection.give_back(Next::Linger);
        } else {
            self.drop_client(token);
        }
    }

    fn take_returned(&mut self) {
        for (token, next) in self.gate.events.returned.take_all() {
            self.returned(token, next);
        }
    }

    /// A request has given its connection back.
    fn returned(&mut self, token: u64, next: Next) {
        match next {
            Next::Close => self.drop_client(token),
            Next::Linger => drop(self.clients.set(token, State::Lingering(0))),
            Next::Head(_) if self.stop.load(Ordering::Relaxed) => self.drop_client(token),
            Next::Head(bytes) if bytes.is_empty() => drop(self.clients.set(token, State::Idle)),
            Next::Head(bytes) => {
                self.clients.set(token, State::Idle);
                self.take_bytes(token, &bytes);
            }
        }
    }

    fn watch(&mut self, token: u64) {
        if let Some(client) = self.clients.get_mut(token) {
            client.connection.watch_for_bytes();
        }
    }

    /// A connection has bytes to read, or its client has left.
    fn on_event(&mut self, token: u64, flags: EventFlags) {
        let Some(client) = self.clients.get_mut(token) else { return };
        let mut bytes = std::mem::take(&mut self.buffer);
        match &mut client.state {
            State::Lent => client.connection.hung_up(),
            State::Idle | State::Head(_) => match client.connection.read(&mut bytes) {
                Ok(count @ 1..) => self.take_bytes(token, &bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.watch(token),
                _ => self.drop_client(token),
            },
            State::Body(exchange) if flags.intersects(GONE) => {
                exchange.leave_unanswered();
                self.drop_client(token);
            }
            State::Body(_) => self.pass_on(token),
            State::Lingering(read) => match client.connection.read(&mut bytes) {
                // One portion at a time, so that other clients get their turn.
                Ok(count @ 1..) if *read < LINGER_BYTES => {
                    *read += count;
                    self.watch(token);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.watch(token),
                _ => self.drop_client(token),
            },
        }
        self.buffer = bytes;
    }

    /// Passes a request whose body has begun to a handler.
    fn pass_on(&mut self, token: u64) {
        if let Some(State::Body(exchange)) = self.clients.set(token, State::Lent)
            && let Err(exchange) = self.handlers.submit(exchange)
        {
            exchange.answer_busy();
        }
    }

    /// Takes bytes of a request head.
    fn take_bytes(&mut self, token: u64, bytes: &[u8]) {
        match self.clients.add_to_head(token, bytes) {
            Ok(Some((head, rest))) => {
                let Some(client) = self.clients.get_mut(token) else { return };
                write_head(&mut self.heads, &head.method, &head.target, token);
                let exchange = Exchange::new(head, rest, Arc::clone(&client.connection), self.stall_timeout);
                self.clients.set(token, State::Lent);
                lock(&self.gate.passed).insert(token, Box::new(exchange));
            }
            Ok(None) => {
                if self.clients.head_bytes > MAX_HEADS
                    && let Some((_, longest)) = self.clients.longest(Wait::Head)
                {
                    self.refuse(longest, TIMED_OUT);
                }
                self.watch(token);
            }
            Err(refusal) => self.refuse(token, refusal),
        }
    }

    /// Accepts no more connections. Clients that were accepted and have had no answer yet still get one: if they had been left
    /// in the backlog of a systemd socket, the next process would have served them.
    fn close(&mut self) {
        self.listeners.clear();
        for token in self.clients.between_requests() {
            self.drop_client(token);
        }
        let since = *self.closing_since.get_or_insert_with(Instant::now);
        let is_quiet = !self.clients.has_newcomers() && lock(&self.gate.passed).is_empty();
        if is_quiet || since.elapsed() >= CLOSING {
            self.gate.closed.store(true, Ordering::Relaxed);
        }
    }

    /// Enforces the time limits.
    fn tick(&mut self) {
        let limits = [
            (Wait::Idle, self.stall_timeout),
            (Wait::Head, self.stall_timeout.min(HEAD_TIMEOUT)),
            (Wait::Body, self.stall_timeout),
            (Wait::Lingering, LINGER),
        ];
        for (wait, limit) in limits {
            while let Some((since, token)) = self.clients.longest(wait)
                && since.elapsed() >= limit
            {
                match wait {
                    Wait::Head | Wait::Body => self.refuse(token, TIMED_OUT),
                    Wait::Idle | Wait::Lingering => self.drop_client(token),
                }
            }
        }
        self.handlers.make_room();
        if self.stop.load(Ordering::Relaxed) {
            self.close();
        }
        for number in 0..self.listeners.len() {
            self.listen(number);
        }
    }
}
