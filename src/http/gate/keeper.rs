//! The thread behind the gate.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};

use super::super::connection::{Connection, Next, Socket};
use super::super::exchange::Exchange;
use super::super::handlers::Handlers;
use super::super::pulse::{Pulse, Watch};
use super::super::reply::{RETRY_AFTER_SECONDS, Reply};
use super::super::router::NO_ENDPOINT;
use super::clients::{Clients, State, Wait};
use super::feed::{Feed, write_head};
use super::head::{MAX_HEAD, Refusal};
use super::listener::Listener;
use super::{OVERFLOW, Shared};
use crate::logging::{Current, RequestId};
use crate::metrics;
use crate::threads::lock;

/// A head must be whole within this time, or the stall limit if that is shorter.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// The memory of all heads that are not whole yet. An honest head arrives at once and takes none of it.
const MAX_HEADS: usize = 4 << 20;

/// A client that sends on after its last answer gets so long, and so many bytes, to read that answer. Closing at once would
/// reset the connection, and a reset overtakes the answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 << 20;

/// How long, and how often, a newcomer waits for requests that are answered in no time.
const MOMENT: Duration = Duration::from_micros(200);
const MOMENTS: usize = 25;

/// At the end, how long those who were let in may take to send their first request.
const CLOSING: Duration = Duration::from_secs(1);

/// How often limits of time are looked at.
const TICK: Duration = Duration::from_millis(100);

/// Accepted or handled in one go.
const BATCH: usize = 256;

/// Both directions have ended.
const GONE: EventFlags = EventFlags::HUP.union(EventFlags::ERR);

/// What events are about: a listener by its number, a wake-up, or a client's connection.
pub(super) const WAKE: u64 = 1 << 16;
const FIRST_CLIENT: u64 = WAKE + 1;

const TIMED_OUT: Refusal = Refusal { status: 408, detail: "the request did not arrive in time" };
const NO_ROOM: Refusal = Refusal { status: 503, detail: "there are too many connections; try again in a moment" };

/// The state of that thread.
pub(super) struct Keeper {
    listeners: Vec<Listener>,
    max_clients: usize,
    stall_limit: Duration,
    shared: Arc<Shared>,
    handlers: Arc<Handlers>,
    feed: Feed,
    /// Heads for `tiny_http` of this round.
    heads: Vec<u8>,
    clients: Clients,
    next_token: u64,
    /// What is read goes here first.
    scratch: Vec<u8>,
    stop: Arc<AtomicBool>,
    /// Since when it closes.
    closing: Option<Instant>,
}

impl Keeper {
    pub(super) fn new(
        listeners: Vec<Listener>,
        max_clients: usize,
        stall_limit: Duration,
        shared: Arc<Shared>,
        handlers: Arc<Handlers>,
        feed: Feed,
        stop: Arc<AtomicBool>,
    ) -> Self {
        Self {
            listeners,
            max_clients,
            stall_limit,
            shared,
            handlers,
            feed,
            heads: Vec::new(),
            clients: Clients::default(),
            next_token: FIRST_CLIENT,
            scratch: vec![0; MAX_HEAD],
            stop,
            closing: None,
        }
    }

    /// Goes on as long as the process. Only a fault that nothing can be done about ends it.
    pub(super) fn keep(&mut self, pulse: &Pulse, mut accept_loop: Watch) -> io::Result<()> {
        let mut events = Vec::with_capacity(BATCH);
        let mut last_tick = Instant::now();
        let tick = Timespec { tv_sec: 0, tv_nsec: TICK.subsec_nanos() as _ };
        let shared = Arc::clone(&self.shared);
        loop {
            match epoll::wait(&shared.returns.epoll, rustix::buffer::spare_capacity(&mut events), Some(&tick)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            // Before the events: one of a connection that has been returned finds it here.
            self.take_returns();
            for exchange in shared.awaiting.take_all() {
                self.clients.set(exchange.connection().token, State::Body(exchange));
            }
            for event in events.drain(..) {
                match event.data.u64() {
                    WAKE => drop(rustix::io::read(&shared.returns.wake, &mut [0; 8]).ok()),
                    number if number < WAKE => self.accept(number as usize),
                    token => self.heard(token, event.flags),
                }
            }
            self.flush()?;
            if last_tick.elapsed() >= TICK {
                last_tick = Instant::now();
                self.tick();
                pulse.beat();
                accept_loop.look();
            }
        }
    }

    fn accept(&mut self, number: usize) {
        for _ in 0..BATCH {
            let Some(listener) = self.listeners.get(number) else { return };
            match listener.accept() {
                Ok((socket, address)) => self.admit(socket, address),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The client has gone already.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    log::error!("a connection cannot be accepted: {error}");
                    self.make_room();
                    // It is tried again with the next tick.
                    return;
                }
            }
        }
        self.listen(number);
    }

    fn listen(&self, number: usize) {
        let (data, events) = (EventData::new_u64(number as u64), EventFlags::IN | EventFlags::ONESHOT);
        if let Some(listener) = self.listeners.get(number)
            && let Err(error) = epoll::modify(&self.shared.returns.epoll, listener, data, events)
        {
            log::error!("connections cannot be waited for: {error}");
        }
    }

