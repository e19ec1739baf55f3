//! The integration tests: one program, a module for each part of the behaviour.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;
mod world;

mod command_line;
mod hardware;
mod http_api;
mod image;
mod logs;
mod metrics;
mod openapi;
mod page;
mod pairs;
mod peer;
mod resource_api;
mod server;
mod tls;
mod transfers;
mod unlock;
mod vectors;
