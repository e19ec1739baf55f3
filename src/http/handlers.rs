//! The threads that work on requests which may have to wait: for the uplink, a disk, docker, or their own client.
//!
//! `HANDLER_THREADS` requests are worked on at once. One whose client has stood still does not count, so that slow clients
//! keep nobody else out: another request begins, up to [`STANDING_FACTOR`] times as many in all. Only when there is no room
//! at all does the client that has stood still longest lose its place.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::exchange::Exchange;
use crate::metrics;
use crate::threads::{self, lock};

/// Requests that may wait for a handler, for each handler thread. More are answered 503.
const QUEUED_PER_HANDLER: usize = 16;

/// So many times `HANDLER_THREADS` requests are worked on at once if the rest stand still.
const STANDING_FACTOR: usize = 4;

/// A client that has stood still for so long may lose its place to one that waits.
const EVICTED_AFTER: Duration = Duration::from_secs(2);

/// A request that has waited for so long is forgotten if its client has left. Before, the client may only have closed its
/// sending side.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(1);

/// What a handler does with a request.
type Work = Box<dyn Fn(Box<Exchange>) + Send + Sync>;

/// The pool of handler threads.
pub(super) struct Handlers {
    threads: usize,
    work: Work,
    state: Mutex<State>,
    work_waits: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Box<Exchange>>,
    at_work: HashMap<u64, AtWork>,
    next_id: u64,
    threads: usize,
    closing: bool,
}

/// A request that is being worked on.
struct AtWork {
    connection: Arc<Connection>,
    /// Since when its client has stood still.
    still_since: Option<Instant>,
    evicted: bool,
}

/// The place of one request among those that are worked on.
pub(super) struct Place {
    handlers: Arc<Handlers>,
    id: u64,
}

impl State {
    fn moving(&self) -> usize {
        self.at_work.values().filter(|request| request.still_since.is_none() && !request.connection.has_left()).count()
    }
}

impl Handlers {
    pub(super) fn new(threads: usize, work: Work) -> Arc<Self> {
        let handlers = Arc::new(Self { threads, work, state: Mutex::default(), work_waits: Condvar::new() });
        let mut state = lock(&handlers.state);
        for _ in 0..threads {
            handlers.start_thread(&mut state);
        }
        drop(state);
        handlers
    }

    /// Has a handler work on the request as soon as one may. Gives it back if too many wait already.
    pub(super) fn submit(self: &Arc<Self>, exchange: Box<Exchange>) -> Result<(), Box<Exchange>> {
        let mut state = lock(&self.state);
        if state.queue.len() >= self.threads * QUEUED_PER_HANDLER {
            return Err(exchange);
        }
        exchange.connection().watch_for_hangup();
        state.queue.push_back(exchange);
        self.begin(&mut state);
        Ok(())
    }

    /// Whether another request may begin now.
    fn has_room(&self, state: &State) -> bool {
        state.at_work.len() < self.threads * STANDING_FACTOR && state.moving() < self.threads
    }

    /// Wakes or starts a thread for the next request, if it may begin.
    fn begin(self: &Arc<Self>, state: &mut State) {
        if state.queue.is_empty() || !self.has_room(state) {
            return;
        }
        if state.threads > state.at_work.len() {
            self.work_waits.notify_one();
        } else {
            self.start_thread(state);
        }
    }

    fn start_thread(self: &Arc<Self>, state: &mut State) {
        let handlers = Arc::clone(self);
        match threads::spawn("handler", move || handlers.live()) {
            Ok(_) => state.threads += 1,
            Err(error) => log::warn!("no thread can be started for a request, which waits for another: {error}"),
        }
    }

    /// The life of a handler thread.
    fn live(self: &Arc<Self>) {
        let _thread = metrics::HANDLERS.during();
        let mut state = lock(&self.state);
        loop {
            if self.has_room(&state)
                && let Some(mut exchange) = state.queue.pop_front()
            {
                let id = state.next_id;
                state.next_id += 1;
                let connection = Arc::clone(exchange.connection());
                state.at_work.insert(id, AtWork { connection, still_since: None, evicted: false });
                // The one after it may find room as well.
                self.begin(&mut state);
                drop(state);
                exchange.begin_work(Place { handlers: Arc::clone(self), id });
                let busy = metrics::HANDLERS_BUSY.during();
                (self.work)(exchange);
                drop(busy);
                state = lock(&self.state);
                continue;
            }
            // Threads beyond the usual number go when the clients that stood still have.
            if state.threads > self.threads || (state.closing && state.queue.is_empty()) {
                state.threads -= 1;
                return;
            }
            state = self.work_waits.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Forgets waiting requests whose clients have left, and ends the transfers that have stood still longest if requests wait
    /// and there is no room. To be called often.
    pub(super) fn make_room(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        for _ in 0..state.queue.len() {
            match state.queue.pop_front() {
                Some(exchange) if exchange.connection().has_left() && exchange.age() >= FORGOTTEN_AFTER => {
                    exchange.abandon()
                }
                Some(exchange) => state.queue.push_back(exchange),
                None => {}
            }
        }
        self.begin(&mut state);
        let waiting = state.queue.len();
        if waiting == 0 || state.at_work.len() < self.threads * STANDING_FACTOR || state.moving() >= self.threads {
            return;
        }
        let leaving = state.at_work.values().filter(|request| request.evicted).count();
        let mut still: Vec<&mut AtWork> = state
            .at_work
            .values_mut()
            .filter(|request| {
                !request.evicted && request.still_since.is_some_and(|since| since.elapsed() >= EVICTED_AFTER)
            })
            .collect();
        still.sort_by_key(|request| request.still_since);
        for request in still.into_iter().take(waiting.saturating_sub(leaving)) {
            request.evicted = true;
            request.connection.shut_down();
            let client = request.connection.client();
            log::warn!(client; "a transfer was cut off: its client stood still while others waited");
        }
    }

    /// No more requests come. Waits until those that are there have ended, but no longer than `patience`. Answers whether
    /// they have.
    pub(super) fn finish_within(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            {
                let mut state = lock(&self.state);
                state.closing = true;
                self.work_waits.notify_all();
                if state.queue.is_empty() && state.at_work.is_empty() {
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

impl Place {
    /// The client has stood still since then, or moves again.
    pub(super) fn set_still(&self, since: Option<Instant>) {
        let mut state = lock(&self.handlers.state);
        if let Some(request) = state.at_work.get_mut(&self.id) {
            request.still_since = since;
        }
        self.handlers.begin(&mut state);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = lock(&self.handlers.state);
        state.at_work.remove(&self.id);
        self.handlers.begin(&mut state);
    }
}
