//! What `tiny_http` 0.12 hides about a connection, and its one deadly habit, in a module with unsafe code.
//!
//! - **The body.** When a body reader of `tiny_http` is dropped, or reaches the end of a connection, before it has given
//!   all the bytes that `Content-Length` promised, it allocates a buffer for *all* the missing bytes. One header line with
//!   a large number ends the process. [`take_body`] takes the reader out of the request and [`Body`](super::Body) reads it
//!   through [`TamedReader`], which keeps the reader's own idea of what is missing small at every moment.
//! - **The socket.** It is not exposed. [`Peer`] finds it among the process's descriptors, to set timeouts and to end a
//!   connection.
//! - **The connection.** It is handed out only with a complete request. [`OpenConnection`] tells how much of a head the
//!   library has read so far, and ends it.
//! - **The listener.** Accepted sockets inherit its options, so [`Listener`] sets them there.
#![allow(unsafe_code)]

mod body;
mod listener;
mod open;
mod peer;

pub(super) use body::{TamedReader, take_body};
pub(super) use listener::ACCEPT_LOOP_PATIENCE;
pub(super) use listener::Accepting;
pub use listener::{Listener, reachable};
pub(super) use open::OpenConnection;
pub(super) use peer::descriptor_limit;
pub use peer::{Peer, SocketId};
