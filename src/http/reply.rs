//! What a route answers.

use std::io::BufRead;

use serde::Serialize;

use crate::api_client::Plaintext;

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
    #[must_use]
    pub fn json(status: u16, document: &impl Serialize) -> Self {
        // The documents are this program's own types, which all have a JSON form.
        let bytes = serde_json::to_vec(document).unwrap_or_default();
        Self { status, headers: Vec::new(), body: ReplyBody::Whole { content_type: "application/json", bytes } }
    }

    /// A text of this program.
    #[must_use]
    pub fn text(content_type: &'static str, bytes: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, headers: Vec::new(), body: ReplyBody::Whole { content_type, bytes: bytes.into() } }
    }

    /// A page for people: a browser takes nothing into it but the scripts and styles that `policy`, a
    /// `Content-Security-Policy`, names.
    #[must_use]
    pub fn page(html: &'static str, policy: &'static str) -> Self {
        Self::text("text/html; charset=utf-8", html)
            .with_header("Content-Security-Policy", policy)
            .with_header("X-Content-Type-Options", "nosniff")
            .with_header("Referrer-Policy", "no-referrer")
            // A page of the version before would not know this one's answers.
            .with_header("Cache-Control", "no-cache")
    }

    /// `{"detail": …}`, the body of every error.
    #[must_use]
    pub fn error(status: u16, detail: impl ToString) -> Self {
        Self::json(status, &serde_json::json!({ "detail": detail.to_string() }))
    }

    /// `{"status": "ok"}`.
    #[must_use]
    pub fn ok() -> Self {
        Self::json(200, &serde_json::json!({ "status": "ok" }))
    }

    /// A model or a range of it, streamed.
    #[must_use]
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
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn content_type(&self) -> &'static str {
        match &self.body {
            ReplyBody::Whole { content_type, .. } => content_type,
            ReplyBody::Stream { .. } => "application/octet-stream",
        }
    }

    pub(super) fn length(&self) -> u64 {
        match &self.body {
            ReplyBody::Whole { bytes, .. } => bytes.len() as u64,
            ReplyBody::Stream { length, .. } => *length,
        }
    }
}

/// The words for a status code.
pub(super) fn reason_phrase(status: u16) -> &'static str {
    http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("")
}
