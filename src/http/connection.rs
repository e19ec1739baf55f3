//! What `tiny_http` 0.12 hides about a connection, and its one deadly habit, in the one module with unsafe code.
//!
//! - **The body.** When a body reader of `tiny_http` is dropped, or reaches the end of a connection, before it has given
//!   all the bytes that `Content-Length` promised, it allocates a buffer for *all* the missing bytes. One header line with
//!   a large number ends the process. [`take_body`] takes the reader out of the request and [`Body`](super::Body) reads it
//!   through [`TamedReader`], which keeps the reader's own idea of what is missing small at every moment.
//! - **The socket.** It is not exposed. [`Peer`] finds it among the process's descriptors by its two addresses, to set
//!   timeouts and to end a connection.
//! - **The listener.** Accepted sockets inherit its options, so [`Listener`] sets them there.
#![allow(unsafe_code)]

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read, Write};
use std::mem::{MaybeUninit, size_of, size_of_val};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::time::Duration;

use tiny_http::{Request, TestRequest};

use crate::configuration::BindAddress;

/// A write that the accept loop makes itself blocks at most so long. Handlers give their clients more, see
/// [`Peer::set_timeouts`].
const ACCEPT_LOOP_PATIENCE: Duration = Duration::from_millis(100);

/// A TCP peer that answers no probe is dead after about so long.
const KEEPALIVE_SECONDS: libc::c_int = 60;

/// A connection that has sent no byte after this time is not worth a thread.
const FIRST_BYTE_SECONDS: libc::c_int = 10;

type RawBody = Box<dyn Read + Send>;

/// Takes the body reader out of a request, without telling the client to go on sending (`as_reader` would).
///
/// `Request` keeps it in a private field of the type `Option<Box<dyn Read + Send>>`. `as_reader` lends a pointer to the box
/// inside, which tells the field's offset; measuring it on a test request asks no client for anything.
pub(super) fn take_body(request: &mut Request) -> Option<RawBody> {
    static OFFSET: OnceLock<usize> = OnceLock::new();
    let offset = *OFFSET.get_or_init(|| {
        let mut probe: Request = TestRequest::new().into();
        let start = (&raw const probe).addr();
        let reader = probe.as_reader();
        // The borrowed value must be the fat box itself, not what it points to.
        assert_eq!(size_of_val(reader), size_of::<RawBody>(), "tiny_http is not the version this was written for");
        let offset = (&raw const *reader).cast::<u8>().addr() - start;
        assert!(offset + size_of::<RawBody>() <= size_of::<Request>());
        offset
    });
    // SAFETY: the offset was measured on a value of the same type, so it is that of the field `data_reader`, whose type in
    // the pinned version is `Option<Box<dyn Read + Send>>`; `Option` of a box is a box or null. The request is borrowed
    // mutably, and nothing else reads the field after it was taken: the one caller goes on with `into_writer` only.
    unsafe { (&raw mut *request).byte_add(offset).cast::<Option<RawBody>>().as_mut()?.take() }
}

/// A body reader of `tiny_http` that allocates no more than was asked of it, whatever the client declared.
pub(super) struct TamedReader {
    reader: RawBody,
    /// The reader's own count of missing bytes, where it has one.
    missing: Option<NonNull<usize>>,
}

// SAFETY: `missing` points into the allocation that `reader` owns, and `reader` is `Send`.
unsafe impl Send for TamedReader {}

impl TamedReader {
    /// Tames the reader of a body with the declared length, of which nothing has been read. None if the count cannot be
    /// found: then nobody may drop the reader.
    pub(super) fn of_declared_length(mut reader: RawBody, declared: usize) -> Result<Self, RawBody> {
        // `tiny_http` has read a short body into memory already (unless the client waits for a `100 Continue`), and what it
        // allocates for a short rest is harmless.
        if declared <= 1024 {
            return Ok(Self { reader, missing: None });
        }
        match find_count(&mut *reader, declared) {
            Some(missing) => Ok(Self { reader, missing: Some(missing) }),
            None => Err(reader),
        }
    }

    /// A reader that does not count: of a chunked body, or of none.
    pub(super) fn of_no_length(reader: RawBody) -> Self {
        Self { reader, missing: None }
    }

    fn allow(&mut self, count: usize) {
        if let Some(missing) = self.missing {
            // SAFETY: `find_count` found a `usize` there, inside the allocation that `reader` owns and nobody borrows now.
            unsafe { missing.write(count) };
        }
    }
}

