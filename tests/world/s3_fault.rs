//! What an [`S3Proxy`](super::s3_proxy::S3Proxy) can do to a request.

use std::time::Duration;

use super::raw::Head;

/// What happens to a matching request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The answer's body ends after this many bytes, although its head promises all.
    CutResponseAt(u64),
    /// The answer's body ends halfway.
    CutAtHalf,
    /// This many bytes of the request's body are read, then the connection is reset; the server sees a broken request.
    CutRequestAt(u64),
    /// This many bytes of the request's body are read, then comes silence; the server waits for the rest as well.
    HangRequestAt(u64),
    /// The request is read and never answered; the server never sees it.
    HangBeforeResponse,
    /// The server carries out the request, but its answer never comes.
    HangAfterServed,
    /// The head and this many bytes of the body, then silence.
    HangAt(u64),
    /// This status without a body; the server never sees the request.
    Status(u16),
    /// As `Status`, with `Retry-After` in seconds.
    StatusWithRetryAfter(u16, u64),
    /// The connection is reset; the server never sees the request.
    Reset,
    /// The server carries out the request, but the connection is reset before its answer.
    ResetAfterServed,
    /// Bytes that are not HTTP.
    Garbage,
    /// This many bytes of the answer's body every 100 ms.
    Trickle(usize),
    /// A 307 to this URL.
    Redirect(String),
    /// The server never sees `Range`: the answer is a 200 with everything.
    IgnoreRange,
    /// The server never sees `If-Match`.
    IgnoreIfMatch,
    /// The answer's `Content-Range` claims later bytes than it carries.
    WrongContentRange,
    /// A 206 without `Content-Range`.
    DropContentRange,
    /// The answer's `Content-Range` claims an object that is one byte longer.
    WrongTotal,
    /// The server is asked for a range that begins this many bytes later (negative: earlier), and its answer says so
    /// truthfully.
    ShiftRange(i64),
    /// The byte at this offset of the answer's body is altered.
    CorruptByteAt(u64),
    /// Everything comes this much later.
    Delay(Duration),
    /// The answer carries no `x-amz-meta-` header.
    DropMetadata,
    /// The server's clock is this many seconds ahead: a request signed at another time is refused.
    ClockAhead(i64),
    /// The answer's entity tag is weak, as a compressing proxy makes it.
    WeakTag,
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

/// Applies a fault to the head of an answer.
pub fn change_head(answer: &mut Head, fault: Option<&Fault>) {
    match fault {
        Some(Fault::DropMetadata) => {
            answer.headers.retain(|(name, _)| !name.to_ascii_lowercase().starts_with("x-amz-meta-"));
        }
        Some(Fault::DropContentRange) => answer.remove("Content-Range"),
        Some(Fault::WeakTag) => {
            if let Some(tag) = answer.get("ETag").map(str::to_owned) {
                answer.set("ETag", format!("W/{tag}"));
            }
        }
        Some(Fault::WrongContentRange) => {
            // `bytes 5-9/10` becomes `bytes 6-9/10`: an error that a careless client does not notice.
            let range = answer.get("Content-Range").and_then(|value| value.strip_prefix("bytes ")?.split_once('-'));
            if let Some((Ok(first), rest)) = range.map(|(first, rest)| (first.parse::<u64>(), rest.to_owned())) {
                answer.set("Content-Range", format!("bytes {}-{rest}", first + 1));
            }
        }
        Some(Fault::WrongTotal) => {
            let range = answer.get("Content-Range").and_then(|value| value.rsplit_once('/'));
            if let Some((range, Ok(total))) = range.map(|(range, total)| (range.to_owned(), total.parse::<u64>())) {
                answer.set("Content-Range", format!("{range}/{}", total + 1));
            }
        }
        _ => {}
    }
}

/// The answer of a server whose clock is ahead to a request signed at another time.
pub fn too_skewed(request: &Head, ahead: i64) -> Option<Vec<u8>> {
    let now = time::OffsetDateTime::now_utc() + time::Duration::seconds(ahead);
    let format = time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
    let date = request.get("x-amz-date")?;
    let signed = time::PrimitiveDateTime::parse(date, &format).expect("a date").assume_utc();
    if (signed - now).abs() < time::Duration::minutes(15) {
        return None;
    }
    let body = "<Error><Code>RequestTimeTooSkewed</Code></Error>";
    // An answer to HEAD has no body.
    let (length, body) = if request.start.starts_with("HEAD") { (0, "") } else { (body.len(), body) };
    let mut head = Head { start: "HTTP/1.1 403 Forbidden".to_owned(), headers: Vec::new() };
    head.set("Date", httpdate::fmt_http_date(now.into()));
    head.set("Content-Length", length);
    Some([head.to_bytes(), body.into()].concat())
}

/// Applies a fault to the head of a request. Returns whether it changed anything, so that the signature is no longer
/// right.
pub fn change_request(request: &mut Head, fault: Option<&Fault>) -> bool {
    let name = if let Some(Fault::IgnoreIfMatch) = fault { "If-Match" } else { "Range" };
    let Some(value) = request.get(name).map(str::to_owned) else { return false };
    match fault {
        Some(Fault::IgnoreRange | Fault::IgnoreIfMatch) => request.remove(name),
        Some(Fault::ShiftRange(by)) => {
            let Some((from, to)) = value.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
                return false;
            };
            match (from.parse::<i64>(), to.parse::<i64>()) {
                (Ok(from), _) => request.set(name, format!("bytes={}-{to}", from + by)),
                // `-32` asks for the last 32 bytes: a longer suffix begins earlier.
                (Err(_), Ok(last)) => request.set(name, format!("bytes=-{}", last - by)),
                _ => return false,
            }
        }
        _ => return false,
    }
    true
}

/// What a request does with an object; several purposes share a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// `GET` of all of it.
    Whole,
    /// `HEAD`.
    Describe,
    /// `GET` of a range of at most 32 bytes.
    Tail,
    /// `GET` of any other range: a download that continues.
    Rest,
    /// `PUT` of its bytes.
    Store,
    /// `PUT` that copies another object.
    Copy,
}

impl Purpose {
    /// The purpose of a request.
    pub fn of(request: &Head) -> Option<Self> {
        let (method, _) = request.request_line().ok()?;
        let range = request.get("Range").and_then(|range| range.strip_prefix("bytes="));
        match (method, range) {
            ("GET", None) => Some(Self::Whole),
            ("HEAD", _) => Some(Self::Describe),
            ("GET", Some(range)) => {
                let (from, to) = range.split_once('-')?;
                let length = to.parse::<u64>().ok()? - from.parse::<u64>().ok()? + 1;
                Some(if length <= 32 { Self::Tail } else { Self::Rest })
            }
            ("PUT", _) if request.get("x-amz-copy-source").is_some() => Some(Self::Copy),
            ("PUT", _) => Some(Self::Store),
            _ => None,
        }
    }
}
