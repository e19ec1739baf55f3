//! The gate: one thread that accepts clients, reads their request heads, and keeps their connections between requests.
//!
//! A head that keeps to the rules goes to `tiny_http` over a private connection, as two checked words and the number of the
//! client's connection; the accept loop gets it from there and takes the request from [`Gate::take`]. Nothing else of a
//! client reaches the library. A client that is slow, idle or gone costs a descriptor, never a thread.

mod feed;
mod head;
mod listener;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::process::{Resource, getrlimit, setrlimit};

use super::connection::{Connection, Next, Returns};
use super::exchange::Exchange;
use super::handlers::Handlers;
use super::pulse::{Pulse, Watch};
use super::reply::Reply;
use super::router::NO_ENDPOINT;
use crate::logging::{Current, RequestId};
use crate::metrics;
use crate::threads::{self, Mailbox, lock};

use self::feed::{Feed, write_head};
use self::head::{HeadBuffer, Refusal};

pub(super) use self::feed::Requests;
pub(super) use self::head::{Framing, Head, MAX_HEAD, fuzz as fuzz_head};
pub use self::listener::{Listener, reachable};

/// A head must be whole within this time, or the stall limit if that is shorter.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// The memory of all heads that are not whole yet. An honest head arrives at once and takes none of it.
const MAX_HEADS: usize = 4 << 20;

/// A client that sends on after its last answer gets so long, and so many bytes, to read that answer. Closing at once would
/// reset the connection, and a reset overtakes the answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 << 20;

/// Connections beyond the limit that are told so.
const OVERFLOW: usize = 64;

/// A client that has begun to send loses its connection to a newcomer only after this time.
const SETTLED: Duration = Duration::from_secs(1);

/// How often limits of time are looked at.
const TICK: Duration = Duration::from_millis(100);

/// Descriptors for everything else: logs, the engine, and what each handler opens.
const OTHER_DESCRIPTORS: usize = 32;
const DESCRIPTORS_PER_HANDLER: usize = 16;

/// Accepted or handled in one go.
const BATCH: usize = 256;

/// What the gate keeps to.
pub(super) struct Limits {
    /// `MAX_CONNECTIONS`.
    pub(super) connections: usize,
    /// `HANDLER_THREADS`.
    pub(super) handlers: usize,
    /// `CLIENT_STALL_SECONDS`.
    pub(super) stall: Duration,
}

/// The gate as the accept loop sees it.
pub(super) struct Gate {
    shared: Arc<Shared>,
    pub(super) pulse: Arc<Pulse>,
}

struct Shared {
    returns: Arc<Returns>,
    /// Requests that are on their way through `tiny_http`, by connection.
    passed: Mutex<HashMap<u64, Exchange>>,
    /// Requests that wait for the first byte of their body.
    awaiting: Mailbox<Exchange>,
    /// No more clients come in.
    closed: AtomicBool,
}

impl Gate {
    /// Opens the gate. Requests come out of the other end of the answer; `accept_loop` must beat as long as it lives.
    pub(super) fn open(
        listeners: Vec<Listener>,
        limits: &Limits,
        handlers: Arc<Handlers>,
        accept_loop: Arc<Pulse>,
        stop: Arc<AtomicBool>,
    ) -> io::Result<(Self, Requests)> {
        let (feed, requests) = feed::connect()?;
        let returns = Arc::new(Returns::new()?);
        epoll::add(&returns.epoll, &returns.wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        for (number, listener) in listeners.iter().enumerate() {
            epoll::add(
                &returns.epoll,
                listener,
                EventData::new_u64(number as u64),
                EventFlags::IN | EventFlags::ONESHOT,
            )?;
        }
        let shared = Arc::new(Shared {
            returns,
            passed: Mutex::default(),
            awaiting: Mailbox::default(),
            closed: AtomicBool::new(false),
        });
        let pulse = Arc::new(Pulse::default());
        let mut keeper = Keeper {
            listeners,
            max_clients: capacity(limits),
            stall_limit: limits.stall,
            shared: Arc::clone(&shared),
            handlers,
            feed,
            heads: Vec::new(),
            clients: HashMap::new(),
            waiting: BTreeSet::new(),
            head_bytes: 0,
            next_token: FIRST_CLIENT,
            stop,
        };
        let (ours, accept_loop) = (Arc::clone(&pulse), Watch::new("the accept loop", accept_loop));
        threads::spawn("gate", move || {
            let ended = catch_unwind(AssertUnwindSafe(|| keeper.keep(&ours, accept_loop)));
            log::error!(
                "the thread that reads requests has ended ({ended:?}); the process ends with it, to be started again"
            );
            std::process::abort();
        })?;
        Ok((Self { shared, pulse }, requests))
    }

    /// The request with this number, if its client is still there.
    pub(super) fn take(&self, number: u64) -> Option<Exchange> {
        lock(&self.shared.passed).remove(&number)
    }

    /// Whether it has been told to stop and has closed.
    pub(super) fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Relaxed)
    }

    /// Keeps a request until its body begins, and then has a handler work on it.
    pub(super) fn await_body(&self, mut exchange: Exchange) {
        exchange.invite();
        let connection = Arc::clone(exchange.connection());
        self.shared.awaiting.put(exchange);
        connection.watch_for_bytes();
    }
}

