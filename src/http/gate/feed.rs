//! The only connection of `tiny_http`: this process connects to itself, and sends heads that it has written itself.

use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::net::{AddressFamily, RecvFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType};

/// The header with the number of the request.
const NUMBER: &str = "X-Number";

/// This many answers of `tiny_http` fit easily into the buffer of the socket.
const UNREAD_ANSWERS: u32 = 32;

/// The gate's end of the connection, which writes the heads.
pub(super) struct Feed(UnixStream);

/// The accept loop's end of the connection, which receives the requests and acknowledges them.
pub(in crate::http) struct Requests {
    /// Dropping a server on a socket without a path panics, so it lives as long as the process.
    server: ManuallyDrop<tiny_http::Server>,
    answers: UnixStream,
    unread: u32,
}

/// Connects a `tiny_http` server to this process and to nobody else.
pub(super) fn connect() -> io::Result<(Feed, Requests)> {
    let mut name = [0; 16];
    getrandom::fill(&mut name).map_err(io::Error::other)?;
    let address = SocketAddrUnix::new_abstract_name(&name)?;
    let socket = || rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let listening = socket()?;
    rustix::net::bind(&listening, &address)?;
    // There is room for one connection. If another process took it first, `connect` would fail here.
    rustix::net::listen(&listening, 0)?;
    let ours = socket()?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    rustix::net::connect(&ours, &address)?;
    rustix::io::ioctl_fionbio(&ours, false)?;
    rustix::net::shutdown(&listening, Shutdown::Both)?;
    let server = tiny_http::Server::from_listener(UnixListener::from(listening), None).map_err(io::Error::other)?;
    let feed = UnixStream::from(ours);
    let answers = feed.try_clone()?;
    Ok((Feed(feed), Requests { server: ManuallyDrop::new(server), answers, unread: 0 }))
}

impl Feed {
    /// Sends heads that [`write_head`] has written.
    pub(super) fn pass(&mut self, heads: &[u8]) -> io::Result<()> {
        self.0.write_all(heads)
    }
}

/// Writes a head for `tiny_http`: two checked words and a number.
pub(super) fn write_head(heads: &mut Vec<u8>, method: &str, target: &str, number: u64) {
    let _ = write!(heads, "{method} {target} HTTP/1.1\r\nContent-Length: 0\r\n{NUMBER}: {number}\r\n\r\n");
}

impl Requests {
    /// Waits for the next request: its method, target and number. None if there is none in time.
    pub(in crate::http) fn next(&mut self, limit: std::time::Duration) -> Option<(tiny_http::Method, String, u64)> {
        // The only error it has is that nobody else can connect.
        let request = self.server.recv_timeout(limit).ok().flatten()?;
        let number = request.headers().iter().find(|header| header.field.equiv(NUMBER))?.value.as_str().parse().ok()?;
        let (method, target) = (request.method().clone(), request.url().to_owned());
        // Acknowledges the request. The answer is discarded below.
        let _ = request.respond(tiny_http::Response::empty(204));
        self.unread += 1;
        if self.unread >= UNREAD_ANSWERS {
            self.unread = 0;
            let mut buffer = [0; 8192];
            let mut read = || rustix::net::recv(&self.answers, &mut buffer, RecvFlags::DONTWAIT);
            while read().is_ok_and(|(count, _)| count > 0) {}
        }
        Some((method, target, number))
    }
}
