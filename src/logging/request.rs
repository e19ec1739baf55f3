//! Which request a thread is working for, so that every line says it.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// The id of a request in log lines and in `X-Request-Id`. It is this program's own: one that a client chose could be
/// somebody else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId {
    /// Random, once for each process.
    process: u32,
    number: u32,
    /// Who sent it, where that is known: by this the lines of floods are told from those of others.
    client: Option<IpAddr>,
}

impl RequestId {
    /// A new one for a request of this client.
    pub fn next_for(client: Option<IpAddr>) -> Self {
        static PROCESS: OnceLock<u32> = OnceLock::new();
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        // Without random bytes the ids of two starts look the same, which is no reason not to serve.
        let process = *PROCESS.get_or_init(|| getrandom::u32().unwrap_or(0));
        Self { process, number: NUMBER.fetch_add(1, Ordering::Relaxed), client }
    }

    /// The client that the request is from.
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

/// The request that this thread works for, until this is dropped.
#[derive(Debug)]
pub struct Current {
    before: Option<RequestId>,
    /// It belongs to its thread.
    thread: PhantomData<*const ()>,
}

impl Current {
    /// From now on this thread works for `id`; or for none.
    pub fn enter(id: impl Into<Option<RequestId>>) -> Self {
        Self { before: CURRENT.replace(id.into()), thread: PhantomData }
    }

    /// The request that this thread works for.
    pub fn get() -> Option<RequestId> {
        CURRENT.get()
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}
