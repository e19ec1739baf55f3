//! The loader: one small program between local programs, the Resource API and the CDN of an edge installation.
//!
//! Data flows one way: request → handler ([`http`]) → [`api_client`] → [`cdn_manager`] and [`model_cache`] → the readers
//! of [`security`] → response, each a `Read` around a `Read`. No module calls back up.
//!
//! Unsafe code is denied but in two places: `cli::terminal` asks the C library for the modes of a terminal, and `systemd`
//! takes over descriptors by their numbers.

pub mod api_client;
pub mod binary_split;
pub mod box_clock;
pub mod byte_range;
pub mod cancellation;
pub mod cdn_manager;
pub mod cli;
pub mod configuration;
pub mod constants;
pub mod credentials;
pub mod docker;
pub mod hardware_service;
pub mod http;
pub mod logging;
pub mod manifest;
pub mod metrics;
pub mod model_cache;
pub mod names;
pub mod secret;
pub mod security;
pub mod service;
pub mod shutdown;
pub mod storage;
pub mod systemd;
pub mod threads;
pub mod transfer;
pub mod unlock;
pub mod unlock_state;
pub mod uplink;
pub mod user;
