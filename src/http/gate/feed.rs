//! The only connection of `tiny_http`: this process connects to itself, and sends heads that it has written itself.

use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType};

/// The header with the number of the request.
const NUMBER: &str = "X-Number";

/// The gate's end of the connection, which writes the heads.
pub(super) struct Feed(UnixStream);

/// The accept loop's end of the connection, which receives the requests. Dropping a server on a socket without a path panics, so
/// it lives as long as the process.
pub(in crate::http) struct Requests(ManuallyDrop<tiny_http::Server>);

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
    Ok((Feed(UnixStream::from(ours)), Requests(ManuallyDrop::new(server))))
}

impl Feed {
    /// Sends heads that [`write_head`] has written.
    pub(super) fn pass(&mut self, heads: &[u8]) -> io::Result<()> {
        self.0.write_all(heads)
    }
}

/// Writes a head for `tiny_http`: two checked words and a number.
pub(super) fn write_head(heads: &mut Vec<u8>, method: &str, target: &str, number: u64) {
    let _ = write!(heads, "{method} {target} HTTP/1.1\r\n{NUMBER}: {number}\r\n\r\n");
}

impl Requests {
    /// Waits for the next request: its method, target and number. None if there is none in time.
    pub(in crate::http) fn next(&self, limit: Duration) -> Option<(tiny_http::Method, String, u64)> {
        // The only error it has is that nobody else can connect.
        let request = self.0.recv_timeout(limit).ok().flatten()?;
        let number = request.headers().iter().find(|header| header.field.equiv(NUMBER))?.value.as_str().parse().ok()?;
        let (method, target) = (request.method().clone(), request.url().to_owned());
        // The client is answered on its own connection. A request whose writer was taken does not answer here when it is dropped.
        drop(request.into_writer());
        Some((method, target, number))
    }
}
