//! The connection of a request, and its socket among the process's descriptors.

use std::fs;
use std::mem::{ManuallyDrop, MaybeUninit, size_of};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::listener::ACCEPT_LOOP_PATIENCE;

/// A socket, whatever the number of its descriptors: no other one is it, before or after. An address would come round:
/// a client's next connection may have the port of its last one while that is still being worked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketId {
    device: u64,
    inode: u64,
}

impl SocketId {
    /// The socket behind a descriptor; none if there is no open file, and of other files nobody asks.
    pub(super) fn of(descriptor: RawFd) -> Option<Self> {
        let mut status = MaybeUninit::<libc::stat>::zeroed();
        // SAFETY: the buffer is of the type that the call writes and outlives it; a descriptor that is closed is an error.
        if unsafe { libc::fstat(descriptor, status.as_mut_ptr()) } != 0 {
            return None;
        }
        // SAFETY: all bytes were zeroed, and any value is a valid one of every field.
        let status = unsafe { status.assume_init() };
        Some(Self { device: status.st_dev, inode: status.st_ino })
    }

    /// Makes calls on a descriptor if it is this socket's. It is a second one, which nobody closes meanwhile: `tiny_http` may
    /// close its own at any time, and the number would be that of the next connection.
    pub(super) fn at(self, descriptor: RawFd, calls: impl FnOnce(RawFd)) {
        // SAFETY: no memory is involved; what is not a descriptor is looked at before it is taken for one.
        let second = unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 0) };
        // SAFETY: the descriptor is new and belongs to nobody else.
        let second = (second >= 0).then(|| unsafe { OwnedFd::from_raw_fd(second) });
        // Where none is free, the first one has to do.
        let descriptor = second.as_ref().map_or(descriptor, AsRawFd::as_raw_fd);
        if Self::of(descriptor) == Some(self) {
            calls(descriptor);
        }
    }
}

/// The other end of a connection, as far as it can be known.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// The client of the TCP connection with this socket.
    Tcp(SocketId),
    /// A client of the Unix socket that was bound to this path. Such clients have no address: one cannot be told from another.
    Unix(PathBuf),
}

impl Peer {
    /// Limits every single read on the connection, and makes writes that last come back now and then.
    pub fn set_timeouts(&self, limit: Duration) {
        set_timeouts(self.sockets(), limit);
    }

    /// Limits every write again as for the accept loop, which must not wait for a client. On a Unix socket others may
    /// be writing, so it changes nothing there.
    pub(in crate::http) fn expect_prompt_reading(&self) {
        if let Self::Tcp(_) = self {
            for socket in self.sockets() {
                set_timeout(socket, libc::SO_SNDTIMEO, ACCEPT_LOOP_PATIENCE);
            }
        }
    }

    /// Ends the connection so that the client notices at once.
    ///
    /// On a Unix socket this ends the reading side of all connections: idle ones close, responses that are on their way
    /// arrive, and an upload that is being received fails.
    pub fn disconnect(&self) {
        self.shutdown(match self {
            Self::Tcp(_) => libc::SHUT_RDWR,
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
        for descriptor in self.sockets() {
            match self {
                Self::Tcp(socket) => socket.at(descriptor, |descriptor| shutdown(descriptor, how)),
                Self::Unix(_) => shutdown(descriptor, how),
            }
        }
    }

    /// The descriptors of the connection's socket; those of all connections for a Unix socket. Each is looked at when it is
    /// asked for, and should be used at once: `tiny_http` may close it, and its number be given to another connection.
    pub(super) fn sockets(&self) -> impl Iterator<Item = RawFd> {
        descriptors().into_iter().filter(|descriptor| self.is_end_of(*descriptor).unwrap_or(false))
    }

    fn is_end_of(&self, descriptor: RawFd) -> Option<bool> {
        Some(match self {
            Self::Tcp(socket) => SocketId::of(descriptor)? == *socket,
            Self::Unix(path) => is_connection_of(descriptor, path)?,
        })
    }
}

pub(super) fn shutdown(descriptor: RawFd, how: libc::c_int) {
    // SAFETY: no memory is involved; a descriptor that was closed meanwhile, or is no socket, is an error.
    unsafe { libc::shutdown(descriptor, how) };
}

/// Numbers of descriptors are as low as can be, so that none that matters is above this.
const MOST_DESCRIPTORS: RawFd = 1 << 16;

/// All descriptors of this process. Some of them may be closed.
pub(super) fn descriptors() -> Vec<RawFd> {
    match fs::read_dir("/proc/self/fd") {
        Ok(entries) => entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect(),
        // Where none is free to look with, all numbers below the limit are taken; that is when looking matters most.
        Err(_) => (0..RawFd::try_from(descriptor_limit()).unwrap_or(RawFd::MAX).min(MOST_DESCRIPTORS)).collect(),
    }
}

/// How many descriptors this process may have.
pub(in crate::http) fn descriptor_limit() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure outlives the call.
    let told = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0;
    if told { usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX) } else { usize::MAX }
}

fn is_connection_of(descriptor: RawFd, path: &Path) -> Option<bool> {
    if option(descriptor, libc::SOL_SOCKET, libc::SO_DOMAIN)? != libc::AF_UNIX
        || option(descriptor, libc::SOL_SOCKET, libc::SO_ACCEPTCONN)? != 0
    {
        return None;
    }
    // Not a duplicate, for which no descriptor may be free.
    // SAFETY: the descriptor was open a moment ago and is a Unix socket. Should it have been closed since, the look at its
    // name fails; no other use is made of it, and it is not closed here.
    let socket = ManuallyDrop::new(unsafe { UnixStream::from_raw_fd(descriptor) });
    Some(socket.local_addr().ok()?.as_pathname() == Some(path))
}

pub(super) type NameCall = unsafe extern "C" fn(libc::c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

/// The address of one end of a TCP socket; none for anything else.
pub(super) fn name_of(descriptor: RawFd, call: NameCall) -> Option<SocketAddr> {
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

pub(super) fn option(descriptor: RawFd, level: libc::c_int, name: libc::c_int) -> Option<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the buffer is as long as `length` says and outlives the call.
    let result = unsafe { libc::getsockopt(descriptor, level, name, (&raw mut value).cast(), &raw mut length) };
    (result == 0).then_some(value)
}

pub(super) fn set_option<T>(descriptor: RawFd, level: libc::c_int, name: libc::c_int, value: T) {
    // SAFETY: the value is of the given size and outlives the call. An option that the kernel lacks is an error that
    // changes nothing: the service works without it, with less protection.
    unsafe {
        libc::setsockopt(descriptor, level, name, (&raw const value).cast(), size_of::<T>() as libc::socklen_t);
    }
}

/// See [`Peer::set_timeouts`].
fn set_timeouts(sockets: impl Iterator<Item = RawFd>, limit: Duration) {
    for socket in sockets {
        set_timeout(socket, libc::SO_RCVTIMEO, limit);
        set_timeout(socket, libc::SO_SNDTIMEO, limit / 4);
    }
}

pub(super) fn set_timeout(descriptor: RawFd, name: libc::c_int, limit: Duration) {
    // Built from zero: the structure has padding on some targets.
    // SAFETY: zero is a valid value of both fields.
    let mut time: libc::timeval = unsafe { MaybeUninit::zeroed().assume_init() };
    time.tv_sec = limit.as_secs() as _;
    time.tv_usec = limit.subsec_micros() as _;
    set_option(descriptor, libc::SOL_SOCKET, name, time);
}
