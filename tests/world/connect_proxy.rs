//! A proxy as companies have one at their border: it answers `CONNECT`, and then passes bytes.

use std::io::{self, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use super::raw::Head;
use super::tcp::{TcpServer, lock};

/// The running proxy; it stops when dropped.
pub struct ConnectProxy {
    server: TcpServer,
    asked: Arc<Mutex<Vec<String>>>,
}

impl ConnectProxy {
    /// Starts on any free port.
    pub fn start() -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let record = asked.clone();
        let server = TcpServer::start(0, move |client| {
            let _ = serve(&client, &record);
        });
        Self { server, asked }
    }

    /// The value for `HTTPS_PROXY`.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.host_port())
    }

    /// The `host:port` of each `CONNECT` so far.
    pub fn asked(&self) -> Vec<String> {
        lock(&self.asked).clone()
    }

    /// Refuses connections from now on.
    pub fn down(&self) {
        self.server.down();
    }
}

fn serve(mut client: &TcpStream, asked: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut reader = BufReader::new(client);
    let Some(head) = Head::read(&mut reader)? else { return Ok(()) };
    let target = head.start.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).unwrap_or_default();
    lock(asked).push(target.to_owned());
    let Ok(server) = TcpStream::connect(target) else {
        return client.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n");
    };
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = io::copy(&mut &server, &mut &*client);
            let _ = client.shutdown(Shutdown::Both);
        });
        let _ = io::copy(&mut reader, &mut &server);
        let _ = server.shutdown(Shutdown::Both);
    });
    Ok(())
}
