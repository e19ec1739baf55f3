//! Who answers a request: the accept loop itself what is in memory, a handler thread what may block.

use std::collections::{HashMap, HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::connection::{Listener, Peer, SocketId};
use super::exchange::Exchange;
use super::origin::{Sender, Way};
use super::reply::Reply;
use super::router::{Route, RouteError, route};
use super::routes;
use super::sweep::{MAX_HEAD, Sweep};
use super::watch::Watch;
use crate::configuration::BindAddress;
use crate::logging::Current;
use crate::metrics;
use crate::service::Service;
use crate::threads;

/// Requests that wait for a handler thread, for each such thread. More are answered 503.
const QUEUED_PER_HANDLER: usize = 4;

/// Requests that a client may send on one connection before it has read the answer to the first.
const MAX_PIPELINED: usize = 16;

/// When to come back after a 503.
const RETRY_AFTER_SECONDS: &str = "2";

/// How long to wait before connections are accepted again, when that failed: connections that were closed for it take a
/// moment to end. Meanwhile others wait in the socket's queue.
const RESTART_PAUSE: Duration = Duration::from_millis(50);

/// The service on its listener.
pub struct Server {
    service: Arc<Service>,
    listener: Listener,
    stop: Arc<AtomicBool>,
}

/// What is left when the accept loop has ended: the handlers with their last transfers.
pub struct Running {
    handlers: Vec<JoinHandle<()>>,
}

impl Running {
    /// Waits for the handlers to finish, but no longer than `patience`. Answers whether all did.
    #[must_use]
    pub fn finish_within(self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if self.handlers.iter().all(JoinHandle::is_finished) {
                return true;
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.handlers.iter().all(JoinHandle::is_finished)
    }
}

impl Server {
    /// Gets ready to serve. Setting `stop` ends [`serve`](Self::serve) soon after.
    #[must_use]
    pub fn new(service: Arc<Service>, listener: Listener, stop: Arc<AtomicBool>) -> Self {
        Self { service, listener, stop }
    }

    /// Serves until it is told to stop. Then no more connections are accepted.
    ///
    /// `tiny_http` ends its accepting thread on any error, for example when descriptors run out, without a word if that
    /// was a panic. It is then started anew on the same socket; meanwhile clients wait in the socket's queue.
    #[must_use]
    pub fn serve(self) -> Running {
        let threads = self.service.configuration.handler_threads;
        let stall_limit = self.service.configuration.client_stall_limit;
        let mut sweep = Sweep::new(stall_limit);
        let (sender, receiver) = sync_channel(threads * QUEUED_PER_HANDLER);
        let dispatcher = Arc::new(Dispatcher { service: self.service, in_flight: Mutex::default() });
        let receiver = Arc::new(Mutex::new(receiver));
        let handlers = (0..threads)
            .filter_map(|number| {
                let (dispatcher, receiver) = (Arc::clone(&dispatcher), Arc::clone(&receiver));
                threads::spawn(&format!("handler-{number}"), move || dispatcher.handle_queue(&receiver)).ok()
            })
            .collect();

        let mut predecessors: Vec<Predecessor> = Vec::new();
        let tend = |predecessors: &mut Vec<Predecessor>| {
            predecessors.retain_mut(|server| {
                while let Some(request) = server.next_request() {
                    let retired = Arc::new(AtomicBool::new(true));
                    dispatcher.dispatch(Exchange::new(request, &self.listener, retired, stall_limit), &sender);
                }
                server.may_get_requests(&dispatcher)
            });
        };
        while !self.stop.load(Ordering::Relaxed) {
            let started = self.listener.for_tiny_http().and_then(|(listener, accepting)| {
                let server = tiny_http::Server::from_listener(listener, None).map_err(std::io::Error::other)?;
                Ok((server, accepting))
            });
            match started {
                Err(error) => {
                    log::error!("no connections can be accepted: {error}");
                    dispatcher.shed(&self.listener);
                }
                Ok((server, accepting)) => {
                    let retired = Arc::new(AtomicBool::new(false));
                    let mut watch = Watch::new(accepting);
                    let exchange = |request| Exchange::new(request, &self.listener, Arc::clone(&retired), stall_limit);
                    while !self.stop.load(Ordering::Relaxed) {
                        if !watch.look(&self.listener, &mut sweep, || dispatcher.busy()) {
                            log::error!("the thread that accepts connections has died; it is started again");
                            break;
                        }
                        tend(&mut predecessors);
                        match server.recv_timeout(watch.interval()) {
                            Ok(Some(request)) => {
                                watch.request();
                                let exchange = exchange(request);
                                if let Some(Peer::Tcp(connection)) = exchange.peer() {
                                    sweep.request(*connection);
                                }
                                dispatcher.dispatch(exchange, &sender);
                            }
                            Ok(None) => {}
                            Err(error) => {
                                log::error!("accepting connections failed and is started again: {error}");
                                break;
                            }
                        }
                    }
                    // Its idle connections are closed, and the busy ones close after their answers.
                    retired.store(true, Ordering::Relaxed);
                    dispatcher.shed(&self.listener);
                    predecessors.push(Predecessor::new(server, dispatcher.busy()));
                }
            }
            tend(&mut predecessors);
            if !self.stop.load(Ordering::Relaxed) {
                thread::sleep(RESTART_PAUSE);
            }
        }
        Running { handlers }
    }
}

/// A `tiny_http` server that accepts no more. Its connections may still have a request in their buffers, and one that it
/// drops unread costs the process what that request's `Content-Length` says, see [`super::connection`]. So its queue is
/// read as long as there may be any.
struct Predecessor {
    /// Gone only when this is dropped.
    server: Option<tiny_http::Server>,
    /// Connections of it that were being worked for when they were last looked at.
    busy: HashSet<SocketId>,
    last_busy: Instant,
}

impl Predecessor {
    fn new(server: tiny_http::Server, busy: HashSet<SocketId>) -> Self {
        Self { server: Some(server), busy, last_busy: Instant::now() }
    }

    fn next_request(&self) -> Option<tiny_http::Request> {
        self.server.as_ref()?.try_recv().ok()?
    }

    fn may_get_requests(&mut self, dispatcher: &Dispatcher) -> bool {
        if !self.busy.is_empty() {
            let busy = dispatcher.busy();
            self.busy.retain(|connection| busy.contains(connection));
            self.last_busy = Instant::now();
        }
        self.last_busy.elapsed() < ENDING
    }
}

impl Drop for Predecessor {
    fn drop(&mut self) {
        // To end its accepting thread, `tiny_http` connects to it, and waits where many others do the same.
        let server = self.server.take();
        let _ = threads::spawn("predecessor", move || drop(server));
    }
}

/// Hands requests to those who answer them, and keeps the answers of one connection in order.
struct Dispatcher {
    service: Arc<Service>,
    in_flight: Mutex<HashMap<SocketId, Connection>>,
}

/// A connection that the accept loop must leave alone.
enum Connection {
    /// A handler is at a request of it, and these came behind it. `tiny_http` makes the answer to a later request of a
    /// connection wait for the earlier one's, and the accept loop must not wait with it.
    Busy(VecDeque<Exchange>),
    /// It was ended at this time. What `tiny_http` still finds in its buffers is the rest of a body, not a request.
    Ended(Instant),
}

/// The connection of a client, unless it is one of the Unix socket, where one cannot be told from another.
fn tcp(peer: &Peer) -> Option<SocketId> {
    match peer {
        Peer::Tcp(connection) => Some(*connection),
        Peer::Unix(_) => None,
    }
}

/// How long `tiny_http` may take to see that a connection has ended.
const ENDING: Duration = Duration::from_secs(5);

impl Dispatcher {
    fn dispatch(&self, exchange: Exchange, queue: &SyncSender<Exchange>) {
        let connection = exchange.peer().and_then(tcp);
        let mut in_flight = self.in_flight();
        match connection.and_then(|connection| in_flight.get_mut(&connection)) {
            Some(Connection::Busy(waiting)) if waiting.len() < MAX_PIPELINED => return waiting.push_back(exchange),
            Some(_) => return exchange.abandon(),
            None => {}
        }
        let in_memory = match route(exchange.method(), exchange.url()) {
            Ok(route) => route.answers_from_memory(),
            Err(_) => true,
        };
        if in_memory && !exchange.may_block() {
            drop(in_flight);
            answer(&self.service, exchange);
            return;
        }
        if let Some(connection) = connection {
            in_flight.insert(connection, Connection::Busy(VecDeque::new()));
        }
        if let Err(TrySendError::Full(exchange) | TrySendError::Disconnected(exchange)) = queue.try_send(exchange) {
            if let Some(connection) = connection {
                in_flight.remove(&connection);
            }
            drop(in_flight);
            metrics::QUEUE_FULL.add();
            let reply = Reply::error(503, "all handlers are busy; try again in a moment");
            exchange.answer_at_once(reply.with_header("Retry-After", RETRY_AFTER_SECONDS));
        }
    }

    /// The life of a handler thread.
    fn handle_queue(&self, queue: &Mutex<Receiver<Exchange>>) {
        let _thread = metrics::HANDLERS.during();
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(exchange) = next else { return };
            let _busy = metrics::HANDLERS_BUSY.during();
            let peer = exchange.peer().cloned();
            let mut current = Some(exchange);
            while let Some(mut exchange) = current {
                exchange.wait_for_client(self.service.configuration.client_stall_limit);
                let goes_on = answer(&self.service, exchange);
                if let (true, Some(peer)) = (goes_on, &peer) {
                    peer.expect_prompt_reading();
                }
                current = self.next_of(peer.as_ref(), goes_on);
            }
        }
    }

    /// What the connection sent meanwhile; if nothing, it is in flight no more.
    fn next_of(&self, peer: Option<&Peer>, goes_on: bool) -> Option<Exchange> {
        let connection = peer.and_then(tcp)?;
        let mut in_flight = self.in_flight();
        let Some(Connection::Busy(waiting)) = in_flight.get_mut(&connection) else { return None };
        if !goes_on {
            waiting.drain(..).for_each(Exchange::abandon);
            in_flight.retain(|_, connection| !matches!(connection, Connection::Ended(at) if at.elapsed() >= ENDING));
            in_flight.insert(connection, Connection::Ended(Instant::now()));
            return None;
        }
        let next = waiting.pop_front();
        if next.is_none() {
            in_flight.remove(&connection);
        }
        next
    }

    /// The connections whose requests are being worked on.
    fn busy(&self) -> HashSet<SocketId> {
        let in_flight = self.in_flight();
        let busy = in_flight.iter().filter(|(_, connection)| matches!(connection, Connection::Busy(_)));
        busy.map(|(socket, _)| *socket).collect()
    }

    /// Closes the connections that nobody is working for.
    fn shed(&self, listener: &Listener) {
        let busy = self.busy();
        listener.shed(|connection| busy.contains(&connection));
    }

    fn in_flight(&self) -> MutexGuard<'_, HashMap<SocketId, Connection>> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers one request, and whether its connection goes on. A panic on the way is an answer of 500, given by the exchange
/// when it is dropped.
fn answer(service: &Arc<Service>, mut exchange: Exchange) -> bool {
    let _current = Current::enter(exchange.id());
    catch_unwind(AssertUnwindSafe(move || {
        let reply = reply_to(service, &mut exchange);
        exchange.answer(reply)
    }))
    .unwrap_or_else(|_| {
        log::error!("a handler panicked; its client was told that the request failed");
        false
    })
}

fn reply_to(service: &Arc<Service>, exchange: &mut Exchange) -> Reply {
    if exchange.head_length() > MAX_HEAD {
        return Reply::error(431, format!("the request line and headers may have {MAX_HEAD} bytes at most"));
    }
    if let Some(reason) = exchange.malformed() {
        return Reply::error(400, reason);
    }
    let route = match route(exchange.method(), exchange.url()) {
        Ok(route) => route,
        Err(RouteError::NotFound) => return Reply::error(404, "Not Found"),
        Err(RouteError::BadEncoding) => return Reply::error(422, "the path is not percent-encoded UTF-8"),
        Err(RouteError::MethodNotAllowed { allow }) => {
            return Reply::error(405, "Method Not Allowed").with_header("Allow", allow);
        }
    };
    let sender = Sender {
        site: exchange.header("Sec-Fetch-Site"),
        origin: exchange.header("Origin"),
        host: exchange.header("Host"),
        user_agent: exchange.header("User-Agent"),
        way: match &service.configuration.bind_address {
            BindAddress::Unix(_) => Way::of(None),
            BindAddress::Tcp(address) => Way::of(Some(address.ip())),
        },
    };
    let objection = sender.objection(route.changes_something(), &service.configuration);
    if let (false, Some(objection)) = (route.is_public(), objection) {
        return Reply::error(403, objection);
    }
    if !route.is_public() && !is_authorized(service, exchange) {
        let detail = "this service needs Authorization: Bearer with its client token";
        return Reply::error(401, detail).with_header("WWW-Authenticate", "Bearer");
    }
    match route {
        Route::Page => routes::page(),
        Route::Docs => routes::docs(),
        Route::OpenApi => routes::openapi(),
        Route::Metrics => routes::metrics(service),
        Route::Health => routes::health(),
        Route::Status => routes::status(service),
        Route::Login => routes::login(service, exchange),
        Route::Load(path_name) => routes::load(service, exchange, path_name),
        Route::Upload(path_name) => routes::upload(service, exchange, path_name),
        Route::Unlock => routes::unlock(service, exchange),
        Route::UnlockStatus => routes::unlock_status(service),
    }
}

fn is_authorized(service: &Service, exchange: &Exchange) -> bool {
    let Some(token) = &service.configuration.client_token else { return true };
    let (scheme, candidate) =
        exchange.header("Authorization").and_then(|value| value.split_once(' ')).unwrap_or_default();
    scheme.eq_ignore_ascii_case("bearer") && token.matches(candidate.trim())
}
