//! What a route answers.

use std::fmt::Write;
use std::io::{self, BufRead};
use std::time::SystemTime;

use serde::Serialize;

use crate::api_client::Plaintext;
use crate::constants::AGENT;
use crate::logging::RequestId;

/// When to come back after a 503.
pub(super) const RETRY_AFTER_SECONDS: &str = "2";

/// A response: status, headers and body.
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// Headers besides those that every response has.
    pub headers: Vec<(&'static str, String)>,
    pub(super) body: ReplyBody,
}

pub(super) enum ReplyBody {
    Whole { content_type: &'static str, bytes: Vec<u8> },
    Stream { length: u64, reader: Box<dyn BufRead + Send> },
}

impl Reply {
    /// A JSON document.
    pub fn json(status: u16, document: &impl Serialize) -> Self {
        // The documents are this program's own types, which all have a JSON form.
        let bytes = serde_json::to_vec(document).unwrap_or_default();
        Self { status, headers: Vec::new(), body: ReplyBody::Whole { content_type: "application/json", bytes } }
    }

    /// A text of this program.
    pub fn text(content_type: &'static str, bytes: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, headers: Vec::new(), body: ReplyBody::Whole { content_type, bytes: bytes.into() } }
    }

    /// The methods that a resource has, the answer to `OPTIONS`.
    pub(super) fn options(allow: impl Into<String>) -> Self {
        let body = ReplyBody::Whole { content_type: "", bytes: Vec::new() };
        Self { status: 204, headers: Vec::new(), body }.with_header("Allow", allow)
    }

    /// A page for people: a browser takes nothing into it but the scripts and styles that `policy`, a
    /// `Content-Security-Policy`, names.
    pub fn page(html: &'static str, policy: &'static str) -> Self {
        Self::text("text/html; charset=utf-8", html)
            .with_header("Content-Security-Policy", policy)
            .with_header("X-Content-Type-Options", "nosniff")
            .with_header("Referrer-Policy", "no-referrer")
            // A page of the version before would not know this one's answers.
            .with_header("Cache-Control", "no-cache")
    }

    /// `{"detail": …}`, the body of every error.
    pub fn error(status: u16, detail: impl ToString) -> Self {
        Self::json(status, &serde_json::json!({ "detail": detail.to_string() }))
    }

    /// The body could not be read: the client was too slow (408), broke the rules of chunks (400), or went away (422).
    pub(super) fn unreadable(error: &io::Error) -> Self {
        let status = match error.kind() {
            io::ErrorKind::TimedOut => 408,
            io::ErrorKind::InvalidData => 400,
            _ => 422,
        };
        Self::error(status, format!("the body could not be read: {error}"))
    }

    /// `{"status": "ok"}`.
    pub fn ok() -> Self {
        Self::json(200, &serde_json::json!({ "status": "ok" }))
    }

    /// A model or a range of it, streamed.
    pub fn model(plaintext: Plaintext) -> Self {
        let Plaintext { length, range, tag, reader } = plaintext;
        let sent = range.as_ref().map_or(length, |range| range.end - range.start);
        let body = ReplyBody::Stream { length: sent, reader };
        let reply = Self { status: if range.is_some() { 206 } else { 200 }, headers: Vec::new(), body };
        let reply = reply.with_header("Accept-Ranges", "bytes").with_header("ETag", tag);
        match range {
            Some(range) => {
                reply.with_header("Content-Range", format!("bytes {}-{}/{length}", range.start, range.end - 1))
            }
            None => reply,
        }
    }

    /// The same with one more header.
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Status line and headers, up to the empty line.
    pub(super) fn head(&self, id: RequestId, connection: Option<&str>) -> Vec<u8> {
        let reason = http::StatusCode::from_u16(self.status).ok().and_then(|status| status.canonical_reason());
        let date = httpdate::fmt_http_date(SystemTime::now());
        let mut head =
            format!("HTTP/1.1 {} {}\r\nServer: {AGENT}\r\nDate: {date}\r\n", self.status, reason.unwrap_or(""));
        let (content_type, length) = match &self.body {
            ReplyBody::Whole { content_type, bytes } => (*content_type, bytes.len() as u64),
            ReplyBody::Stream { length, .. } => ("application/octet-stream", *length),
        };
        // A `String` takes everything.
        if self.status != 204 {
            let _ = write!(head, "Content-Type: {content_type}\r\nContent-Length: {length}\r\n");
        }
        for (name, value) in &self.headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        let _ = write!(head, "X-Request-Id: {id}\r\n");
        if let Some(connection) = connection {
            let _ = write!(head, "Connection: {connection}\r\n");
        }
        head.push_str("\r\n");
        head.into_bytes()
    }

    /// The whole of an answer after which the connection ends.
    pub(super) fn into_last_answer(self, id: RequestId) -> Vec<u8> {
        let mut answer = self.head(id, Some("close"));
        if let ReplyBody::Whole { bytes, .. } = self.body {
            answer.extend_from_slice(&bytes);
        }
        answer
    }
}
