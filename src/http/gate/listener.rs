//! The sockets that clients connect to.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use rustix::net::{SocketFlags, sockopt};

use crate::configuration::BindAddress;

/// How many clients may wait to be accepted over TCP: as many as the kernel allows (`net.core.somaxconn`), since a client that finds
/// the queue full tries again only after a second.
const TCP_BACKLOG: i32 = 4096;

/// The same on a Unix socket, where such a client waits for room. In a longer queue it would wait behind the dead connections of a
/// flood: for 0.2 s in one of 4096.
const UNIX_BACKLOG: i32 = 1024;

/// A TCP client that answers no probe for about this long is dead.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// A socket that accepts connections.
#[derive(Debug)]
pub enum Listener {
    /// On a TCP port.
    Tcp(TcpListener),
    /// A Unix socket; a path is removed when this is dropped.
    Unix(UnixListener, Option<PathBuf>),
}

impl Listener {
    /// Starts to listen.
    pub fn bind(address: &BindAddress) -> io::Result<Self> {
        match address {
            BindAddress::Tcp(address) => Self::Tcp(TcpListener::bind(address)?),
            BindAddress::Unix(path) => {
                // A socket that answers is in use; a socket of a process that was killed refuses connections.
                if UnixStream::connect(path).is_ok() {
                    return Err(io::ErrorKind::AddrInUse.into());
                }
                if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
                    fs::remove_file(path)?;
                }
                // Nobody can connect before the mode is right.
                let mut hidden = path.clone().into_os_string();
                hidden.push("~");
                let hidden = PathBuf::from(hidden);
                let _ = fs::remove_file(&hidden);
                let listener = UnixListener::bind(&hidden)?;
                fs::set_permissions(&hidden, fs::Permissions::from_mode(0o660))?;
                fs::rename(&hidden, path)?;
                Self::Unix(listener, Some(path.clone()))
            }
        }
        .prepared()
    }

    /// Sets the options of a listening socket, which accepted connections inherit.
    pub fn prepared(self) -> io::Result<Self> {
        let backlog = match &self {
            Self::Tcp(listener) => {
                sockopt::set_socket_keepalive(listener, true)?;
                sockopt::set_tcp_keepidle(listener, KEEPALIVE)?;
                sockopt::set_tcp_user_timeout(listener, KEEPALIVE.as_millis() as u32)?;
                sockopt::set_tcp_nodelay(listener, true)?;
                TCP_BACKLOG
            }
            Self::Unix(..) => UNIX_BACKLOG,
        };
        rustix::net::listen(&self, backlog)?;
        rustix::io::ioctl_fionbio(&self, true)?;
        Ok(self)
    }

    /// The address for clients, with the real port if the configuration left it to the system.
    pub fn address(&self) -> String {
        match self {
            Self::Tcp(listener) => listener.local_addr().map_or_else(|_| "?".into(), |address| address.to_string()),
            Self::Unix(listener, _) => {
                let address = listener.local_addr().ok();
                let bound =
                    address.as_ref().and_then(|address| address.as_pathname()).map(|path| path.display().to_string());
                format!("unix:{}", bound.unwrap_or_default().trim_end_matches('~'))
            }
        }
    }

    /// Whether clients on other machines can reach it.
    pub fn is_open_to_the_network(&self) -> bool {
        match self {
            Self::Tcp(listener) => {
                listener.local_addr().is_ok_and(|address| !address.ip().to_canonical().is_loopback())
            }
            Self::Unix(..) => false,
        }
    }

    /// The socket of the next client, and its address if it came over TCP.
    pub(super) fn accept(&self) -> io::Result<(OwnedFd, Option<IpAddr>)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (socket, address) = rustix::net::acceptfrom_with(self, flags)?;
        let address = address.and_then(|address| SocketAddr::try_from(address).ok());
        Ok((socket, address.map(|address| address.ip().to_canonical())))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, Some(path)) = self {
            let _ = fs::remove_file(path);
        }
    }
}

/// The address at which a client on this machine reaches a listener: the loopback address for a listener on all addresses.
pub fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