/// How many clients there may be at once. Raises the process's limit of descriptors if that must and can be.
fn capacity(limits: &Limits) -> usize {
    let others = OTHER_DESCRIPTORS + DESCRIPTORS_PER_HANDLER * limits.handlers;
    let wanted = limits.connections + OVERFLOW + others;
    let mut descriptors = getrlimit(Resource::Nofile);
    if descriptors.current.is_some_and(|current| current < wanted as u64) {
        let most = descriptors.maximum.unwrap_or(u64::MAX);
        descriptors.current = Some(most.min(wanted as u64));
        let _ = setrlimit(Resource::Nofile, descriptors);
    }
    let current = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |current| current as usize);
    let capacity = limits.connections.min(current.saturating_sub(others + OVERFLOW).max(current / 2));
    if capacity < limits.connections {
        log::warn!(
            "the limit of {current} descriptors leaves room for {capacity} of MAX_CONNECTIONS ({})",
            limits.connections
        );
    }
    capacity
}

/// What events are about: a listener by its number, a wake-up, or a client's connection.
const WAKE: u64 = 1 << 16;
const FIRST_CLIENT: u64 = WAKE + 1;

/// A connection, and what it is waited for.
struct Client {
    connection: Arc<Connection>,
    state: State,
    since: Instant,
}

enum State {
    /// Between requests.
    Idle,
    /// A head has begun.
    Head(HeadBuffer),
    /// The body has not begun.
    Body(Exchange),
    /// The last answer is being read. So many bytes have come since.
    Lingering(usize),
    /// A request has it.
    Lent,
}

/// What a client is waited for, in the order in which they make room for newcomers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wait {
    Idle,
    Head,
    Body,
    Lingering,
}

impl State {
    fn wait(&self) -> Option<Wait> {
        match self {
            Self::Idle => Some(Wait::Idle),
            Self::Head(_) => Some(Wait::Head),
            Self::Body(_) => Some(Wait::Body),
            Self::Lingering(_) => Some(Wait::Lingering),
            Self::Lent => None,
        }
    }

    fn head_bytes(&self) -> usize {
        match self {
            Self::Head(head) => head.size(),
            _ => 0,
        }
    }
}

const TIMED_OUT: Refusal = Refusal { status: 408, detail: "the request did not arrive in time" };
const NO_ROOM: Refusal = Refusal { status: 503, detail: "there are too many connections; try again in a moment" };

/// The thread behind the gate.
struct Keeper {
    listeners: Vec<Listener>,
    max_clients: usize,
    stall_limit: Duration,
    shared: Arc<Shared>,
    handlers: Arc<Handlers>,
    feed: Feed,
    /// Heads for `tiny_http` of this round.
    heads: Vec<u8>,
    clients: HashMap<u64, Client>,
    /// All clients that are waited for, the longest first.
    waiting: BTreeSet<(Wait, Instant, u64)>,
    head_bytes: usize,
    next_token: u64,
    stop: Arc<AtomicBool>,
}

