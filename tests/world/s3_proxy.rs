//! A bad network on demand: a reverse proxy in front of an S3 server that breaks chosen requests in chosen ways.
//!
//! It forwards `Host` as it came. Both servers check a signature against the `Host` they receive, so a loader whose CDN
//! configuration names the proxy is accepted by the server.

use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use url::Url;

use super::raw::{self, Head};
use super::s3::{Keys, S3, signed};
pub use super::s3_fault::{Fault, Purpose};
use super::s3_fault::{change_head, change_request, instead, too_skewed};
use super::s3_forward::{Body, hang, read_answer, reset, send_request};
use super::tcp::{TcpServer, lock};

/// A request that passed.
#[derive(Clone, Debug)]
pub struct Passed {
    /// Method.
    pub method: String,
    /// Target as sent: path and query.
    pub path: String,
    /// `Range`, if there was one.
    pub range: Option<String>,
    /// Headers as sent.
    pub headers: Vec<(String, String)>,
    /// The status that the client got, if it got one.
    pub status: Option<u16>,
    /// Bytes of the answer's body that the client got.
    pub sent: u64,
    id: u64,
}

/// The running proxy; it stops when dropped.
pub struct S3Proxy {
    server: TcpServer,
    state: Arc<State>,
}

struct State {
    upstream: String,
    /// To sign a request again after a fault has changed it.
    keys: Option<Keys>,
    faults: Mutex<Vec<Armed>>,
    passed: Mutex<Vec<Passed>>,
    next: AtomicU64,
}

struct Armed {
    method: String,
    path: String,
    purpose: Option<Purpose>,
    fault: Fault,
    left: Option<usize>,
}

impl S3Proxy {
    /// Starts in front of `host:port`. Faults that change a request then need an unsigned one.
    pub fn start(upstream: &str) -> Self {
        Self::launch(upstream, None)
    }

    /// Starts in front of a server whose keys are known, so that every fault works on every request.
    pub fn before(s3: &S3) -> Self {
        Self::launch(s3.host_port(), Some(s3.uploader().clone()))
    }

    fn launch(upstream: &str, keys: Option<Keys>) -> Self {
        let state = Arc::new(State {
            upstream: upstream.to_owned(),
            keys,
            faults: Mutex::default(),
            passed: Mutex::default(),
            next: AtomicU64::new(0),
        });
        let served = state.clone();
        let server = TcpServer::start(0, move |stream| {
            // Broken connections are its purpose.
            let _ = served.serve(&stream);
        });
        Self { server, state }
    }

    /// The value for `host` in the CDN configuration.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.host_port())
    }

    /// Arms a fault for requests of this method (`""`: any) whose path or query contains this text, `times` times or
    /// until cleared. If several match, the oldest acts.
    pub fn fault(&self, method: &str, path: &str, fault: Fault, times: Option<usize>) {
        self.arm(Armed { method: method.to_owned(), path: path.to_owned(), purpose: None, fault, left: times });
    }

    /// As [`fault`](Self::fault), for requests with this purpose.
    pub fn fault_on(&self, purpose: Purpose, path: &str, fault: Fault, times: Option<usize>) {
        let armed = Armed { method: String::new(), path: path.to_owned(), purpose: Some(purpose), fault, left: times };
        self.arm(armed);
    }

    fn arm(&self, armed: Armed) {
        lock(&self.state.faults).push(armed);
    }

    /// Whether a fault still waits for its request.
    pub fn awaits_a_request(&self) -> bool {
        lock(&self.state.faults).iter().any(|armed| armed.left != Some(0))
    }

    /// Disarms all faults; a connection that hangs keeps hanging.
    pub fn clear_faults(&self) {
        lock(&self.state.faults).clear();
    }

    /// All requests so far, in the order in which they came.
    pub fn requests(&self) -> Vec<Passed> {
        lock(&self.state.passed).clone()
    }

    /// How many requests so far had this method (`""`: any) and this text in their path or query.
    pub fn count(&self, method: &str, path: &str) -> usize {
        let passed = lock(&self.state.passed);
        passed.iter().filter(|request| matches(method, path, &request.method, &request.path)).count()
    }

    /// Bytes of bodies that clients got so far from such requests.
    pub fn bytes_sent(&self, method: &str, path: &str) -> u64 {
        let passed = lock(&self.state.passed);
        passed
            .iter()
            .filter(|request| matches(method, path, &request.method, &request.path))
            .map(|request| request.sent)
            .sum()
    }

    /// Forgets the recorded requests.
    pub fn clear_requests(&self) {
        lock(&self.state.passed).clear();
    }

    /// Refuses connections and cuts the open ones.
    pub fn down(&self) {
        self.server.down();
    }

    /// Listens again after [`down`](Self::down), on the same port.
    pub fn up(&self) {
        self.server.up();
    }

    /// Cuts the open connections, and keeps listening.
    pub fn cut(&self) {
        self.server.cut();
    }
}

