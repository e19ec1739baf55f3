//! `loader healthcheck`: asks the running service, for images that have no curl.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::configuration::BindAddress;
use crate::http::reachable;

/// The service answers from memory, so a slower answer is none.
const PATIENCE: Duration = Duration::from_secs(3);

const REQUEST: &[u8] = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// Asks `/health` at the address that the service listens on.
pub(super) fn ask(address: &BindAddress) -> Result<(), String> {
    let answer = match address {
        BindAddress::Tcp(address) => TcpStream::connect_timeout(&reachable(*address), PATIENCE).and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            exchange(stream)
        }),
        BindAddress::Unix(path) => UnixStream::connect(path).and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            exchange(stream)
        }),
    };
    let answer = answer.map_err(|error| error.to_string())?;
    if answer.starts_with("HTTP/1.1 200 ") {
        Ok(())
    } else {
        Err(format!("it answered {:?}", answer.lines().next().unwrap_or_default()))
    }
}

fn exchange(mut stream: impl Read + Write) -> io::Result<String> {
    stream.write_all(REQUEST)?;
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
