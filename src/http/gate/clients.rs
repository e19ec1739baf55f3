//! The connections that the gate keeps, and what each is waited for.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use super::super::connection::Connection;
use super::super::exchange::Exchange;
use super::head::{Head, HeadBuffer, Refusal};

/// A connection, and what it is waited for since when.
pub(super) struct Client {
    pub(super) connection: Arc<Connection>,
    pub(super) state: State,
    pub(super) since: Instant,
    /// It has not had a request yet.
    is_new: bool,
}

pub(super) enum State {
    /// Between requests.
    Idle,
    /// A head has begun.
    Head(HeadBuffer),
    /// The body has not begun.
    Body(Box<Exchange>),
    /// The last answer is being read. So many bytes have come since.
    Lingering(usize),
    /// A request has it.
    Lent,
}

/// What a client is waited for.
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

/// All of them, by the numbers of their connections.
#[derive(Default)]
pub(super) struct Clients {
    all: HashMap<u64, Client>,
    /// Those that are waited for, for each [`Wait`] the longest first.
    waiting: [BTreeSet<(Instant, u64)>; 4],
    /// The memory of heads that are not whole.
    pub(super) head_bytes: usize,
    lingering: usize,
}

impl Clients {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Those that are not just reading their last answer.
    pub(super) fn in_use(&self) -> usize {
        self.all.len() - self.lingering
    }

    /// A newcomer.
    pub(super) fn add(&mut self, connection: Arc<Connection>) {
        let token = connection.token;
        self.all.insert(token, Client { connection, state: State::Lent, since: Instant::now(), is_new: true });
        self.set(token, State::Idle);
    }

    pub(super) fn get_mut(&mut self, token: u64) -> Option<&mut Client> {
        self.all.get_mut(&token)
    }

    /// Changes what a client is waited for. Answers what it was waited for before.
    pub(super) fn set(&mut self, token: u64, state: State) -> Option<State> {
        let client = self.all.get_mut(&token)?;
        if let Some(wait) = client.state.wait() {
            self.waiting[wait as usize].remove(&(client.since, token));
        }
        self.head_bytes = self.head_bytes + state.head_bytes() - client.state.head_bytes();
        let lingers = |state: &State| usize::from(matches!(state, State::Lingering(_)));
        self.lingering = self.lingering + lingers(&state) - lingers(&client.state);
        client.since = Instant::now();
        client.is_new &= !matches!(state, State::Lent);
        if let Some(wait) = state.wait() {
            self.waiting[wait as usize].insert((client.since, token));
        }
        Some(std::mem::replace(&mut client.state, state))
    }

    /// Adds bytes to a client's head, whose time runs from its first byte. Answers the head, once it is whole, with what follows
    /// it.
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

    /// Forgets a client, and closes its connection unless a request has it.
    pub(super) fn remove(&mut self, token: u64) -> bool {
        self.set(token, State::Lent);
        self.all.remove(&token).is_some()
    }

    /// The numbers of those that wait between two requests.
    pub(super) fn between_requests(&self) -> Vec<u64> {
        self.waiting[Wait::Idle as usize]
            .iter()
            .map(|(_, token)| *token)
            .filter(|token| !self.all[token].is_new)
            .collect()
    }

    /// Whether somebody's first request is still to come.
    pub(super) fn has_newcomers(&self) -> bool {
        let waits = [Wait::Idle, Wait::Head].map(|wait| &self.waiting[wait as usize]);
        waits.into_iter().flatten().any(|(_, token)| self.all[token].is_new)
    }

    /// The number of the client that has been waited for longest, and since when.
    pub(super) fn longest(&self, wait: Wait) -> Option<(Instant, u64)> {
        self.waiting[wait as usize].first().copied()
    }
}
