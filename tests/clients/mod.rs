//! Connections and their clients: what RFC 9110 and RFC 9112 require, and clients that are slow, broken or hostile.

mod conformance;
mod hostile;
mod misuse;
mod server;
