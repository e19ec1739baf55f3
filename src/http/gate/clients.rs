//! The connections that the gate owns, and what it expects of each.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use crate::http::exchange::Exchange;
use crate::http::wire::connection::Connection;
use crate::http::wire::head::{Head, HeadBuffer, Refusal};

pub(super) struct Client {
    pub(super) connection: Arc<Connection>,
    pub(super) state: State,
    /// When it entered this state.
    pub(super) since: Instant,
    /// It has not sent a request yet.
    is_new: bool,
}

pub(super) enum State {
    /// Between requests.
    Idle,
    /// The beginning of a head has arrived.
    Head(HeadBuffer),
    /// The request waits for the first byte of its body.
    Body(Box<Exchange>),
    /// The client reads its last answer. It has sent this many bytes since.
    Lingering(usize),
    /// A request uses the connection.
    Lent,
}

/// The states that have a time limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    Idle,
    Head,
    Body,
    Lingering,
}

impl State {
    fn wait(&self) -> Option<Wait> {
        match self {
            Self::Idle => Some(Wait::Idle),
            Self::Head(_) => Some(Wait::Head),
            Self::Body(_) => Some(Wait::Body),
            Self::Lingering(_) => Some(Wait::Lingering),
            Self::Lent => None,
        }
    }

    fn head_bytes(&self) -> usize {
        match self {
            Self::Head(head) => head.size(),
            _ => 0,
        }
    }
}

/// All clients, by the numbers of their connections.
#[derive(Default)]
pub(super) struct Clients {
    all: HashMap<u64, Client>,
    /// The waiting clients by [`Wait`], with the longest wait first.
    waiting: [BTreeSet<(Instant, u64)>; 4],
    /// The memory that incomplete heads use.
    pub(super) head_bytes: usize,
}

impl Clients {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// All that are not just reading their last answer.
    pub(super) fn in_use(&self) -> usize {
        self.all.len() - self.waiting[Wait::Lingering as usize].len()
    }

    pub(super) fn add(&mut self, connection: Arc<Connection>) {
        let token = connection.token;
        self.all.insert(token, Client { connection, state: State::Lent, since: Instant::now(), is_new: true });
        self.set(token, State::Idle);
    }

    pub(super) fn get_mut(&mut self, token: u64) -> Option<&mut Client> {
        self.all.get_mut(&token)
    }

    /// Changes the state of a client, and returns the previous one.
    pub(super) fn set(&mut self, token: u64, state: State) -> Option<State> {
        let client = self.all.get_mut(&token)?;
        if let Some(wait) = client.state.wait() {
            self.waiting[wait as usize].remove(&(client.since, token));
        }
        self.head_bytes = self.head_bytes + state.head_bytes() - client.state.head_bytes();
        client.since = Instant::now();
        client.is_new &= !matches!(state, State::Lent);
        if let Some(wait) = state.wait() {
            self.waiting[wait as usize].insert((client.since, token));
        }
        Some(std::mem::replace(&mut client.state, state))
    }

    /// Adds bytes to a client's head, whose time limit runs from the first byte. Returns the head and the bytes after it, once
    /// it is complete.
    pub(super) fn add_to_head(&mut self, token: u64, bytes: &[u8]) -> Result<Option<(Head, Vec<u8>)>, Refusal> {
        let Some(client) = self.all.get_mut(&token) else { return Ok(None) };
        if !matches!(client.state, State::Head(_)) {
            self.set(token, State::Head(HeadBuffer::default()));
        }
        let Some(Client { state: State::Head(head), .. }) = self.all.get_mut(&token) else { return Ok(None) };
        let before = head.size();
        head.push(bytes);
        let whole = head.take_head();
        self.head_bytes = self.head_bytes + head.size() - before;
        whole
    }

    /// Forgets a client, which closes its connection unless a request uses it.
    pub(super) fn remove(&mut self, token: u64) -> bool {
        self.set(token, State::Lent);
        self.all.remove(&token).is_some()
    }

    /// The clients that have had an answer and have not sent another request.
    pub(super) fn between_requests(&self) -> Vec<u64> {
        self.waiting[Wait::Idle as usize]
            .iter()
            .map(|(_, token)| *token)
            .filter(|token| !self.all[token].is_new)
            .collect()
    }

    /// Whether a client has not sent its first request yet.
    pub(super) fn has_newcomers(&self) -> bool {
        let waits = [Wait::Idle, Wait::Head].map(|wait| &self.waiting[wait as usize]);
        waits.into_iter().flatten().any(|(_, token)| self.all[token].is_new)
    }

    /// The client that has been waiting longest, and since when.
    pub(super) fn longest(&self, wait: Wait) -> Option<(Instant, u64)> {
        self.waiting[wait as usize].first().copied()
    }
}
