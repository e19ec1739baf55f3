//! What an [`S3Proxy`](super::s3_proxy::S3Proxy) can do to a request.

use std::time::Duration;

use super::raw::Head;

/// What happens to a matching request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The answer's body ends after so many bytes, although its head promises all.
    CutResponseAt(u64),
    /// The answer's body ends half way.
    CutAtHalf,
    /// The request's body is taken up to so many bytes, then the connection is reset; the server sees a broken request.
    CutRequestAt(u64),
    /// The request is read and never answered; the server never sees it.
    HangBeforeResponse,
    /// The head and so many bytes of the body, then silence.
    HangAt(u64),
    /// This status without a body; the server never sees the request.
    Status(u16),
    /// As `Status`, with `Retry-After` in seconds.
    StatusWithRetryAfter(u16, u64),
    /// The connection is reset; the server never sees the request.
    Reset,
    /// The server does as asked, but the connection is reset before its answer.
    ResetAfterServed,
    /// Bytes that are no HTTP.
    Garbage,
    /// The answer's body at so many bytes each 100 ms.
    Trickle(usize),
    /// 307 to this place.
    Redirect(String),
    /// The server never sees `Range`: the answer is a 200 with all.
    IgnoreRange,
    /// `Content-Range` of the answer claims bytes further on than those it carries.
    WrongContentRange,
    /// A 206 without `Content-Range`.
    DropContentRange,
    /// The byte of the answer's body at this offset is another one.
    CorruptByteAt(u64),
    /// Everything so much later.
    Delay(Duration),
    /// The answer carries no `x-amz-meta-` header.
    DropMetadata,
}

/// What the proxy answers by itself: `Some(None)` is silence.
pub fn instead(fault: &Fault) -> Option<Option<Head>> {
    let status = |status: &u16| {
        let mut head = Head { start: format!("HTTP/1.1 {status} Faulty"), headers: Vec::new() };
        head.set("Content-Length", 0);
        head
    };
    match fault {
        Fault::HangBeforeResponse => Some(None),
        Fault::Status(code) => Some(Some(status(code))),
        Fault::StatusWithRetryAfter(code, seconds) => {
            let mut head = status(code);
            head.set("Retry-After", seconds);
            Some(Some(head))
        }
        Fault::Redirect(to) => {
            let mut head = status(&307);
            head.set("Location", to);
            Some(Some(head))
        }
        Fault::Garbage => Some(Some(Head { start: "\u{16}\u{3}\u{1} no http at all".to_owned(), headers: Vec::new() })),
        _ => None,
    }
}

/// What a fault does to the head of an answer.
pub fn change_head(answer: &mut Head, fault: Option<&Fault>) {
    match fault {
        Some(Fault::DropMetadata) => {
            answer.headers.retain(|(name, _)| !name.to_ascii_lowercase().starts_with("x-amz-meta-"));
        }
        Some(Fault::DropContentRange) => answer.remove("Content-Range"),
        Some(Fault::WrongContentRange) => {
            // `bytes 5-9/10` becomes `bytes 6-9/10`: the kind of error that a careless client does not see.
            let range = answer.get("Content-Range").and_then(|value| value.strip_prefix("bytes ")?.split_once('-'));
            if let Some((Ok(first), rest)) = range.map(|(first, rest)| (first.parse::<u64>(), rest.to_owned())) {
                answer.set("Content-Range", format!("bytes {}-{rest}", first + 1));
            }
        }
        _ => {}
    }
}
