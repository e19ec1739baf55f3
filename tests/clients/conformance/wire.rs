//! The two services that these tests share, and helpers for what they must answer.

use std::fs;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::OnceLock;
use std::time::Duration;

use crate::world::raw::{self, Framing, Head, Reply, Stream};
use crate::world::service::Service;

/// Long enough that only a service that does not answer at all misses it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Is sent after a request that is refused. An answer to it means that the rest of the refused one was read as a request.
const CANARY: &[u8] = b"GET /canary HTTP/1.1\r\nHost: x\r\n\r\n";

/// A body whose answer shows that exactly these bytes were read: it names the missing field.
pub const BODY: &str = r#"{"email":"a"}"#;

/// A head for [`BODY`] up to the fields that give the length.
pub const LOGIN: &str = "POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";

static SERVICES: OnceLock<[Service; 2]> = OnceLock::new();

/// One on TCP, one on a Unix socket.
pub fn services() -> &'static [Service; 2] {
    SERVICES.get_or_init(|| {
        end_with_this_process();
        [Service::builder(), Service::builder().unix()].map(|builder| builder.timeout(PATIENCE).start())
    })
}

/// Statics are never dropped.
#[allow(unsafe_code)]
fn end_with_this_process() {
    extern "C" fn end() {
        for service in SERVICES.get().into_iter().flatten() {
            service.kill();
            let _ = fs::remove_dir_all(service.dir());
        }
    }
    // SAFETY: `end` is a plain function that does not unwind: nothing in it panics once the services have started.
    assert_eq!(unsafe { libc::atexit(end) }, 0);
}

/// A connection on which something was sent.
pub struct Client {
    reader: BufReader<Stream>,
    /// What was sent, for failure messages.
    what: String,
}

