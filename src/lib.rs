//! The loader: one small program between local programs, the Resource API and the CDN of an edge installation.
//!
//! A model's way to a local program, room by room; each step is a `Read` around a `Read`, and nothing calls back up:
//!
//! 1. [`cdn_manager`] and [`api_client`] fetch its two halves, both by [`http_client`].
//! 2. `manifest` says what each chunk of the large half must be, and who said so.
//! 3. `model_cache` downloads, proves, keeps and repairs those chunks on the local disk.
//! 4. [`security`] joins and decrypts the halves.
//! 5. [`http`] sends the plaintext to the client that asked.
//!
//! An upload goes the other way. [`unlock`] takes the archive of container images through [`binary_split`] into `docker load`.
//! Around them: [`cli`] is the command line and starts the service, `configuration` reads the environment, [`hardware_service`]
//! identifies the box, `logging` and `metrics` say what happens, `storage` makes writes durable, `systemd` talks to the service
//! manager.
//!
//! Public is what the tests and the fuzz targets use; everything else is private, so that the compiler finds what is dead.
//!
//! Unsafe code is denied but in two places: `cli::terminal` asks the C library for the modes of a terminal, and `systemd`
//! takes over descriptors by their numbers.

pub mod api_client;
pub mod binary_split;
mod cancellation;
pub mod cdn_manager;
pub mod cli;
mod configuration;
mod constants;
pub mod credentials;
pub mod hardware_service;
pub mod http;
pub mod http_client;
mod keyed_lock;
mod logging;
mod manifest;
mod metrics;
mod model_cache;
pub mod names;
pub mod secret;
pub mod security;
mod storage;
mod systemd;
mod threads;
pub mod unlock;
mod unlock_state;
mod user;
