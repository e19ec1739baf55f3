//! The HTTP server: what comes from a socket is hostile until it has been checked here.
//!
//! client → `gate` (heads) → `tiny_http` → accept loop (`server`) → answered there, or by one of the `handlers`. An
//! [`Exchange`] is one request with the duty to answer it; its `body` is read from, and its [`Reply`] written to, the
//! client's own `connection`.

mod body;
mod connection;
mod exchange;
mod gate;
mod handlers;
mod json;
mod multipart;
mod origin;
mod patience;
mod pulse;
mod reply;
mod router;
mod routes;
mod server;
mod service;

pub use exchange::Exchange;
pub use gate::{Listener, reachable};
pub use multipart::{Multipart, MultipartError, PartHead, boundary};
pub use reply::Reply;
pub use router::{Route, RouteError, route};
pub use server::{Running, Server};
pub use service::Service;

/// The parser of request heads, for its fuzz target.
#[doc(hidden)]
pub fn fuzz_head(bytes: &[u8]) {
    gate::fuzz_head(bytes);
}

/// The decoder of chunked bodies, for its fuzz target.
#[doc(hidden)]
pub fn fuzz_chunked(bytes: &[u8]) {
    body::fuzz(bytes);
}
