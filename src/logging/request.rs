//! The request that a thread is working for, so that every line can name it.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// The id of a request in log lines and in `X-Request-Id`. This program makes it: an id that a client chose could be another
/// request's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId {
    /// Random, the same for all requests of a process.
    process: u32,
    number: u32,
    /// The sender, if it is known. Floods are counted by client.
    client: Option<IpAddr>,
}

impl RequestId {
    /// A new id for a request of this client.
    pub fn next_for(client: Option<IpAddr>) -> Self {
        static PROCESS: OnceLock<u32> = OnceLock::new();
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        // Without random bytes two processes use the same ids, which is no reason to refuse service.
        let process = *PROCESS.get_or_init(|| getrandom::u32().unwrap_or(0));
        Self { process, number: NUMBER.fetch_add(1, Ordering::Relaxed), client }
    }

    /// The client that sent the request.
    pub fn client(self) -> Option<IpAddr> {
        self.client
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{}", self.process, self.number)
    }
}

thread_local! {
    static CURRENT: Cell<Option<RequestId>> = const { Cell::new(None) };
}

/// Makes the current thread work for a request until it is dropped.
#[derive(Debug)]
pub struct Current {
    before: Option<RequestId>,
    /// Keeps the guard on its thread.
    thread: PhantomData<*const ()>,
}

impl Current {
    /// The current thread works for `id`, or for no request.
    pub fn enter(id: impl Into<Option<RequestId>>) -> Self {
        Self { before: CURRENT.replace(id.into()), thread: PhantomData }
    }

    /// The request that the current thread works for.
    pub fn get() -> Option<RequestId> {
        CURRENT.get()
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}
