//! The gate: one thread that accepts clients, reads their request heads, and keeps their connections between requests.
//!
//! A head that keeps to the rules goes to `tiny_http` over a private connection, as two checked words and the number of the
//! client's connection; the accept loop gets it from there and takes the request from [`Gate::take`]. Nothing else of a
//! client reaches the library. A client that is slow, idle or gone costs a descriptor, never a thread.

mod clients;
mod feed;
mod head;
mod keeper;
mod listener;

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::process::{Resource, getrlimit, setrlimit};

use super::connection::Returns;
use super::exchange::Exchange;
use super::handlers::Handlers;
use super::pulse::{Pulse, Watch};
use crate::threads::{self, Mailbox, lock};

use self::keeper::{Keeper, WAKE};

pub(super) use self::feed::Requests;
pub(super) use self::head::{Framing, Head, MAX_HEAD, fuzz as fuzz_head};
pub use self::listener::{Listener, reachable};

/// Connections beyond the limit that are told so.
const OVERFLOW: usize = 64;

/// Descriptors for everything else: logs, the engine, and what each handler opens.
const OTHER_DESCRIPTORS: usize = 32;
const DESCRIPTORS_PER_HANDLER: usize = 16;

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
    passed: Mutex<HashMap<u64, Box<Exchange>>>,
    /// Requests that wait for the first byte of their body.
    awaiting: Mailbox<Box<Exchange>>,
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
        let mut keeper =
            Keeper::new(listeners, capacity(limits), limits.stall, Arc::clone(&shared), handlers, feed, stop);
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
    pub(super) fn take(&self, number: u64) -> Option<Box<Exchange>> {
        lock(&self.shared.passed).remove(&number)
    }

    /// Whether it has been told to stop and has closed.
    pub(super) fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Relaxed)
    }

    /// Keeps a request until its body begins, and then has a handler work on it.
    pub(super) fn await_body(&self, mut exchange: Box<Exchange>) {
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