/// The field of a body reader that counts the missing bytes.
///
/// The reader is `tiny_http`'s private `FusedReader<EqualReader<SequentialReader<BufReader<_>>>>`. The count is the one word
/// in it that equals the declared length: the other words are addresses, descriptors and buffer positions up to 1024. Its
/// place is the same in all readers of the type, so it is learned from the first one, and a client who guesses the value
/// of another word later gains nothing.
fn find_count(reader: &mut (dyn Read + Send), declared: usize) -> Option<NonNull<usize>> {
    static PLACE: OnceLock<(usize, usize)> = OnceLock::new();
    let size = size_of_val(reader);
    let words = NonNull::from(reader).cast::<MaybeUninit<usize>>();
    let holds_count = |index: usize| {
        // SAFETY: the index is inside the value, whose alignment is that of its pointers. A word may be padding, whose
        // value means nothing; the volatile read keeps the compiler from drawing conclusions from that.
        let word = unsafe { words.add(index).read_volatile().assume_init() };
        word == declared
    };
    let index = match PLACE.get() {
        Some((known_size, index)) => (*known_size == size && holds_count(*index)).then_some(*index)?,
        None => {
            let mut found = (0..size / size_of::<usize>()).filter(|index| holds_count(*index));
            let index = found.next()?;
            if found.next().is_some() {
                return None;
            }
            PLACE.get_or_init(|| (size, index)).1
        }
    };
    // SAFETY: inside the value, see above.
    Some(unsafe { words.add(index) }.cast())
}

impl Read for TamedReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        // If the connection ends during this read, the reader drops its inner part and allocates what it misses then.
        self.allow(out.len());
        let count = self.reader.read(out)?;
        if count == 0 && !out.is_empty() {
            self.missing = None;
        }
        Ok(count)
    }
}

impl Drop for TamedReader {
    fn drop(&mut self) {
        self.allow(0);
    }
}

/// The other end of a connection, as far as `tiny_http` tells.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// A TCP peer; the port on this side tells its connection from others with the same peer.
    Tcp {
        /// The client's address.
        address: SocketAddr,
        /// The port that this program listens on.
        port: u16,
    },
    /// A client of the Unix socket at this path. Such clients have no address: one cannot be told from another.
    Unix(PathBuf),
}

impl Peer {
    /// Limits every single read and write on the connection.
    pub fn set_timeouts(&self, limit: Duration) {
        for socket in self.sockets() {
            set_timeout(socket, libc::SO_RCVTIMEO, limit);
            set_timeout(socket, libc::SO_SNDTIMEO, limit);
        }
    }

    /// Ends the connection so that the client notices at once.
    ///
    /// On a Unix socket this ends the reading side of all connections: idle ones close, responses that are on their way
    /// arrive, and an upload that is being received fails.
    pub fn disconnect(&self) {
        self.shutdown(match self {
            Self::Tcp { .. } => libc::SHUT_RDWR,
            Self::Unix(_) => libc::SHUT_RD,
        });
    }

    /// Lets the connection end after the current response: nothing more is read from it.
    pub fn stop_reading(&self) {
        self.shutdown(libc::SHUT_RD);
    }

    /// Tells the client that the response is complete, while its own bytes can still be read.
    pub fn stop_writing(&self) {
        self.shutdown(libc::SHUT_WR);
    }

    fn shutdown(&self, how: libc::c_int) {
        for socket in self.sockets() {
            // SAFETY: no memory is involved. The descriptor is open: this connection's exchange, which calls this, keeps it.
            unsafe { libc::shutdown(socket, how) };
        }
    }

    /// Ends the reading side of every connection to `port` but those with `busy` peers: idle ones close.
    pub(super) fn shed(port: u16, busy: &dyn Fn(&SocketAddr) -> bool) {
        for descriptor in descriptors() {
            let Some(local) = name_of(descriptor, libc::getsockname) else { continue };
            // A listening socket has no peer.
            let Some(peer) = name_of(descriptor, libc::getpeername) else { continue };
            if local.port() == port && !busy(&peer) {
                // SAFETY: no memory is involved, and a descriptor that was closed meanwhile is an error. Should another
                // connection have got its number meanwhile, that one is closed early, as it may be at any time.
                unsafe { libc::shutdown(descriptor, libc::SHUT_RD) };
            }
        }
    }

