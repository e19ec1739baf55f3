//! How many clients there may be.

use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};

/// Connections beyond the limit that are answered 503.
pub(super) const OVERFLOW: usize = 64;

/// Descriptors for everything else: logs, docker, and what each handler opens.
const OTHER_DESCRIPTORS: usize = 32;
const DESCRIPTORS_PER_HANDLER: usize = 16;

pub(in crate::http) struct Limits {
    /// `MAX_CONNECTIONS`.
    pub(in crate::http) connections: usize,
    /// `HANDLER_THREADS`.
    pub(in crate::http) handlers: usize,
    /// `CLIENT_STALL_SECONDS`.
    pub(in crate::http) stall: Duration,
}

impl Limits {
    /// How many clients fit into the limit of descriptors, which is raised if necessary and possible.
    pub(super) fn capacity(&self) -> usize {
        let others = OTHER_DESCRIPTORS + DESCRIPTORS_PER_HANDLER * self.handlers;
        let wanted = self.connections + OVERFLOW + others;
        let mut descriptors = getrlimit(Resource::Nofile);
        if descriptors.current.is_some_and(|current| current < wanted as u64) {
            let most = descriptors.maximum.unwrap_or(u64::MAX);
            descriptors.current = Some(most.min(wanted as u64));
            let _ = setrlimit(Resource::Nofile, descriptors);
        }
        let current = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |current| current as usize);
        let capacity = self.connections.min(current.saturating_sub(others + OVERFLOW).max(current / 2));
        if capacity < self.connections {
            let connections = self.connections;
            log::warn!(
                "MAX_CONNECTIONS is {connections}, but the limit of {current} descriptors leaves room for {capacity}; \
                 raise it (LimitNOFILE= or ulimit -n)"
            );
        }
        capacity
    }
}
