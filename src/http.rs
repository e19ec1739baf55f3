//! The HTTP server. Whatever a client sends is hostile until it has been checked here.
//!
//! The path of a request:
//!
//! 1. `wire` is close to the bytes: connections, request heads, the framing of bodies, stall timers.
//! 2. `gate` accepts clients, reads their request heads and hands each valid one to `tiny_http`.
//! 3. `server` is the accept loop, which receives the requests from `tiny_http`.
//! 4. `dispatch` looks up the route. It answers from memory at once, and queues what may block for one of the `handlers`.
//! 5. `routes` has the table of endpoints and one file for each.
//!
//! An `exchange` is one request and the duty to answer it: it reads the body from, and writes the `reply` to, the client's
//! own connection.

mod dispatch;
mod exchange;
mod gate;
mod handlers;
mod heartbeat;
mod json;
mod multipart;
mod origin;
mod reply;
mod routes;
mod server;
mod service;
mod wire;

pub use gate::{Listener, reachable};
pub use multipart::{Multipart, boundary};
pub use server::{Draining, serve};
pub use service::Service;

/// For the fuzz target: parses request heads.
#[doc(hidden)]
pub fn fuzz_head(bytes: &[u8]) {
    wire::head::fuzz(bytes);
}

/// For the fuzz target: decodes chunked bodies.
#[doc(hidden)]
pub fn fuzz_chunked(bytes: &[u8]) {
    wire::body::fuzz(bytes);
}

/// For the fuzz target: the decoded path parameter of a request target.
#[doc(hidden)]
pub fn fuzz_route(target: &str) -> Option<String> {
    routes::find(target).ok().map(|(_, parameter)| parameter)
}
