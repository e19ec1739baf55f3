//! The open connections of a TCP listener as the kernel counts them, for those on which `tiny_http` waits too long.

use std::mem::{MaybeUninit, size_of};
use std::net::SocketAddr;
use std::os::fd::RawFd;

use super::peer::name_of;

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
    /// The client's address.
    pub(in crate::http) peer: SocketAddr,
    port: u16,
    descriptor: RawFd,
}

impl OpenConnection {
    /// The connection behind a descriptor, if it is one to this port.
    pub(super) fn of(descriptor: RawFd, port: u16) -> Option<Self> {
        name_of(descriptor, libc::getsockname).filter(|local| local.port() == port)?;
        // A listening socket has no peer.
        Some(Self { peer: name_of(descriptor, libc::getpeername)?, port, descriptor })
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
        // The descriptor may have been closed, and its number given to something else, since it was looked at.
        if Self::of(self.descriptor, self.port).is_none_or(|now| now.peer != self.peer) {
            return;
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the buffer is as long as the call is told and outlives it; the descriptor was this connection's a moment
        // ago, and one that is no socket is an error.
        unsafe {
            libc::send(self.descriptor, last_words.as_ptr().cast(), last_words.len(), flags);
            libc::shutdown(self.descriptor, libc::SHUT_RDWR);
        }
    }
}
