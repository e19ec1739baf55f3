//! What is close to the bytes of a client. Nothing here knows what a request is for.

pub(super) mod body;
pub(super) mod connection;
pub(super) mod head;
pub(super) mod stall;
mod target;
