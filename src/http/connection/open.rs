//! The open connections of a TCP listener as the kernel counts them: which one a request came on, and those on which
//! `tiny_http` waits too long.

use std::collections::{HashMap, HashSet};
use std::mem::{MaybeUninit, size_of};
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::{Mutex, PoisonError};

use super::peer::{SocketId, descriptors, name_of, shutdown};

/// The fields of the kernel's `struct tcp_info` up to `tcpi_bytes_received`, which is all that is asked for here. The
/// structure only ever grows at its end; this part is there since Linux 4.1.
#[repr(C)]
struct TcpInfo {
    /// State, options and timers up to `tcpi_total_retrans`.
    _before: [u32; 26],
    /// Pacing rates and acknowledged bytes.
    _rates: [u64; 3],
    bytes_received: u64,
}

/// One open connection of a client.
#[derive(Debug)]
pub(in crate::http) struct OpenConnection {
    /// What tells it from all others.
    pub(in crate::http) socket: SocketId,
    /// The client's address.
    peer: SocketAddr,
    descriptor: RawFd,
}

impl OpenConnection {
    /// All connections to this port, each once, though `tiny_http` has two descriptors of it.
    pub(super) fn all(port: u16) -> Vec<Self> {
        let mut seen = HashSet::new();
        let connections = descriptors().into_iter().filter_map(|descriptor| Self::of(descriptor, port));
        connections.filter(|connection| seen.insert(connection.socket)).collect()
    }

    /// The connection behind a descriptor, if it is one to this port.
    fn of(descriptor: RawFd, port: u16) -> Option<Self> {
        name_of(descriptor, libc::getsockname).filter(|local| local.port() == port)?;
        // A listening socket has no peer.
        let peer = name_of(descriptor, libc::getpeername)?;
        Some(Self { socket: SocketId::of(descriptor)?, peer, descriptor })
    }

    /// How many bytes of the client `tiny_http` has taken so far, and how many more have arrived. None where the kernel does
    /// not tell.
    pub(in crate::http) fn taken_and_waiting(&self) -> Option<(u64, u64)> {
        let mut info = MaybeUninit::<TcpInfo>::zeroed();
        let mut length = size_of::<TcpInfo>() as libc::socklen_t;
        let mut waiting: libc::c_int = 0;
        // SAFETY: both buffers are as long as the calls are told and outlive them; a descriptor that was closed meanwhile is
        // an error.
        let told = unsafe {
            let option = libc::TCP_INFO;
            libc::getsockopt(self.descriptor, libc::IPPROTO_TCP, option, info.as_mut_ptr().cast(), &raw mut length) == 0
                && libc::ioctl(self.descriptor, libc::FIONREAD as _, &raw mut waiting) == 0
        };
        if !told || (length as usize) < size_of::<TcpInfo>() {
            return None;
        }
        // SAFETY: all bytes were zeroed, and any value is a valid one of every field.
        let info = unsafe { info.assume_init() };
        let waiting = u64::try_from(waiting).unwrap_or(0);
        Some((info.bytes_received.saturating_sub(waiting), waiting))
    }

    /// Ends the connection, after these last words if the socket has room for them.
    pub(in crate::http) fn end(&self, last_words: &[u8]) {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        self.socket.at(self.descriptor, |descriptor| {
            // SAFETY: the buffer is as long as the call is told and outlives it; a descriptor that is no socket is an error.
            unsafe { libc::send(descriptor, last_words.as_ptr().cast(), last_words.len(), flags) };
            shutdown(descriptor, libc::SHUT_RDWR);
        });
    }

    /// Whether it is still this connection's descriptor, and the client is still there.
    fn is_there(&self) -> bool {
        SocketId::of(self.descriptor) == Some(self.socket)
            && name_of(self.descriptor, libc::getpeername) == Some(self.peer)
    }

    /// Lets the connection end after the current response: nothing more is read from it.
    pub(super) fn stop_reading(&self) {
        self.socket.at(self.descriptor, |descriptor| shutdown(descriptor, libc::SHUT_RD));
    }
}

/// The connections of clients as they were when they were last looked for: to look through all descriptors at each request
/// would take longer than to answer it.
#[derive(Debug, Default)]
pub struct LastSeen(Mutex<HashMap<SocketAddr, OpenConnection>>);

impl LastSeen {
    /// The socket of this client's connection, one of `all`; none if the client has gone.
    pub(super) fn socket_of(&self, client: SocketAddr, all: impl FnOnce() -> Vec<OpenConnection>) -> Option<SocketId> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !seen.get(&client).is_some_and(OpenConnection::is_there) {
            *seen = all().into_iter().map(|found| (found.peer, found)).collect();
        }
        seen.get(&client).map(|found| found.socket)
    }
}
