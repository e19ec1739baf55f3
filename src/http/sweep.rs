//! Ends connections that `tiny_http` would wait for without end: those on which nothing comes, those whose request head
//! comes too slowly or without end, and the longest idle ones where there are too many.
//!
//! The library starts a thread for each connection, gives it no time limit, and keeps whatever a head consists of. It
//! cannot be told otherwise, so this looks at the connections from outside, often, and ends what is beyond the limits.
//! Between two looks a client can get ahead of them, by as much as the library can read in that time.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::connection::{OpenConnection, SocketId, descriptor_limit};

/// The largest request line with headers. What the library makes of a head in memory can be twenty times as much.
pub(super) const MAX_HEAD: usize = 16 * 1024;

/// Connections that may be open. Each costs a thread, two descriptors and some 20 KiB.
const MAX_CONNECTIONS: usize = 256;

/// Of so many descriptors that the process may have, one connection: the other half of them is for what the handlers open.
const DESCRIPTORS_PER_CONNECTION: usize = 4;

const TOO_LARGE: &[u8] = b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: application/json\r\n\
    Content-Length: 70\r\nConnection: close\r\n\r\n{\"detail\":\"the request line and headers may have 16384 bytes at most\"}";

const TOO_SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\n\
    Content-Length: 47\r\nConnection: close\r\n\r\n{\"detail\":\"the request did not arrive in time\"}";

/// The library reads what has arrived at once, unless it has forgotten the connection.
const UNREAD: Duration = Duration::from_millis(200);

/// What a look came upon.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// Somebody is sending a request head.
    pub(super) head: bool,
    /// Connections whose bytes nobody reads.
    pub(super) forgotten: usize,
}

/// What is known of the connections.
pub(super) struct Sweep {
    limit: Duration,
    max_connections: usize,
    known: HashMap<SocketId, Known>,
}

/// One connection.
struct Known {
    /// When it was last seen with a request, or first seen at all.
    idle_since: Instant,
    /// What the library had read at that time.
    taken: u64,
    /// Since when it has been sending a head.
    head_since: Option<Instant>,
    /// A request of it has come, or is being worked on: what is read belongs to it, up to the next look.
    in_request: bool,
    ended: bool,
}

impl Known {
    fn new(now: Instant) -> Self {
        Self { idle_since: now, taken: 0, head_since: None, in_request: false, ended: false }
    }

    fn end(&mut self, connection: &OpenConnection, last_words: &[u8]) {
        connection.end(last_words);
        self.ended = true;
    }
}

impl Sweep {
    /// For clients that may keep their connections waiting for `limit`.
    pub(super) fn new(limit: Duration) -> Self {
        let max_connections = MAX_CONNECTIONS.min(descriptor_limit() / DESCRIPTORS_PER_CONNECTION);
        Self { limit, max_connections, known: HashMap::new() }
    }

    /// How long clients may keep their connections waiting.
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// A request has come on this connection.
    pub(super) fn request(&mut self, connection: SocketId) {
        self.known.entry(connection).or_insert_with(|| Known::new(Instant::now())).in_request = true;
    }

    /// Looks at all connections; the `busy` ones are at a request.
    pub(super) fn look(&mut self, connections: &[OpenConnection], busy: &HashSet<SocketId>) -> Seen {
        let now = Instant::now();
        let open: HashSet<SocketId> = connections.iter().map(|connection| connection.socket).collect();
        self.known.retain(|socket, _| open.contains(socket));

        let (mut idle, mut ending) = (Vec::new(), 0);
        let mut seen = Seen::default();
        for connection in connections {
            let known = self.known.entry(connection.socket).or_insert_with(|| Known::new(now));
            if known.ended {
                ending += 1;
                continue;
            }
            let (taken, waiting) = connection.taken_and_waiting().unwrap_or((known.taken, 0));
            let is_busy = busy.contains(&connection.socket);
            if is_busy || known.in_request {
                *known = Known { taken, in_request: is_busy, ..Known::new(now) };
            }
            if is_busy {
                continue;
            }
            let head = taken.saturating_sub(known.taken);
            if head > 0 || waiting > 0 {
                seen.head = true;
            }
            if head == 0 && waiting > 0 && now - known.idle_since >= UNREAD {
                seen.forgotten += 1;
            }
            let last_words = if head > MAX_HEAD as u64 {
                Some(TOO_LARGE)
            } else if head > 0 {
                let since = *known.head_since.get_or_insert(now);
                (now - since >= self.limit).then_some(TOO_SLOW)
            } else {
                (now - known.idle_since >= self.limit).then_some(&b""[..])
            };
            match last_words {
                Some(words) => {
                    known.end(connection, words);
                    ending += 1;
                }
                // Who has asked for something, or is about to, waits for an answer and is no idle one, however long ago it
                // came, and also where a burst of others came in the same moment.
                None => idle.push(((head > 0 || waiting > 0, known.idle_since), connection)),
            }
        }

        let surplus = (connections.len() - ending).saturating_sub(self.max_connections).min(idle.len());
        if surplus > 0 {
            idle.sort_unstable_by_key(|(order, _)| *order);
            for (_, connection) in &idle[..surplus] {
                if let Some(known) = self.known.get_mut(&connection.socket) {
                    known.end(connection, b"");
                }
            }
            log::warn!("{surplus} idle connections are closed: there may be {} at once", self.max_connections);
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prepared_answers_are_as_long_as_they_say() {
        for answer in [TOO_LARGE, TOO_SLOW] {
            let text = std::str::from_utf8(answer).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{text}: {}", body.len());
        }
    }
}