    fn admit(&mut self, socket: Socket, address: Option<IpAddr>) {
        let has_room = self.has_room() || self.make_room() || self.wait_for_room();
        if self.clients.len() >= self.max_clients + OVERFLOW {
            let Some((_, longest)) = self.clients.longest(Wait::Lingering) else { return };
            self.drop_client(longest);
        }
        let token = self.next_token;
        self.next_token += 1;
        let returns = Arc::clone(&self.shared.returns);
        let connection = Arc::new(Connection::new(token, socket, address, returns));
        let data = EventData::new_u64(token);
        if let Err(error) = epoll::add(&self.shared.returns.epoll, &connection.socket, data, EventFlags::ONESHOT) {
            log::error!("a connection cannot be waited for: {error}");
            return;
        }
        self.clients.add(connection);
        metrics::CONNECTIONS.add();
        if has_room {
            // Its request may have come with it: then it is not the idle connection that the next newcomer ends.
            self.heard(token, EventFlags::IN);
        } else {
            self.refuse(token, NO_ROOM);
        }
    }

    fn has_room(&self) -> bool {
        self.clients.in_use() < self.max_clients
    }

    /// Requests on their way to the accept loop may be answered, and their connections free, in a moment.
    fn wait_for_room(&mut self) -> bool {
        for _ in 0..MOMENTS {
            if lock(&self.shared.passed).is_empty() || self.flush().is_err() {
                break;
            }
            std::thread::sleep(MOMENT);
            self.take_returns();
            if self.has_room() || self.make_room() {
                return true;
            }
        }
        false
    }

    /// Hands the heads of this round to `tiny_http`.
    fn flush(&mut self) -> io::Result<()> {
        if !self.heads.is_empty() {
            self.feed.pass(&self.heads)?;
            self.heads.clear();
        }
        Ok(())
    }

    /// Ends the connection that is missed least. False if all are in use. An honest head is whole when it is read, so that one
    /// which is not can go, however young it is.
    fn make_room(&mut self) -> bool {
        if let Some((_, token)) = self.clients.longest(Wait::Idle) {
            self.drop_client(token);
        } else if let Some((_, token)) = self.clients.longest(Wait::Head).or(self.clients.longest(Wait::Body)) {
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

    /// Answers in the place of the service, and ends the connection when the client has read that.
    fn refuse(&mut self, token: u64, refusal: Refusal) {
        let Some(client) = self.clients.get_mut(token) else { return };
        let (connection, since) = (Arc::clone(&client.connection), client.since);
        let id = RequestId::next_for(connection.address);
        let _current = Current::enter(id);
        let (status, client) = (refusal.status, connection.client());
        metrics::request(NO_ENDPOINT, status, since.elapsed());
        log::info!(status, client; "refused: {}", refusal.detail);
        // The request of a body that has not begun must not answer, too.
        if let Some(State::Body(mut exchange)) = self.clients.set(token, State::Lingering(0)) {
            exchange.leave_unanswered();
        }
        let mut reply = Reply::error(status, refusal.detail);
        if status == NO_ROOM.status {
            reply = reply.with_header("Retry-After", RETRY_AFTER_SECONDS);
        }
        let answer = reply.into_last_answer(id);
        match connection.write_now(&answer) {
            Ok(count) if count == answer.len() => connection.give_back(Next::Linger),
            _ => self.drop_client(token),
        }
    }

    fn take_returns(&mut self) {
        for (token, next) in self.shared.returns.mailbox.take_all() {
            self.returned(token, next);
        }
    }

    /// A request has ended.
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

    /// Something has come on a connection, or its client has gone.
    fn heard(&mut self, token: u64, flags: EventFlags) {
        let Some(client) = self.clients.get_mut(token) else { return };
        let mut bytes = std::mem::take(&mut self.scratch);
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
                // One portion at a time, however much there is: others have their turn.
                Ok(count @ 1..) if *read < LINGER_BYTES => {
                    *read += count;
                    self.watch(token);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.watch(token),
                _ => self.drop_client(token),
            },
        }
        self.scratch = bytes;
    }

    /// The body has begun: a handler's turn.
    fn pass_on(&mut self, token: u64) {
        if let Some(State::Body(exchange)) = self.clients.set(token, State::Lent)
            && let Err(exchange) = self.handlers.submit(exchange)
        {
            exchange.answer_busy();
        }
    }

    /// Bytes of a request's head.
    fn take_bytes(&mut self, token: u64, bytes: &[u8]) {
        match self.clients.add_to_head(token, bytes) {
            Ok(Some((head, rest))) => {
                let Some(client) = self.clients.get_mut(token) else { return };
                write_head(&mut self.heads, &head.method, &head.target, token);
                let exchange = Exchange::new(head, rest, Arc::clone(&client.connection), self.stall_limit);
                self.clients.set(token, State::Lent);
                lock(&self.shared.passed).insert(token, Box::new(exchange));
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

    /// Takes no more connections. Who has been let in and has not had an answer yet gets one: it cannot know that it came too
    /// late, and with a socket from systemd it would have been served by the next process.
    fn close(&mut self) {
        self.listeners.clear();
        for token in self.clients.between_requests() {
            self.drop_client(token);
        }
        let since = *self.closing.get_or_insert_with(Instant::now);
        let is_quiet = !self.clients.has_newcomers() && lock(&self.shared.passed).is_empty();
        if is_quiet || since.elapsed() >= CLOSING {
            self.shared.closed.store(true, Ordering::Relaxed);
        }
    }

    /// Looks at all limits of time.
    fn tick(&mut self) {
        let limits = [
            (Wait::Idle, self.stall_limit),
            (Wait::Head, self.stall_limit.min(HEAD_LIMIT)),
            (Wait::Body, self.stall_limit),
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
