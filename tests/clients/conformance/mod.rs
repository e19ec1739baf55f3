//! What RFC 9110 and RFC 9112 require of an origin server that reads requests, over TCP and over a Unix socket.
//!
//! Each test carries its section in its name. All share one service for each kind of socket.

mod answers;
mod chunked;
mod connections;
mod expectations;
mod fields;
mod framing;
mod hosts;
mod methods;
mod request_lines;
mod targets;
mod wire;
