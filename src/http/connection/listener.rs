//! The socket that accepts connections, whose options the accepted ones inherit.

use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use tiny_http::Request;

use super::open::{LastSeen, OpenConnection};
use super::peer::{Peer, SocketId, option, set_option, set_timeout};
use crate::configuration::BindAddress;

/// A write that the accept loop makes itself blocks at most so long: its answers fit the socket's buffer unless the client
/// reads none. Handlers give their clients more, see [`Peer::set_timeouts`].
pub(in crate::http) const ACCEPT_LOOP_PATIENCE: Duration = Duration::from_millis(10);

/// How long a connection to this very process may take.
const KNOCK_LIMIT: Duration = Duration::from_millis(100);

/// Connections that wait to be accepted. More than the standard library asks for, so that a burst costs nobody a
/// retransmission.
const BACKLOG: libc::c_int = 1024;

/// A TCP peer that answers no probe is dead after about so long.
const KEEPALIVE_SECONDS: libc::c_int = 60;

/// The socket that accepts connections. It is kept for the life of the process, so that clients queue rather than fail
/// while `tiny_http` is started anew behind it.
#[derive(Debug)]
pub enum Listener {
    /// On a TCP port.
    Tcp(TcpListener, LastSeen),
    /// On a Unix socket with this path, removed when dropped.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Starts to listen.
    ///
    /// # Errors
    /// The operating system's, such as an address that is in use.
    pub fn bind(address: &BindAddress) -> io::Result<Self> {
        let listener = match address {
            BindAddress::Tcp(address) => Self::Tcp(TcpListener::bind(address)?, LastSeen::default()),
            BindAddress::Unix(path) => {
                // A socket that a killed process left behind refuses connections; one that answers is in use.
                if UnixStream::connect(path).is_ok() {
                    return Err(io::ErrorKind::AddrInUse.into());
                }
                if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
                    fs::remove_file(path)?;
                }
                // When a `tiny_http` server is dropped, it removes the path to which its socket was bound. So that is another
                // one, which also keeps everybody out until the mode is right.
                let mut bound = path.clone().into_os_string();
                bound.push("~");
                let bound = PathBuf::from(bound);
                let _ = fs::remove_file(&bound);
                let listener = UnixListener::bind(&bound)?;
                fs::set_permissions(&bound, fs::Permissions::from_mode(0o660))?;
                fs::rename(&bound, path)?;
                Self::Unix(listener, path.clone())
            }
        };
        if let Self::Tcp(listener, _) = &listener {
            let descriptor = listener.as_raw_fd();
            // SAFETY: no memory is involved, and the descriptor is that of the listener above.
            unsafe { libc::listen(descriptor, BACKLOG) };
            // Not `TCP_DEFER_ACCEPT`: connections that send nothing would fill the kernel's queue of half-open ones, where
            // nobody can end them, and then nobody else gets in. Accepted, they are ended like all that wait too long.
            // `SO_RCVTIMEO` must not be among them: it would end `accept` when no client comes.
            set_timeout(descriptor, libc::SO_SNDTIMEO, ACCEPT_LOOP_PATIENCE);
            set_option(descriptor, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1 as libc::c_int);
            set_option(descriptor, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, KEEPALIVE_SECONDS);
            set_option(descriptor, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, KEEPALIVE_SECONDS * 1000);
            set_option(descriptor, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1 as libc::c_int);
        }
        Ok(listener)
    }

    /// Where it listens, as clients name it: the port is the real one if the configuration left it to the system.
    #[must_use]
    pub fn address(&self) -> String {
        match self {
            Self::Tcp(listener, _) => listener.local_addr().map_or_else(|_| "?".into(), |address| address.to_string()),
            Self::Unix(_, path) => format!("unix:{}", path.display()),
        }
    }

    /// A second descriptor of the same socket for `tiny_http`, which closes it when its accepting thread ends.
    pub(in crate::http) fn for_tiny_http(&self) -> io::Result<(tiny_http::Listener, Accepting)> {
        Ok(match self {
            Self::Tcp(listener, _) => {
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
    fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(listener, _) => Some(listener.local_addr().ok()?.port()),
            Self::Unix(..) => None,
        }
    }

    /// The open TCP connections.
    pub(in crate::http) fn connections(&self) -> Vec<OpenConnection> {
        self.port().map_or_else(Vec::new, OpenConnection::all)
    }

    /// Lets connections end after the answers that are on their way: the TCP connections but the busy ones, and, since one
    /// cannot be told from another there, all those of a Unix socket.
    pub(in crate::http) fn shed(&self, is_busy: impl Fn(SocketId) -> bool) {
        self.connections()
            .iter()
            .filter(|connection| !is_busy(connection.socket))
            .for_each(OpenConnection::stop_reading);
        if let Some(peer) = self.unix_peer() {
            peer.stop_reading();
        }
    }

    /// Limits every read and write on all connections of a Unix socket, and counts them. Nothing more can be done there:
    /// they cannot be told apart.
    pub(in crate::http) fn limit_unix_connections(&self, limit: Duration) -> usize {
        let Some(peer) = self.unix_peer() else { return 0 };
        peer.set_timeouts(limit);
        peer.sockets().count() / 2
    }

    /// Makes a connection that ends at once.
    pub(in crate::http) fn knock(&self) {
        // No request line is empty, so this one is refused without a request.
        let knock = b"\r\n\r\n";
        let _ = match self {
            Self::Tcp(listener, _) => listener
                .local_addr()
                .and_then(|address| TcpStream::connect_timeout(&reachable(address), KNOCK_LIMIT)?.write_all(knock)),
            Self::Unix(_, path) => UnixStream::connect(path).and_then(|mut stream| stream.write_all(knock)),
        };
    }

    /// The other end of a request's connection; none if the client has gone.
    pub(in crate::http) fn peer_of(&self, request: &Request) -> Option<Peer> {
        match self {
            Self::Tcp(_, last_seen) => {
                last_seen.socket_of(*request.remote_addr()?, || self.connections()).map(Peer::Tcp)
            }
            Self::Unix(..) => self.unix_peer(),
        }
    }

    /// The clients of a Unix socket.
    fn unix_peer(&self) -> Option<Peer> {
        match self {
            Self::Tcp(..) => None,
            Self::Unix(listener, _) => Some(Peer::Unix(listener.local_addr().ok()?.as_pathname()?.to_owned())),
        }
    }
}

/// Tells whether `tiny_http`'s accepting thread lives: it may end by a panic, of which nobody is told.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct Accepting(RawFd);

impl Accepting {
    pub(in crate::http) fn is_alive(self) -> bool {
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