impl Keeper {
    fn keep(&mut self, pulse: &Pulse, mut accept_loop: Watch) -> io::Result<()> {
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
            for (token, next) in shared.returns.mailbox.take_all() {
                self.returned(token, next);
            }
            for exchange in shared.awaiting.take_all() {
                self.set(exchange.connection().token, State::Body(exchange));
            }
            for event in events.drain(..) {
                match event.data.u64() {
                    WAKE => drop(rustix::io::read(&shared.returns.wake, &mut [0; 8]).ok()),
                    number if number < WAKE => self.accept(number as usize),
                    token => self.heard(token, event.flags),
                }
            }
            if !self.heads.is_empty() {
                self.feed.pass(&self.heads)?;
                self.heads.clear();
            }
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
                Ok((socket, client)) => self.admit(socket, client),
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

    fn admit(&mut self, socket: super::connection::Socket, client: String) {
        let has_room = self.clients.len() < self.max_clients || self.make_room();
        if self.clients.len() >= self.max_clients + OVERFLOW {
            return;
        }
        let token = self.next_token;
        self.next_token += 1;
        let returns = Arc::clone(&self.shared.returns);
        let connection = Arc::new(Connection { token, socket, client, gone: Arc::default(), returns });
        let events = EventFlags::IN | EventFlags::RDHUP | EventFlags::ONESHOT;
        let data = EventData::new_u64(token);
        if let Err(error) = epoll::add(&self.shared.returns.epoll, &connection.socket, data, events) {
            log::error!("a connection cannot be waited for: {error}");
            return;
        }
        self.clients.insert(token, Client { connection, state: State::Lent, since: Instant::now() });
        metrics::CONNECTIONS.add();
        self.set(token, State::Idle);
        if !has_room {
            self.refuse(token, NO_ROOM);
        }
    }

    /// Ends the connection that is missed least. False if all are in use.
    fn make_room(&mut self) -> bool {
        let now = Instant::now();
        let victim = [Wait::Idle, Wait::Head, Wait::Body, Wait::Lingering].into_iter().find_map(|wait| {
            let (_, since, token) = self.longest(wait)?;
            (wait == Wait::Idle || now - since >= SETTLED).then_some((wait, token))
        });
        match victim {
            Some((Wait::Head | Wait::Body, token)) => self.refuse(token, TIMED_OUT),
            Some((Wait::Idle | Wait::Lingering, token)) => self.drop_client(token),
            None => return false,
        }
        true
    }

    fn longest(&self, wait: Wait) -> Option<(Wait, Instant, u64)> {
        self.waiting.iter().find(|(found, ..)| *found >= wait).filter(|(found, ..)| *found == wait).copied()
    }

    /// Changes what a client is waited for.
    fn set(&mut self, token: u64, state: State) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        if let Some(wait) = client.state.wait() {
            self.waiting.remove(&(wait, client.since, token));
        }
        self.head_bytes = self.head_bytes + state.head_bytes() - client.state.head_bytes();
        // The time of a head runs from its first byte.
        if !matches!((&client.state, &state), (State::Head(_), State::Head(_))) {
            client.since = Instant::now();
        }
        if let Some(wait) = state.wait() {
            self.waiting.insert((wait, client.since, token));
        }
        client.state = state;
    }

    fn drop_client(&mut self, token: u64) {
        self.set(token, State::Lent);
        if self.clients.remove(&token).is_some() {
            metrics::CONNECTIONS.remove();
        }
    }

    /// Answers in the place of the service, and ends the connection when the client has read that.
    fn refuse(&mut self, token: u64, refusal: Refusal) {
        let Some(client) = self.clients.get(&token) else { return };
        let (connection, since) = (Arc::clone(&client.connection), client.since);
        let id = RequestId::next();
        let _current = Current::enter(id);
        let (status, client) = (refusal.status, connection.client.as_str());
        metrics::request(NO_ENDPOINT, status, since.elapsed());
        log::info!(status, client; "refused: {}", refusal.detail);
        // The request of a body that has not begun must not answer, too.
        if let Some(Client { state: State::Body(exchange), .. }) = self.clients.get_mut(&token) {
            exchange.leave_unanswered();
        }
        self.set(token, State::Lent);
        let mut reply = Reply::error(status, refusal.detail);
        if status == NO_ROOM.status {
            reply = reply.with_header("Retry-After", "2");
        }
        let answer = reply.into_last_answer(id);
        match connection.write_now(&answer) {
            Ok(count) if count == answer.len() => connection.give_back(Next::Linger),
            _ => self.drop_client(token),
        }
    }

