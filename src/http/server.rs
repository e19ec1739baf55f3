//! The accept loop.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::dispatch::Dispatcher;
use super::gate::{self, Limits, Listener};
use super::handlers::Handlers;
use super::heartbeat::{Heartbeat, Watchdog};
use super::service::Service;
use crate::systemd;

/// The longest that the accept loop waits for a request before it sees to its other duties.
const MAX_WAIT: Duration = Duration::from_millis(100);

/// The handlers with their last transfers, after the accept loop has ended.
pub struct Draining(Arc<Handlers>);

impl Draining {
    /// Waits for the handlers to finish, at most for `limit`. Returns whether all of them did.
    pub fn finish_within(self, limit: Duration) -> bool {
        self.0.finish_within(limit)
    }
}

/// Serves until `stop` is set. An error means that the operating system refused a thread or a socket at the start.
pub fn serve(service: Arc<Service>, listeners: Vec<Listener>, stop: Arc<AtomicBool>) -> io::Result<Draining> {
    let limits = Limits {
        connections: service.configuration.max_connections,
        handlers: service.configuration.handler_threads,
        stall: service.configuration.client_stall_limit,
    };
    let handlers = Handlers::new(limits.handlers);
    let heartbeat = Arc::new(Heartbeat::default());
    let (gate, requests) = gate::open(listeners, &limits, Arc::clone(&handlers), Arc::clone(&heartbeat), stop)?;
    let mut watchdog = Watchdog::new("the gate thread", Arc::clone(&gate.heartbeat));
    let dispatcher = Dispatcher { service, gate, handlers };
    let mut notifier = systemd::Notifier::ready();
    loop {
        heartbeat.beat();
        watchdog.check();
        notifier.update(|| dispatcher.service.summary());
        // Requests that arrived before the gate closed are still answered.
        let stopping = dispatcher.gate.is_closed();
        match requests.next(if stopping { Duration::ZERO } else { MAX_WAIT }) {
            Some((method, target, number)) => {
                if let Some(exchange) = dispatcher.gate.take(number) {
                    dispatcher.dispatch(&method, &target, exchange);
                }
            }
            None if stopping => {
                systemd::notify("STOPPING=1");
                return Ok(Draining(dispatcher.handlers));
            }
            None => {}
        }
    }
}
