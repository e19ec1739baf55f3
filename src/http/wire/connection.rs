//! A client's connection. No read or write of it blocks; whoever waits for it sets a limit.
//!
//! The gate owns every connection and lends it to one request at a time; [`Connection::give_back`] returns it.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, Shutdown};

use crate::threads::Mailbox;

/// What happens to a connection after a request.
#[derive(Debug)]
pub(in crate::http) enum Next {
    /// The client may send another request, which begins with these bytes.
    Head(Vec<u8>),
    /// The answer was the last one. What the client still sends is discarded until it has read that answer.
    Linger,
    /// The connection is closed at once.
    Close,
}

/// How the gate hears of its connections: events of their sockets, and those that requests give back.
#[derive(Debug)]
pub(in crate::http) struct GateEvents {
    pub(in crate::http) returned: Mailbox<(u64, Next)>,
    pub(in crate::http) epoll: OwnedFd,
    pub(in crate::http) wake: OwnedFd,
}

impl GateEvents {
    pub(in crate::http) fn new() -> io::Result<Self> {
        Ok(Self {
            returned: Mailbox::default(),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }
}

#[derive(Debug)]
pub(in crate::http) struct Connection {
    pub(in crate::http) token: u64,
    /// In non-blocking mode.
    pub(in crate::http) socket: OwnedFd,
    /// The client's address; none on a Unix socket.
    pub(in crate::http) address: Option<IpAddr>,
    /// The client closed its end while its request was waiting or being worked on. It may have closed one direction only and
    /// still be reading, which cannot be distinguished. Most clients have left, so only an answer that is ready is sent.
    left: Arc<AtomicBool>,
    events: Arc<GateEvents>,
    /// Whether epoll knows the socket. Most clients of a flood are refused and gone before it needs to.
    is_watched: AtomicBool,
}

impl Connection {
    pub(in crate::http) fn new(token: u64, socket: OwnedFd, address: Option<IpAddr>, events: Arc<GateEvents>) -> Self {
        Self { token, socket, address, left: Arc::default(), events, is_watched: AtomicBool::new(false) }
    }

    pub(in crate::http) fn hung_up(&self) {
        self.left.store(true, Ordering::Relaxed);
    }

    pub(in crate::http) fn has_left(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }

    /// The flag that is set when the client leaves.
    pub(in crate::http) fn cancelled(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.left)
    }

    /// The name of the client in the log.
    pub(in crate::http) fn client(&self) -> String {
        self.address.map_or_else(|| "unix".to_owned(), |address| address.to_string())
    }

    /// Reads what has arrived. [`io::ErrorKind::WouldBlock`] if nothing has.
    pub(in crate::http) fn read(&self, out: &mut [u8]) -> io::Result<usize> {
        let (count, _) = retry_on_intr(|| rustix::net::recv(&self.socket, &mut *out, RecvFlags::empty()))?;
        Ok(count)
    }

    /// Writes what the socket takes. [`io::ErrorKind::WouldBlock`] if it takes nothing.
    pub(in crate::http) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(retry_on_intr(|| rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL))?)
    }

    /// Writes as much as the socket takes, which may be nothing. Returns how much.
    pub(in crate::http) fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut written = 0;
        while written < bytes.len() {
            match self.write(&bytes[written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }

    /// Whether the client may send more: it has not ended its direction.
    pub(in crate::http) fn is_open(&self) -> bool {
        match rustix::net::recv(&self.socket, &mut [0_u8; 1], RecvFlags::PEEK) {
            Ok((count, _)) => count > 0,
            Err(error) => matches!(error, Errno::AGAIN | Errno::INTR),
        }
    }

    /// Waits for the socket to be ready or to fail, at most for `limit`. It may return early.
    pub(super) fn wait(&self, events: PollFlags, limit: Duration) {
        let mut sockets = [PollFd::new(&self.socket, events)];
        let limit = Timespec { tv_sec: limit.as_secs() as _, tv_nsec: limit.subsec_nanos() as _ };
        let _ = poll(&mut sockets, Some(&limit));
    }

    /// Ends both directions, which wakes whoever waits for this client.
    pub(in crate::http) fn shut_down(&self) {
        self.shut(Shutdown::Both);
    }

    fn shut(&self, how: Shutdown) {
        let _ = rustix::net::shutdown(&self.socket, how);
    }

    /// Notifies the gate once, when the client has sent something.
    pub(in crate::http) fn watch_for_bytes(&self) {
        self.watch(EventFlags::IN | EventFlags::RDHUP);
    }

    /// Notifies the gate once, when the client has left.
    pub(in crate::http) fn watch_for_hangup(&self) {
        self.watch(EventFlags::RDHUP);
    }

    fn watch(&self, events: EventFlags) {
        let (epoll, data, events) = (&self.events.epoll, EventData::new_u64(self.token), events | EventFlags::ONESHOT);
        let watched = if self.is_watched.swap(true, Ordering::Relaxed) {
            epoll::modify(epoll, &self.socket, data, events)
        } else {
            epoll::add(epoll, &self.socket, data, events)
        };
        if let Err(error) = watched {
            log::error!("a connection cannot be served: epoll: {error}");
            self.shut_down();
        }
    }

    /// Returns the connection to the gate.
    pub(in crate::http) fn give_back(&self, next: Next) {
        // Most need not wake the gate: it finds them at the connection's next event, or in its next round.
        let wakes = match &next {
            Next::Head(bytes) => !bytes.is_empty(),
            Next::Linger => {
                self.shut(Shutdown::Write);
                false
            }
            Next::Close => {
                self.shut_down();
                true
            }
        };
        // First of all, so that an event of the connection finds it returned.
        self.events.returned.put((self.token, next));
        if wakes {
            // This fails only if the counter is full, and then the gate is awake.
            let _ = rustix::io::write(&self.events.wake, &1_u64.to_ne_bytes());
        } else {
            self.watch_for_bytes();
        }
    }
}