    /// The descriptors of the connection's socket; those of all connections for a Unix socket.
    fn sockets(&self) -> Vec<RawFd> {
        descriptors().into_iter().filter(|descriptor| self.is_end_of(*descriptor).unwrap_or(false)).collect()
    }

    fn is_end_of(&self, descriptor: RawFd) -> Option<bool> {
        Some(match self {
            Self::Tcp { address, port } => {
                name_of(descriptor, libc::getpeername)? == *address
                    && name_of(descriptor, libc::getsockname)?.port() == *port
            }
            Self::Unix(path) => is_connection_of(descriptor, path)?,
        })
    }
}

/// All descriptors of this process.
fn descriptors() -> Vec<RawFd> {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

fn is_connection_of(descriptor: RawFd, path: &Path) -> Option<bool> {
    if option(descriptor, libc::SOL_SOCKET, libc::SO_DOMAIN)? != libc::AF_UNIX
        || option(descriptor, libc::SOL_SOCKET, libc::SO_ACCEPTCONN)? != 0
    {
        return None;
    }
    // SAFETY: the descriptor was open a moment ago and is a Unix socket. Should it have been closed since, the duplication
    // or the look at its name fails; no other use is made of it.
    let socket: UnixStream = unsafe { BorrowedFd::borrow_raw(descriptor) }.try_clone_to_owned().ok()?.into();
    Some(socket.local_addr().ok()?.as_pathname() == Some(path))
}

type NameCall = unsafe extern "C" fn(libc::c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

/// The address of one end of a TCP socket; none for anything else.
fn name_of(descriptor: RawFd, call: NameCall) -> Option<SocketAddr> {
    let mut storage = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: the buffer is as long as `length` says and outlives the call; a descriptor that is no socket is an error.
    if unsafe { call(descriptor, storage.as_mut_ptr().cast(), &raw mut length) } != 0 {
        return None;
    }
    // SAFETY: all bytes were zeroed, and zero is a valid value of every field.
    let storage = unsafe { storage.assume_init() };
    match libc::c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that the kernel wrote this type; the storage is large and aligned enough for it.
            let v4 = unsafe { (&raw const storage).cast::<libc::sockaddr_in>().read() };
            Some(SocketAddr::from((u32::from_be(v4.sin_addr.s_addr).to_be_bytes(), u16::from_be(v4.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { (&raw const storage).cast::<libc::sockaddr_in6>().read() };
            let (address, port) = (v6.sin6_addr.s6_addr.into(), u16::from_be(v6.sin6_port));
            Some(std::net::SocketAddrV6::new(address, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn option(descriptor: RawFd, level: libc::c_int, name: libc::c_int) -> Option<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the buffer is as long as `length` says and outlives the call.
    let result = unsafe { libc::getsockopt(descriptor, level, name, (&raw mut value).cast(), &raw mut length) };
    (result == 0).then_some(value)
}

fn set_option<T>(descriptor: RawFd, level: libc::c_int, name: libc::c_int, value: T) {
    // SAFETY: the value is of the given size and outlives the call. An option that the kernel lacks is an error that
    // changes nothing: the service works without it, with less protection.
    unsafe {
        libc::setsockopt(descriptor, level, name, (&raw const value).cast(), size_of::<T>() as libc::socklen_t);
    }
}

fn set_timeout(descriptor: RawFd, name: libc::c_int, limit: Duration) {
    // Built from zero: the structure has padding on some targets.
    // SAFETY: zero is a valid value of both fields.
    let mut time: libc::timeval = unsafe { MaybeUninit::zeroed().assume_init() };
    time.tv_sec = limit.as_secs() as libc::time_t;
    time.tv_usec = limit.subsec_micros() as libc::suseconds_t;
    set_option(descriptor, libc::SOL_SOCKET, name, time);
}

/// The socket that accepts connections. It is kept for the life of the process, so that clients queue rather than fail
/// while `tiny_http` is started anew behind it.
#[derive(Debug)]
pub enum Listener {
    /// On a TCP port.
    Tcp(TcpListener),
    /// On a Unix socket, removed when dropped.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Starts to listen.
    ///
    /// # Errors
    /// The operating system's, such as an address that is in use.
    pub fn bind(address: &BindAddress) -> io::Result<Self> {
        let listener = match address {
            BindAddress::Tcp(address) => Self::Tcp(TcpListener::bind(address)?),
            BindAddress::Unix(path) => {
                // A socket that a killed process left behind refuses connections; one that answers is in use.
                if UnixStream::connect(path).is_ok() {
                    return Err(io::ErrorKind::AddrInUse.into());
                }
                if fs::symlink_metadata(path)
                    .is_ok_and(|found| std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()))
                {
                    fs::remove_file(path)?;
                }
                let listener = UnixListener::bind(path)?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
                Self::Unix(listener, path.clone())
            }
        };
        if let Self::Tcp(listener) = &listener {
            let descriptor = listener.as_raw_fd();
            // `SO_RCVTIMEO` must not be among them: it would end `accept` when no client comes.
            set_timeout(descriptor, libc::SO_SNDTIMEO, ACCEPT_LOOP_PATIENCE);
            set_option(descriptor, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1 as libc::c_int);
            set_option(descriptor, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, KEEPALIVE_SECONDS);
            set_option(descriptor, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, KEEPALIVE_SECONDS * 1000);
            set_option(descriptor, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, FIRST_BYTE_SECONDS);
            set_option(descriptor, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1 as libc::c_int);
        }
        Ok(listener)
    }

    /// Where it listens, as clients name it: the port is the real one if the configuration left it to the system.
    #[must_use]
    pub fn address(&self) -> String {
        match self {
            Self::Tcp(listener) => listener.local_addr().map_or_else(|_| "?".into(), |address| address.to_string()),
            Self::Unix(_, path) => format!("unix:{}", path.display()),
        }
    }

    /// A second descriptor of the same socket for `tiny_http`, which closes it when its accepting thread ends.
    pub(super) fn for_tiny_http(&self) -> io::Result<(tiny_http::Listener, Accepting)> {
        Ok(match self {
            Self::Tcp(listener) => {
                let second = listener.try_clone()?;
                let accepting = Accepting(second.as_raw_fd());
                (second.into(), accepting)
            }
            Self::Unix(listener, _) => {
                let second = listener.try_clone()?;
                let accepting = Accepting(second.as_raw_fd());
                (second.into(), accepting)
            }
        })
    }

    /// The TCP port.
    pub(super) fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(listener) => Some(listener.local_addr().ok()?.port()),
            Self::Unix(..) => None,
        }
    }

    /// How many connections are open.
    pub(super) fn connections(&self) -> usize {
        match self {
            Self::Tcp(_) => {
                let Some(port) = self.port() else { return 0 };
                let of_port = |descriptor: &RawFd| {
                    let local = name_of(*descriptor, libc::getsockname).filter(|local| local.port() == port)?;
                    Some((local, name_of(*descriptor, libc::getpeername)?))
                };
                descriptors().iter().filter_map(of_port).collect::<HashSet<_>>().len()
            }
            // `tiny_http` has two descriptors for each connection.
            Self::Unix(_, path) => Peer::Unix(path.clone()).sockets().len() / 2,
        }
    }

    /// Makes a connection that ends at once.
    pub(super) fn knock(&self) {
        // No request line is empty, so this one is refused without a request. The bytes are needed: a connection that
        // sends nothing is not accepted for a while.
        let knock = b"\r\n\r\n";
        let _ = match self {
            Self::Tcp(listener) => listener.local_addr().and_then(|address| {
                TcpStream::connect_timeout(&reachable(address), ACCEPT_LOOP_PATIENCE)?.write_all(knock)
            }),
            Self::Unix(_, path) => UnixStream::connect(path).and_then(|mut stream| stream.write_all(knock)),
        };
    }

    /// The other end of a request's connection.
    pub(super) fn peer_of(&self, request: &Request) -> Option<Peer> {
        match self {
            Self::Tcp(_) => Some(Peer::Tcp { address: *request.remote_addr()?, port: self.port()? }),
            Self::Unix(_, path) => Some(Peer::Unix(path.clone())),
        }
    }
}

/// Tells whether `tiny_http`'s accepting thread lives: it may end by a panic, of which nobody is told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Accepting(RawFd);

impl Accepting {
    pub(super) fn is_alive(self) -> bool {
        // The number may have been given to another descriptor since, but not to one that listens: there is one listener.
        option(self.0, libc::SOL_SOCKET, libc::SO_ACCEPTCONN) == Some(1)
    }
}

/// An address to connect to for one to listen on: a service on all addresses is reached on the loopback one.
#[must_use]
pub fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            let _ = fs::remove_file(path);
        }
    }
}
