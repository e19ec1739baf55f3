//! The reference Resource API on the wire.
//!
//! It reads and writes raw sockets, without an HTTP library, because half of its purpose is to break the protocol.

use std::collections::HashMap;
use std::io::{self, BufReader, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use jwt_simple::prelude::{Claims, ECDSAP256KeyPairLike, ES256KeyPair, HS256Key, MACLike};
use serde_json::{Value, json};

use super::multipart;
use super::protocol::{self, Salts};
use super::raw::{self, Head};
use super::resource_api::{Fault, RecordedRequest};
use super::tcp::{lock, reset_on_close};

/// Everything the API knows.
pub struct State {
    signer: Signer,
    salts: Salts,
    /// What changes while it runs.
    pub inner: Mutex<Inner>,
}

/// How tokens are signed.
pub enum Signer {
    /// HS256.
    Shared(HS256Key),
    /// ES256.
    Pair(Box<ES256KeyPair>),
}

/// What changes while the API runs.
pub struct Inner {
    /// By email.
    pub users: HashMap<String, User>,
    /// Plain bytes by folder and name.
    pub files: HashMap<(String, String), Vec<u8>>,
    /// Valid tokens, with their user and expiry.
    pub tokens: HashMap<String, (String, Instant)>,
    /// The lifetime of new tokens.
    pub token_lifetime: Duration,
    /// The archive's key fragment.
    pub key_fragment: Vec<u8>,
    /// The oldest first.
    pub faults: Vec<Armed>,
    /// In order of arrival.
    pub requests: Vec<RecordedRequest>,
}

/// An account.
pub struct User {
    id: String,
    password: String,
    role: Value,
}

/// An armed fault.
pub struct Armed {
    /// The prefix of the paths that it is for.
    pub prefix: String,
    /// What happens.
    pub fault: Fault,
    /// How many times more; `None`: always.
    pub left: Option<usize>,
}

/// An answer before a fault is applied to it.
struct Answer {
    status: u16,
    content_type: &'static str,
    body: Vec<u8>,
}

impl User {
    /// A user with a new id.
    pub fn new(password: &str, role: Value) -> Self {
        Self { id: uuid(), password: password.to_owned(), role }
    }
}

impl State {
    /// Without users and files.
    pub fn new(signer: Signer) -> Self {
        let inner = Inner {
            users: HashMap::new(),
            files: HashMap::new(),
            tokens: HashMap::new(),
            token_lifetime: Duration::from_secs(4 * 3600),
            key_fragment: b"dev-key-fragment".to_vec(),
            faults: Vec::new(),
            requests: Vec::new(),
        };
        Self { signer, salts: Salts::default(), inner: Mutex::new(inner) }
    }

    /// Serves one connection to its end.
    pub fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream);
        let mut writer = stream;
        while let Some(head) = Head::read(&mut reader)? {
            let (method, target) = head.request_line()?;
            if head.get("Expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
                writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            let body = raw::read_body(&mut reader, head.framing()?)?;
            match self.record(&head, method, target, body.len()) {
                None => send(&mut writer, &self.answer(&head, method, target, &body), Pace::Whole)?,
                Some(fault) => {
                    let answer = || self.answer(&head, method, target, &body);
                    match fault {
                        Fault::Hang | Fault::HangAfterServed => {
                            if let Fault::HangAfterServed = fault {
                                answer();
                            }
                            // Ends when the client gives up or the server goes down.
                            io::copy(&mut reader, &mut io::sink())?;
                            return Ok(());
                        }
                        Fault::Status(status, body) => send(&mut writer, &Answer::text(status, &body), Pace::Whole)?,
                        Fault::StatusWithRetryAfter(status, seconds) => write!(
                            writer,
                            "HTTP/1.1 {status} Faulty\r\nRetry-After: {seconds}\r\nContent-Length: 0\r\n\r\n"
                        )?,
                        Fault::Reset | Fault::ResetAfterServed => {
                            if let Fault::ResetAfterServed = fault {
                                answer();
                            }
                            reset_on_close(stream);
                            return Ok(());
                        }
                        Fault::Truncate => return send(&mut writer, &answer(), Pace::Half),
                        Fault::Garbage => return writer.write_all(b"\x16\x03\x01\0\xffno http at all\n\n\0\0\0"),
                        Fault::Trickle(bytes) => send(&mut writer, &answer(), Pace::Trickle(bytes))?,
                        Fault::Delay(time) => {
                            thread::sleep(time);
                            send(&mut writer, &answer(), Pace::Whole)?;
                        }
                        Fault::Redirect(to) => {
                            write!(writer, "HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n")?;
                        }
                    }
                }
            }
            if head.closes() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Records a request and takes the fault that is armed for it.
    fn record(&self, head: &Head, method: &str, target: &str, body_len: usize) -> Option<Fault> {
        let mut inner = lock(&self.inner);
        inner.requests.push(RecordedRequest {
            method: method.to_owned(),
            path: target.to_owned(),
            body_len,
            headers: head.headers.clone(),
            at: Instant::now(),
        });
        let index = inner.faults.iter().position(|armed| armed.left != Some(0) && target.starts_with(&armed.prefix))?;
        let armed = &mut inner.faults[index];
        armed.left = armed.left.map(|left| left - 1);
        Some(armed.fault.clone())
    }

    fn answer(&self, head: &Head, method: &str, target: &str, body: &[u8]) -> Answer {
        let path = target.split('?').next().unwrap_or_default();
        if path == "/login" {
            return if method == "POST" { self.login(head, body) } else { Answer::text(405, "") };
        }
        let token = head.get("Authorization").and_then(|value| value.strip_prefix("Bearer "));
        let Some(email) = token.and_then(|token| self.user_of(token)) else {
            return Answer::text(401, "");
        };
        match (method, path) {
            ("GET", "/binary-split/key-fragment") => Answer::bytes(lock(&self.inner).key_fragment.clone()),
            ("POST", _) => match (path.strip_prefix("/resources/get/"), path.strip_prefix("/resources/")) {
                (Some(folder), _) => self.get(&email, &decoded(folder), head, body),
                (None, Some(folder)) => self.store(&decoded(folder), head, body),
                (None, None) => Answer::text(404, ""),
            },
            _ => Answer::text(404, ""),
        }
    }

    fn login(&self, head: &Head, body: &[u8]) -> Answer {
        let Some([email, password]) = json_fields(head, body, ["email", "password"]) else {
            return Answer::text(400, "email and password, please");
        };
        let mut inner = lock(&self.inner);
        let Some(user) = inner.users.get(&email) else { return Answer::business(30, "No such email found.") };
        if user.password != password {
            return Answer::business(40, "Passwords do not match.");
        }
        let claims = json!({ "nameid": user.id, "unique_name": email, "role": user.role });
        let lifetime = inner.token_lifetime;
        let claims = Claims::with_custom_claims(claims, lifetime.into()).with_jwt_id(uuid());
        let token = match &self.signer {
            Signer::Shared(key) => key.authenticate(claims),
            Signer::Pair(pair) => pair.sign(claims),
        };
        let token = token.expect("claims sign");
        inner.tokens.insert(token.clone(), (email, Instant::now() + lifetime));
        Answer::json(200, &json!({ "token": token }))
    }

    /// The user of a token, if it is still valid.
    fn user_of(&self, token: &str) -> Option<String> {
        let inner = lock(&self.inner);
        let (email, end) = inner.tokens.get(token)?;
        (Instant::now() < *end).then(|| email.clone())
    }

    fn get(&self, email: &str, folder: &str, head: &Head, body: &[u8]) -> Answer {
        let Some([password, hardware, name]) = json_fields(head, body, ["password", "hardware", "fileName"]) else {
            return Answer::text(400, "password, hardware and fileName, please");
        };
        let inner = lock(&self.inner);
        if inner.users.get(email).is_none_or(|user| user.password != password) {
            return Answer::business(40, "Passwords do not match.");
        }
        match inner.files.get(&(folder.to_owned(), name)) {
            None => Answer::business(70, "No such file."),
            Some(plain) => {
                let key = protocol::api_key(email, &password, &hardware, &self.salts);
                Answer::bytes(protocol::encrypt(plain, key.as_bytes()))
            }
        }
    }

    fn store(&self, folder: &str, head: &Head, body: &[u8]) -> Answer {
        match multipart::file(head.get("Content-Type").unwrap_or_default(), body) {
            Err(why) => Answer::text(400, why),
            Ok((name, bytes)) => {
                lock(&self.inner).files.insert((folder.to_owned(), name), bytes);
                Answer { status: 200, content_type: "text/plain", body: Vec::new() }
            }
        }
    }
}

impl Answer {
    fn bytes(body: Vec<u8>) -> Self {
        Self { status: 200, content_type: "application/octet-stream", body }
    }

    fn text(status: u16, body: &str) -> Self {
        let content_type = if body.starts_with('{') { "application/json" } else { "text/plain" };
        Self { status, content_type, body: body.as_bytes().to_vec() }
    }

    fn json(status: u16, value: &Value) -> Self {
        Self { status, content_type: "application/json; charset=utf-8", body: value.to_string().into_bytes() }
    }

    fn business(code: u16, message: &str) -> Self {
        Self::json(409, &json!({ "ErrorCode": code, "Message": message }))
    }
}

/// How an answer's body is sent.
enum Pace {
    Whole,
    Half,
    Trickle(usize),
}

fn send(writer: &mut impl Write, answer: &Answer, pace: Pace) -> io::Result<()> {
    let Answer { status, content_type, body } = answer;
    let reason = if *status == 200 { "OK" } else { "Error" };
    write!(
        writer,
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )?;
    match pace {
        Pace::Whole => writer.write_all(body),
        Pace::Half => writer.write_all(&body[..body.len() / 2]),
        Pace::Trickle(bytes) => body.chunks(bytes.max(1)).try_for_each(|piece| {
            writer.write_all(piece)?;
            thread::sleep(Duration::from_millis(100));
            Ok(())
        }),
    }
}

/// String fields of a JSON object; `None` if the body is not declared as JSON or lacks one.
fn json_fields<const N: usize>(head: &Head, body: &[u8], names: [&str; N]) -> Option<[String; N]> {
    head.get("Content-Type").filter(|kind| kind.starts_with("application/json"))?;
    let value: Value = serde_json::from_slice(body).ok()?;
    let fields = names.map(|name| value.get(name).and_then(Value::as_str).map(str::to_owned));
    fields.iter().all(Option::is_some).then(|| fields.map(Option::unwrap_or_default))
}

fn decoded(segment: &str) -> String {
    percent_encoding::percent_decode_str(segment).decode_utf8_lossy().into_owned()
}

/// A random UUID, version 4.
fn uuid() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the kernel has randomness");
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = super::hex(&bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