    /// A request has ended.
    fn returned(&mut self, token: u64, next: Next) {
        match next {
            Next::Close => self.drop_client(token),
            Next::Linger => {
                self.set(token, State::Lingering(0));
                self.watch(token);
            }
            Next::Head(_) if self.stop.load(Ordering::Relaxed) => self.drop_client(token),
            Next::Head(bytes) if bytes.is_empty() => self.set(token, State::Idle),
            Next::Head(bytes) => {
                self.set(token, State::Idle);
                self.take_bytes(token, &bytes);
            }
        }
    }

    fn watch(&self, token: u64) {
        if let Some(client) = self.clients.get(&token) {
            client.connection.watch_for_bytes();
        }
    }

    /// Something has come on a connection, or its client has gone.
    fn heard(&mut self, token: u64, flags: EventFlags) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        match &mut client.state {
            State::Lent => {
                client.connection.gone.store(true, Ordering::Relaxed);
            }
            State::Idle | State::Head(_) => {
                let mut bytes = [0; MAX_HEAD];
                match client.connection.read(&mut bytes) {
                    Ok(0) => self.drop_client(token),
                    Ok(count) => self.take_bytes(token, &bytes[..count]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.watch(token),
                    Err(_) => self.drop_client(token),
                }
            }
            State::Body(exchange) if flags.intersects(EventFlags::HUP | EventFlags::ERR) => {
                exchange.leave_unanswered();
                self.drop_client(token);
            }
            State::Body(_) => self.pass_on(token),
            State::Lingering(read) => {
                let mut waste = [0; MAX_HEAD];
                loop {
                    match client.connection.read(&mut waste) {
                        Ok(count @ 1..) if *read < LINGER_BYTES => *read += count,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return self.watch(token),
                        _ => return self.drop_client(token),
                    }
                }
            }
        }
    }

    /// The body has begun: a handler's turn.
    fn pass_on(&mut self, token: u64) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        let wait = (Wait::Body, client.since, token);
        let State::Body(exchange) = std::mem::replace(&mut client.state, State::Lent) else { return };
        self.waiting.remove(&wait);
        if let Err(exchange) = self.handlers.submit(exchange) {
            exchange.answer_busy();
        }
    }

    /// Bytes of a request's head.
    fn take_bytes(&mut self, token: u64, bytes: &[u8]) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        let mut head = match &mut client.state {
            State::Head(head) => {
                self.head_bytes -= head.size();
                std::mem::take(head)
            }
            _ => HeadBuffer::default(),
        };
        head.push(bytes);
        match head.take_head() {
            Ok(Some((head, rest))) => {
                write_head(&mut self.heads, &head.method, &head.target, token);
                let exchange = Exchange::new(head, rest, Arc::clone(&client.connection), self.stall_limit);
                self.set(token, State::Lent);
                lock(&self.shared.passed).insert(token, exchange);
            }
            Ok(None) => {
                self.set(token, State::Head(head));
                if self.head_bytes > MAX_HEADS
                    && let Some((.., longest)) = self.longest(Wait::Head)
                {
                    self.refuse(longest, TIMED_OUT);
                }
                self.watch(token);
            }
            Err(refusal) => self.refuse(token, refusal),
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
            while let Some((_, since, token)) = self.longest(wait)
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
            self.listeners.clear();
            while let Some((.., token)) = self.longest(Wait::Idle) {
                self.drop_client(token);
            }
            self.shared.closed.store(true, Ordering::Relaxed);
        }
        for number in 0..self.listeners.len() {
            self.listen(number);
        }
    }
}
