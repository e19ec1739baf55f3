//! The threads that work on requests which may have to wait for the uplink, a disk, docker or their own client.
//!
//! `HANDLER_THREADS` requests are worked on at once. A request whose client has stalled does not count, so that slow clients
//! keep nobody else out: another request begins, up to [`STALLED_FACTOR`] times as many in all. Only when all of these are
//! taken, the client that has been stalled longest loses its slot.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::exchange::Exchange;
use super::wire::connection::Connection;
use super::wire::stall::Slot;
use crate::logging::Current;
use crate::metrics;
use crate::threads::{self, lock};

/// Requests that may wait, for each handler thread. Further ones are answered 503.
const QUEUED_PER_HANDLER: usize = 16;

/// At most this many times `HANDLER_THREADS` requests are worked on at once, if the clients of the others have stalled.
const STALLED_FACTOR: usize = 4;

/// A client that has been stalled for this long may lose its slot to a waiting request.
const EVICTED_AFTER: Duration = Duration::from_secs(2);

/// A request that has waited for this long is dropped if its client has left. A client that left sooner may only have closed
/// its sending side.
const DROPPED_AFTER: Duration = Duration::from_secs(1);

/// The pool of handler threads.
pub(super) struct Handlers {
    /// `HANDLER_THREADS`.
    limit: usize,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Box<Exchange>>,
    active: HashMap<u64, Active>,
    next_id: u64,
    threads: usize,
    closing: bool,
}

/// A request that is being worked on.
struct Active {
    connection: Arc<Connection>,
    stalled_since: Option<Instant>,
    evicted: bool,
}

struct HandlerSlot {
    handlers: Arc<Handlers>,
    id: u64,
}

impl State {
    fn moving(&self) -> usize {
        self.active.values().filter(|request| request.stalled_since.is_none() && !request.connection.has_left()).count()
    }
}

impl Handlers {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        let handlers = Arc::new(Self { limit, state: Mutex::default(), wake: Condvar::new() });
        let mut state = lock(&handlers.state);
        for _ in 0..limit {
            handlers.start_thread(&mut state);
        }
        drop(state);
        handlers
    }

    /// Queues the request for a handler, or returns it if too many are waiting.
    pub(super) fn submit(self: &Arc<Self>, exchange: Box<Exchange>) -> Result<(), Box<Exchange>> {
        let mut state = lock(&self.state);
        if state.queue.len() >= self.limit * QUEUED_PER_HANDLER {
            return Err(exchange);
        }
        exchange.connection().watch_for_hangup();
        state.queue.push_back(exchange);
        self.begin(&mut state);
        Ok(())
    }

    /// Whether another request may begin now.
    fn has_room(&self, state: &State) -> bool {
        state.active.len() < self.limit * STALLED_FACTOR && state.moving() < self.limit
    }

    /// Wakes or starts a thread for the next request, if it may begin.
    fn begin(self: &Arc<Self>, state: &mut State) {
        if state.queue.is_empty() || !self.has_room(state) {
            return;
        }
        if state.threads > state.active.len() {
            self.wake.notify_one();
        } else {
            self.start_thread(state);
        }
    }

    fn start_thread(self: &Arc<Self>, state: &mut State) {
        let handlers = Arc::clone(self);
        match threads::spawn("handler", move || handlers.run()) {
            Ok(_) => state.threads += 1,
            Err(error) => log::warn!("no handler thread can be started; requests wait for the others: {error}"),
        }
    }

    /// The main function of a handler thread.
    fn run(self: &Arc<Self>) {
        let _thread = metrics::HANDLERS.during();
        let mut state = lock(&self.state);
        loop {
            if self.has_room(&state)
                && let Some(mut exchange) = state.queue.pop_front()
            {
                let id = state.next_id;
                state.next_id += 1;
                let connection = Arc::clone(exchange.connection());
                state.active.insert(id, Active { connection, stalled_since: None, evicted: false });
                // There may be room for the next request as well.
                self.begin(&mut state);
                drop(state);
                exchange.begin_work(Box::new(HandlerSlot { handlers: Arc::clone(self), id }));
                work(exchange);
                state = lock(&self.state);
                continue;
            }
            // Threads beyond the limit end when the stalled clients are gone.
            if state.threads > self.limit || (state.closing && state.queue.is_empty()) {
                state.threads -= 1;
                return;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Drops waiting requests whose clients have left. If requests wait and there is no room, ends the transfers whose
    /// clients have been stalled longest. The gate calls this several times a second.
    pub(super) fn make_room(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        for _ in 0..state.queue.len() {
            match state.queue.pop_front() {
                Some(exchange) if exchange.connection().has_left() && exchange.age() >= DROPPED_AFTER => {
                    exchange.abandon();
                }
                Some(exchange) => state.queue.push_back(exchange),
                None => {}
            }
        }
        self.begin(&mut state);
        let waiting = state.queue.len();
        if waiting == 0 || state.active.len() < self.limit * STALLED_FACTOR || state.moving() >= self.limit {
            return;
        }
        let leaving = state.active.values().filter(|request| request.evicted).count();
        let is_stalled = |request: &&mut Active| {
            !request.evicted && request.stalled_since.is_some_and(|since| since.elapsed() >= EVICTED_AFTER)
        };
        let mut stalled: Vec<&mut Active> = state.active.values_mut().filter(is_stalled).collect();
        stalled.sort_by_key(|request| request.stalled_since);
        for request in stalled.into_iter().take(waiting.saturating_sub(leaving)) {
            request.evicted = true;
            request.connection.shut_down();
            let client = request.connection.client();
            log::warn!(client; "cut off a transfer whose client had stalled, because other requests were waiting");
        }
    }

    /// Waits until all requests have ended, at most for `limit`. Returns whether they have. No more may be submitted.
    pub(super) fn finish_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            {
                let mut state = lock(&self.state);
                state.closing = true;
                self.wake.notify_all();
                if state.queue.is_empty() && state.active.is_empty() {
                    return true;
                }
            }
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Does what the request asks for, or sends what is left of its answer. After a panic, dropping the exchange answers 500.
fn work(exchange: Box<Exchange>) {
    let _busy = metrics::HANDLERS_BUSY.during();
    let _current = Current::enter(exchange.id());
    let work = || {
        if let Some(mut exchange) = exchange.finish_answer()
            && let Some(task) = exchange.task.take()
        {
            task(exchange);
        }
    };
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        log::error!("a handler panicked; its client has been answered that the request failed");
    }
}

impl Slot for HandlerSlot {
    fn set_stalled(&self, since: Option<Instant>) {
        let mut state = lock(&self.handlers.state);
        if let Some(request) = state.active.get_mut(&self.id) {
            request.stalled_since = since;
        }
        self.handlers.begin(&mut state);
    }
}

impl Drop for HandlerSlot {
    fn drop(&mut self) {
        let mut state = lock(&self.handlers.state);
        state.active.remove(&self.id);
        self.handlers.begin(&mut state);
    }
}
