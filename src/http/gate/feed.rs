//! The one connection on which `tiny_http` receives requests: of this process, with heads that it has written itself.

use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::net::{AddressFamily, RecvFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType};

/// The header that carries a request's number.
const NUMBER: &str = "X-Number";

/// So many answers of `tiny_http` fit the socket's buffer easily.
const UNREAD_ANSWERS: u32 = 32;

/// The gate's end: writes the heads.
pub(super) struct Feed(UnixStream);

/// The accept loop's end: receives the requests and acknowledges them.
pub(in crate::http) struct Requests {
    /// Dropping one on a socket without a path panics, so it lives as long as the process.
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
    // One connection fits, and it is this one: were another process quicker, this would fail. Nobody can connect after it.
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
    /// Hands over heads that [`write_head`] has written.
    pub(super) fn pass(&mut self, heads: &[u8]) -> io::Result<()> {
        self.0.write_all(heads)
    }
}

/// A head as `tiny_http` gets it: two checked words and a number.
pub(super) fn write_head(heads: &mut Vec<u8>, method: &str, target: &str, number: u64) {
    let _ = write!(heads, "{method} {target} HTTP/1.1\r\nContent-Length: 0\r\n{NUMBER}: {number}\r\n\r\n");
}

impl Requests {
    /// Waits for the next request: its method, target and number. None if none came.
    pub(in crate::http) fn next(&mut self, limit: std::time::Duration) -> Option<(tiny_http::Method, String, u64)> {
        // Its one error is that nobody else can connect.
        let request = self.server.recv_timeout(limit).ok().flatten()?;
        let number = request.headers().iter().find(|header| header.field.equiv(NUMBER))?.value.as_str().parse().ok()?;
        let (method, target) = (request.method().clone(), request.url().to_owned());
        // Acknowledges it; nobody reads this answer.
        let _ = request.respond(tiny_http::Response::empty(204));
        self.unread += 1;
        if self.unread >= UNREAD_ANSWERS {
            self.unread = 0;
            let mut waste = [0; 8192];
            while matches!(rustix::net::recv(&self.answers, &mut waste, RecvFlags::DONTWAIT), Ok((count, _)) if count > 0)
            {
            }
        }
        Some((method, target, number))
    }
}
