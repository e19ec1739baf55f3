//! What the thread of the gate shares with the accept loop.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::http::exchange::Exchange;
use crate::http::heartbeat::Heartbeat;
use crate::http::wire::connection::GateEvents;
use crate::threads::{Mailbox, lock};

/// The gate as the accept loop sees it.
pub(in crate::http) struct Gate {
    pub(super) events: Arc<GateEvents>,
    /// Requests on their way through `tiny_http`, by connection.
    pub(super) passed: Mutex<HashMap<u64, Box<Exchange>>>,
    /// Requests that wait for the first byte of their body.
    pub(super) awaiting: Mailbox<Box<Exchange>>,
    pub(super) closed: AtomicBool,
    pub(in crate::http) heartbeat: Arc<Heartbeat>,
}

impl Gate {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            events: Arc::new(GateEvents::new()?),
            passed: Mutex::default(),
            awaiting: Mailbox::default(),
            closed: AtomicBool::new(false),
            heartbeat: Arc::default(),
        })
    }

    /// The request with this number, if its client is still there.
    pub(in crate::http) fn take(&self, number: u64) -> Option<Box<Exchange>> {
        lock(&self.passed).remove(&number)
    }

    /// Whether no further request will come.
    pub(in crate::http) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Keeps a request until its body begins, then passes it to a handler.
    pub(in crate::http) fn await_body(&self, mut exchange: Box<Exchange>) {
        exchange.send_continue();
        let connection = Arc::clone(exchange.connection());
        self.awaiting.put(exchange);
        connection.watch_for_bytes();
    }
}