impl Client {
    pub fn send(service: &Service, bytes: &[u8]) -> Self {
        let kind = if service.address().starts_with("unix:") { "unix" } else { "tcp" };
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(400)]).escape_debug().to_string();
        let mut client = Self { reader: BufReader::new(service.connect()), what: format!("{kind}: {shown}") };
        client.more(bytes);
        client
    }

    /// Sends more. Where the service has ended the connection already, its answer says why.
    pub fn more(&mut self, bytes: &[u8]) {
        let _ = self.reader.get_mut().write_all(bytes);
    }

    /// Ends a direction of the connection.
    pub fn shutdown(&mut self, how: Shutdown) {
        self.reader.get_ref().shutdown(how).unwrap();
    }

    /// What was sent, for failure messages.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The next answer, interim or not, in the form that every answer has.
    pub fn any_answer(&mut self, method: &str) -> Reply {
        let what = &self.what;
        let head = Head::read(&mut self.reader).unwrap_or_else(|error| panic!("{what}: {error}"));
        let head = head.unwrap_or_else(|| panic!("{what}: closed without an answer"));
        assert!(head.start.starts_with("HTTP/1.1 "), "{what}: {:?}", head.start);
        let status = head.status().unwrap();
        let framing = head.framing().unwrap_or_else(|error| panic!("{what}: {error}"));
        let body = if status / 100 == 1 || status == 204 {
            // RFC 9110, 8.6, and RFC 9112, 6.1.
            assert_eq!(framing, Framing::None, "{what}: {status} has a length");
            Vec::new()
        } else if method == "HEAD" {
            Vec::new()
        } else {
            assert!(matches!(framing, Framing::Length(_)), "{what}: {status} without a length");
            raw::read_body(&mut self.reader, framing).unwrap_or_else(|error| panic!("{what}: {error}"))
        };
        if status >= 200 {
            let date = head.get("Date").unwrap_or_else(|| panic!("{what}: {status} without Date"));
            let parsed = httpdate::parse_http_date(date).unwrap_or_else(|error| panic!("{what}: {date}: {error}"));
            assert_eq!(httpdate::fmt_http_date(parsed), date, "{what}: not in the preferred format");
        }
        Reply { status, headers: head.headers, body }
    }

    /// The next answer that is final.
    pub fn answer(&mut self, method: &str) -> Reply {
        loop {
            let reply = self.any_answer(method);
            if reply.status >= 200 {
                return reply;
            }
        }
    }

    /// The next answer, which must have this status.
    pub fn answers(&mut self, method: &str, status: u16) -> Reply {
        let reply = self.answer(method);
        assert_eq!(reply.status, status, "{}: {}", self.what, reply.text());
        reply
    }

    /// Expects the answer that [`BODY`] gets if it was read unchanged.
    pub fn answers_the_body(&mut self) {
        let reply = self.answers("POST", 422);
        assert!(reply.detail().contains("password is missing"), "{}: {}", self.what, reply.text());
    }

    /// The connection serves another request.
    pub fn goes_on(&mut self) {
        self.more(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
        let reply = self.answers("GET", 200);
        assert_eq!(reply.text(), r#"{"status":"healthy"}"#, "{}", self.what);
    }

    /// The connection ends, and nothing more comes before.
    pub fn ends(&mut self) {
        let mut rest = Vec::new();
        if let Err(error) = self.reader.read_to_end(&mut rest) {
            let open = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
            assert!(!open, "{}: the connection stays open", self.what);
        }
        assert!(rest.is_empty(), "{}: {} follows", self.what, String::from_utf8_lossy(&rest));
    }

    /// The connection ends, and the answer said so.
    pub fn ends_as_said(&mut self, reply: &Reply) {
        assert!(has_option(reply, "close"), "{}: {} without Connection: close", self.what, reply.status);
        self.ends();
    }

    /// The connection ends as the answer said, or serves another request.
    pub fn ends_as_said_or_goes_on(&mut self, reply: &Reply) {
        if has_option(reply, "close") {
            self.ends();
        } else {
            self.goes_on();
        }
    }
}

/// Whether `Connection` of an answer lists this option.
pub fn has_option(reply: &Reply, option: &str) -> bool {
    reply.header("connection").is_some_and(|value| value.split(',').any(|word| word.trim() == option))
}

/// Sends bytes on a connection to each service.
pub fn on_both(bytes: impl AsRef<[u8]>, then: impl Fn(&mut Client)) {
    for service in services() {
        then(&mut Client::send(service, bytes.as_ref()));
    }
}

/// Refused with one of these statuses and a sentence; the connection ends, and nothing that follows is taken for a request.
pub fn refused(bytes: impl AsRef<[u8]>, statuses: &[u16]) {
    on_both([bytes.as_ref(), CANARY].concat(), |client| {
        let reply = client.answer("GET");
        assert!(statuses.contains(&reply.status), "{}: {} {}", client.what, reply.status, reply.text());
        assert_eq!(reply.header("content-type"), Some("application/json"), "{}", client.what);
        assert!(reply.detail().contains(' '), "{}: {}", client.what, reply.text());
        client.ends_as_said(&reply);
    });
}

/// Answered with this status, and the connection stays open.
pub fn served(bytes: impl AsRef<[u8]>, method: &str, status: u16) {
    on_both(bytes, |client| {
        client.answers(method, status);
        client.goes_on();
    });
}

/// Answered with this status, and the connection ends.
pub fn served_last(bytes: impl AsRef<[u8]>, method: &str, status: u16) {
    on_both(bytes, |client| {
        let reply = client.answers(method, status);
        client.ends_as_said(&reply);
    });
}

/// A request for `/health` with these field lines, each with its end, after `Host`.
pub fn health_with(fields: impl AsRef<[u8]>) -> Vec<u8> {
    [b"GET /health HTTP/1.1\r\nHost: x\r\n", fields.as_ref(), b"\r\n"].concat()
}

/// A request whose body is read, with these field lines for its framing, and these bytes after the head.
pub fn login_with(fields: impl AsRef<[u8]>, body: impl AsRef<[u8]>) -> Vec<u8> {
    [LOGIN.as_bytes(), fields.as_ref(), b"\r\n", body.as_ref()].concat()
}
