//! The answer to a request, as an endpoint makes it.

use std::fmt::Write;
use std::io::{self, BufRead};
use std::time::SystemTime;

use serde::Serialize;

use crate::api_client::Plaintext;
use crate::constants::AGENT;
use crate::logging::RequestId;

/// When a client should come back after a 503.
pub(super) const RETRY_AFTER_SECONDS: &str = "2";

pub(super) struct Reply {
    pub(super) status: u16,
    /// In addition to the headers that every answer has.
    headers: Vec<(&'static str, String)>,
    pub(super) body: ReplyBody,
}

pub(super) enum ReplyBody {
    Whole { content_type: &'static str, bytes: Vec<u8> },
    Stream { length: u64, reader: Box<dyn BufRead + Send> },
}

impl Reply {
    fn whole(status: u16, content_type: &'static str, bytes: Vec<u8>) -> Self {
        Self { status, headers: Vec::new(), body: ReplyBody::Whole { content_type, bytes } }
    }

    pub(super) fn json(status: u16, document: &impl Serialize) -> Self {
        // The documents are types of this program, and serializing them does not fail.
        let bytes = serde_json::to_vec(document).unwrap_or_default();
        Self::whole(status, "application/json", bytes)
    }

    pub(super) fn text(content_type: &'static str, bytes: impl Into<Vec<u8>>) -> Self {
        Self::whole(200, content_type, bytes.into())
    }

    /// The answer to `OPTIONS`.
    pub(super) fn options(allow: impl Into<String>) -> Self {
        Self::whole(204, "", Vec::new()).with_header("Allow", allow)
    }

    /// A page for people. `policy` is its `Content-Security-Policy`.
    pub(super) fn page(html: &'static str, policy: &'static str) -> Self {
        Self::text("text/html; charset=utf-8", html)
            .with_header("Content-Security-Policy", policy)
            .with_header("X-Content-Type-Options", "nosniff")
            .with_header("Referrer-Policy", "no-referrer")
            // After an update, the old page would not understand the new answers.
            .with_header("Cache-Control", "no-cache")
    }

    /// `{"detail": …}`, the body of every error.
    pub(super) fn error(status: u16, detail: impl ToString) -> Self {
        // Compiled once, not once for each type of detail.
        fn of_text(status: u16, detail: String) -> Reply {
            Reply::json(status, &serde_json::json!({ "detail": detail }))
        }
        of_text(status, detail.to_string())
    }

    /// The body could not be read: the client was too slow (408), sent malformed chunks (400), left, or sent a malformed
    /// form (422).
    pub(super) fn unreadable(error: &io::Error) -> Self {
        let status = match error.kind() {
            io::ErrorKind::TimedOut => 408,
            io::ErrorKind::InvalidData => 400,
            _ => 422,
        };
        Self::error(status, format!("the body could not be read: {error}"))
    }

    /// `{"status": "ok"}`.
    pub(super) fn ok() -> Self {
        Self::json(200, &serde_json::json!({ "status": "ok" }))
    }

    /// A model or a range of it, streamed.
    pub(super) fn model(plaintext: Plaintext) -> Self {
        let Plaintext { length, range, tag, modified, reader } = plaintext;
        let sent = range.as_ref().map_or(length, |range| range.end - range.start);
        let status = if range.is_some() { 206 } else { 200 };
        let reply = Self { status, headers: Vec::new(), body: ReplyBody::Stream { length: sent, reader } };
        let reply = reply.with_header("Accept-Ranges", "bytes").with_header("ETag", tag);
        let reply = match modified {
            Some(modified) => reply.with_header("Last-Modified", httpdate::fmt_http_date(modified)),
            None => reply,
        };
        match range {
            Some(range) => {
                reply.with_header("Content-Range", format!("bytes {}-{}/{length}", range.start, range.end - 1))
            }
            None => reply,
        }
    }

    pub(super) fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
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
        // Writing to a `String` does not fail.
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

    /// All bytes of an answer after which the connection ends.
    pub(super) fn into_last_answer(self, id: RequestId) -> Vec<u8> {
        let mut answer = self.head(id, Some("close"));
        if let ReplyBody::Whole { bytes, .. } = self.body {
            answer.extend_from_slice(&bytes);
        }
        answer
    }
}
