//! Connections and their clients: what RFC 9110 and RFC 9112 require, and clients that are slow, broken or hostile.

mod bodies;
mod conformance;
mod descriptors;
mod hostile;
mod pieces;
mod server;
mod slow;
