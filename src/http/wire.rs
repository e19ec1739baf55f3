//! The layer close to the bytes of a client, which is independent of the purpose of a request.

pub(super) mod body;
pub(super) mod connection;
pub(super) mod head;
pub(super) mod stall;
mod target;
