//! One thread that accepts clients, reads their request heads, and keeps their connections between requests.
//!
//! A valid head goes to `tiny_http` as two checked words and the number of the client's connection, by a private connection.
//! The accept loop receives it there and takes the request from [`Gate::take`]. No other byte of a client reaches the
//! library. A client that is slow, idle or gone costs a descriptor, never a thread.

mod clients;
mod event_loop;
mod feed;
mod limits;
mod listener;
mod state;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use self::event_loop::EventLoop;
use super::handlers::Handlers;
use super::heartbeat::{Heartbeat, Watchdog};
use crate::threads;

pub(super) use self::feed::Requests;
pub(super) use self::limits::Limits;
pub use self::listener::{Listener, reachable};
pub(super) use self::state::Gate;

/// Starts the thread. It ends the process if `accept_loop` stops beating.
pub(super) fn open(
    listeners: Vec<Listener>,
    limits: &Limits,
    handlers: Arc<Handlers>,
    accept_loop: Arc<Heartbeat>,
    stop: Arc<AtomicBool>,
) -> io::Result<(Arc<Gate>, Requests)> {
    let (feed, requests) = feed::connect()?;
    let gate = Arc::new(Gate::new()?);
    let mut event_loop = EventLoop::new(listeners, limits, Arc::clone(&gate), handlers, feed, stop)?;
    let watchdog = Watchdog::new("the accept loop", accept_loop);
    threads::spawn("gate", move || {
        let ended = catch_unwind(AssertUnwindSafe(|| event_loop.run(watchdog)));
        log::error!("the gate thread has ended ({ended:?}); the process aborts and must be started again");
        std::process::abort();
    })?;
    Ok((gate, requests))
}
