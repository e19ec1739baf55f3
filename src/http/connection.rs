//! One client's connection. It is never blocked on: who has to wait for it does so with a limit.
//!
//! The gate keeps every connection and lends it to one request at a time; [`Connection::give_back`] returns it.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::threads::Mailbox;

/// A socket of either kind, in non-blocking mode.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

/// What becomes of a connection after a request.
#[derive(Debug)]
pub(super) enum Next {
    /// The client may ask again, and has done so already with these bytes.
    Head(Vec<u8>),
    /// The answer was the last one: what the client still sends is thrown away until it has read that answer.
    Linger,
    /// Nothing more can be said.
    Close,
}

/// How connections come back to the gate.
#[derive(Debug)]
pub(super) struct Returns {
    pub(super) mailbox: Mailbox<(u64, Next)>,
    pub(super) epoll: OwnedFd,
    /// Wakes the gate.
    pub(super) wake: OwnedFd,
}

impl Returns {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            mailbox: Mailbox::default(),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    pub(super) fn wake_gate(&self) {
        // It fails only when the counter is full, and then the gate is awake.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// A client's connection. Only the gate and the one request it was lent to touch it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) token: u64,
    pub(super) socket: Socket,
    /// The client's address, if it came over TCP: all connections of one address are one client.
    pub(super) address: Option<IpAddr>,
    /// The client has closed its end while its request waited or was worked on. It may have closed one direction only, and be
    /// listening; but most have gone, and nothing tells the two apart. So it gets its answer if there is one at once.
    left: Arc<AtomicBool>,
    returns: Arc<Returns>,
}

impl Connection {
    pub(super) fn new(token: u64, socket: Socket, address: Option<IpAddr>, returns: Arc<Returns>) -> Self {
        Self { token, socket, address, left: Arc::default(), returns }
    }

    /// The client has closed its end.
    pub(super) fn hung_up(&self) {
        self.left.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_left(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }

    /// Set once the client has left.
    pub(super) fn cancelled(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.left)
    }

    /// How the log names the client.
    pub(super) fn client(&self) -> String {
        self.address.map_or_else(|| "unix".to_owned(), |address| address.to_string())
    }

    /// Reads what is there. [`io::ErrorKind::WouldBlock`] if nothing is.
    pub(super) fn read(&self, out: &mut [u8]) -> io::Result<usize> {
        retry(|| match &self.socket {
            Socket::Tcp(stream) => (&mut &*stream).read(out),
            Socket::Unix(stream) => (&mut &*stream).read(out),
        })
    }

    /// Writes what the socket takes now. [`io::ErrorKind::WouldBlock`] if that is nothing.
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        retry(|| match &self.socket {
            Socket::Tcp(stream) => (&mut &*stream).write(bytes),
            Socket::Unix(stream) => (&mut &*stream).write(bytes),
        })
    }

    /// Writes as much as the socket takes without waiting.
    pub(super) fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
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

    /// Waits until the socket can be read or written, or has failed. False if `limit` passed first.
    pub(super) fn wait(&self, events: PollFlags, limit: Duration) -> bool {
        let mut sockets = [PollFd::new(&self.socket, events)];
        let limit = Timespec { tv_sec: limit.as_secs() as _, tv_nsec: limit.subsec_nanos() as _ };
        // An interrupted wait counts as one that ended: the caller tries and waits again.
        poll(&mut sockets, Some(&limit)).map_or(true, |ready| ready > 0)
    }

    /// Ends both directions: whoever waits for this client stops waiting, and the client notices at once.
    pub(super) fn shut_down(&self) {
        self.shut(Shutdown::Both);
    }

    fn shut(&self, how: Shutdown) {
        let _ = match &self.socket {
            Socket::Tcp(stream) => stream.shutdown(how),
            Socket::Unix(stream) => stream.shutdown(how),
        };
    }

    /// Has the gate told once when the client has sent something.
    pub(super) fn watch_for_bytes(&self) {
        self.watch(EventFlags::IN | EventFlags::RDHUP);
    }

    /// Has the gate told once when the client has gone. What it sends is left alone.
    pub(super) fn watch_for_hangup(&self) {
        self.watch(EventFlags::RDHUP);
    }

    fn watch(&self, events: EventFlags) {
        let data = EventData::new_u64(self.token);
        if epoll::modify(&self.returns.epoll, &self.socket, data, events | EventFlags::ONESHOT).is_err() {
            self.shut_down();
        }
    }

    /// Returns the connection to the gate.
    pub(super) fn give_back(&self, next: Next) {
        // Most returns need not wake the gate: it learns of them with the next event of the connection, or when it looks around.
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
        // The order matters: an event that is seen finds the connection returned.
        self.returns.mailbox.put((self.token, next));
        if wakes {
            self.returns.wake_gate();
        } else {
            self.watch_for_bytes();
        }
    }
}

/// Makes a system call again that a signal interrupted.
fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
