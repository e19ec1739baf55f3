//! The HTTP server: what comes from a socket is hostile until it has been parsed here.
//!
//! `tiny_http` accepts connections and reads request heads; everything about a connection that it hides or does
//! dangerously is in `connection`. An [`Exchange`] is one request with the duty to answer it; the `server` decides who
//! answers, a route what.

mod connection;
mod exchange;
mod json;
mod multipart;
mod origin;
mod pace;
mod reply;
mod router;
mod routes;
mod server;
mod sweep;
mod watch;

pub use connection::{Listener, Peer, reachable};
pub use exchange::{Body, Exchange};
pub use multipart::{Multipart, MultipartError, PartHead, boundary};
pub use reply::Reply;
pub use router::{Route, RouteError, route};
pub use server::{Running, Server};