impl State {
    fn serve(&self, client: &TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(client);
        while let Some(head) = Head::read(&mut reader)? {
            let (method, target) = head.request_line()?;
            let id = self.record(&head, method, target);
            let fault = self.take_fault(method, target, Purpose::of(&head));
            if !self.pass(client, &mut reader, head.clone(), fault, id)? || head.closes() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// One request and its answer; `false` ends the connection.
    fn pass(
        &self,
        mut client: &TcpStream,
        reader: &mut BufReader<&TcpStream>,
        mut head: Head,
        fault: Option<Fault>,
        id: u64,
    ) -> io::Result<bool> {
        if head.get("Expect").is_some() {
            client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            head.remove("Expect");
        }
        let framing = head.framing()?;
        match &fault {
            Some(Fault::Reset) => return Ok(reset(client)),
            Some(Fault::Delay(time)) => thread::sleep(*time),
            Some(Fault::ClockAhead(ahead)) => {
                if let Some(refusal) = too_skewed(&head, *ahead) {
                    raw::read_body(reader, framing)?;
                    self.note(id, 403, 0);
                    client.write_all(&refusal)?;
                    return Ok(true);
                }
                // The store's own clock is right.
                self.sign_again(&mut head)?;
            }
            _ => {}
        }
        if change_request(&mut head, fault.as_ref()) {
            self.sign_again(&mut head)?;
        }
        if let Some(answer) = fault.as_ref().and_then(instead) {
            raw::read_body(reader, framing)?;
            let Some(answer) = answer else { return hang(client) };
            if let Ok(status) = answer.status() {
                self.note(id, status, 0);
            }
            client.write_all(&answer.to_bytes())?;
            return answer.status().map(|_| true);
        }

        let server = TcpStream::connect(&self.upstream)?;
        // One connection per request: where an answer ends is then never in doubt.
        head.set("Connection", "close");
        let allowed = match fault {
            Some(Fault::CutRequestAt(bytes) | Fault::HangRequestAt(bytes)) => Some(bytes),
            _ => None,
        };
        if !send_request(&server, &mut head, reader, framing, allowed)? {
            if let Some(Fault::HangRequestAt(_)) = fault {
                return hang(client);
            }
            return Ok(reset(client));
        }
        let mut answers = BufReader::new(&server);
        let (method, _) = head.request_line()?;
        let (mut answer, body) = read_answer(&mut answers, method)?;
        if let Some(Fault::ResetAfterServed) = fault {
            io::copy(&mut { body.reader }, &mut io::sink())?;
            return Ok(reset(client));
        }
        if let Some(Fault::HangAfterServed) = fault {
            io::copy(&mut { body.reader }, &mut io::sink())?;
            self.note(id, answer.status()?, 0);
            return hang(client);
        }
        change_head(&mut answer, fault.as_ref());
        let status = answer.status()?;
        self.note(id, status, 0);
        client.write_all(&answer.to_bytes())?;
        self.relay(client, body, fault.as_ref(), id, status)
    }

    fn relay(
        &self,
        mut client: &TcpStream,
        body: Body<'_>,
        fault: Option<&Fault>,
        id: u64,
        status: u16,
    ) -> io::Result<bool> {
        let Body { mut reader, length } = body;
        let end = match fault {
            Some(Fault::CutResponseAt(bytes) | Fault::HangAt(bytes)) => length.min(*bytes),
            Some(Fault::CutAtHalf) => length / 2,
            _ => length,
        };
        let step = if let Some(Fault::Trickle(bytes)) = fault { (*bytes).max(1) } else { 64 * 1024 };
        let mut buffer = vec![0; step];
        let mut sent = 0;
        while sent < end {
            let want = step.min(usize::try_from(end - sent).unwrap_or(step));
            let count = reader.read(&mut buffer[..want])?;
            if count == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            if let Some(Fault::CorruptByteAt(offset)) = fault
                && let Some(at) = offset.checked_sub(sent).filter(|at| *at < count as u64)
            {
                buffer[usize::try_from(at).unwrap_or_default()] ^= 0xff;
            }
            client.write_all(&buffer[..count])?;
            sent += count as u64;
            self.note(id, status, sent);
            if let Some(Fault::Trickle(_)) = fault {
                thread::sleep(Duration::from_millis(100));
            }
        }
        if let Some(Fault::HangAt(_)) = fault {
            hang(client)?;
        }
        // A body no longer than the cut has been sent whole; the connection still ends.
        Ok(!matches!(fault, Some(Fault::CutResponseAt(_) | Fault::CutAtHalf | Fault::HangAt(_))))
    }

    /// Signs a request again after its signed headers were changed.
    fn sign_again(&self, head: &mut Head) -> io::Result<()> {
        if head.get("Authorization").is_none() {
            return Ok(());
        }
        let keys = self.keys.as_ref().expect("a fault that changes a request: start the proxy with `S3Proxy::before`");
        let (method, target) = head.request_line()?;
        let (method, target) = (method.to_owned(), target.to_owned());
        let host = head.get("Host").unwrap_or_default();
        let url = Url::parse(&format!("http://{host}{target}")).map_err(io::Error::other)?;
        let own = ["x-amz-date", "x-amz-content-sha256"];
        let amz: Vec<_> = head.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
        let amz = amz.iter().filter(|(name, _)| name.starts_with("x-amz-") && !own.contains(&name.as_str()));
        let amz: Vec<_> = amz.map(|(name, value)| (name.as_str(), value.as_str())).collect();
        // Only an empty body is hashed.
        let body: &[u8] = if matches!(method.as_str(), "PUT" | "POST") { b"any" } else { b"" };
        for (name, value) in &signed(keys, &method, &url, &amz, body) {
            head.set(name.as_str(), value.to_str().unwrap_or_default());
        }
        Ok(())
    }

    fn record(&self, head: &Head, method: &str, target: &str) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.passed).push(Passed {
            method: method.to_owned(),
            path: target.to_owned(),
            range: head.get("Range").map(str::to_owned),
            headers: head.headers.clone(),
            status: None,
            sent: 0,
            id,
        });
        id
    }

    fn note(&self, id: u64, status: u16, sent: u64) {
        // The record may have been cleared meanwhile.
        if let Some(request) = lock(&self.passed).iter_mut().rev().find(|request| request.id == id) {
            request.status = Some(status);
            request.sent = sent;
        }
    }

    fn take_fault(&self, method: &str, target: &str, purpose: Option<Purpose>) -> Option<Fault> {
        let mut faults = lock(&self.faults);
        let mut armed = faults.iter_mut().filter(|armed| armed.left != Some(0));
        let armed = armed.find(|armed| {
            matches(&armed.method, &armed.path, method, target)
                && armed.purpose.is_none_or(|wanted| Some(wanted) == purpose)
        })?;
        armed.left = armed.left.map(|left| left - 1);
        Some(armed.fault.clone())
    }
}

fn matches(method: &str, path: &str, by_method: &str, by_target: &str) -> bool {
    (method.is_empty() || method == by_method) && by_target.contains(path)
}
