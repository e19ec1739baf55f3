//! The integration tests: one program, a module for each part of the behaviour.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;
mod world;

mod atomic_uploads;
mod client_commands;
mod clients;
mod command_line;
mod conformance;
mod full_disk;
mod hardware;
mod http_api;
mod image;
mod logs;
mod metrics;
mod offline;
mod openapi;
mod page;
mod pairs;
mod peer;
mod power_cuts;
mod ranges;
mod readme;
mod readme_blocks;
mod resource_api;
mod resumption;
mod security;
mod server;
mod soak;
mod tls;
mod transfers;
mod unlock;
mod uplink;
mod vectors;
