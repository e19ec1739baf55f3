//! The loader: one small program between local programs, the Resource API and the CDN of an edge installation.
//!
//! # The rooms
//! A model on its way to a local program; each step is a `Read` around a `Read`, and nothing calls back up:
//!
//! ```text
//! client ── http ── api_client ─┬─ http_client ── Resource API    the small part
//!                               ├─ model_cache ── cdn_manager ── http_client ── CDN    the big part, chunk by chunk
//!                               └─ security    both parts joined and decrypted
//! ```
//!
//! - [`http`] accepts the client (`gate`), parses its request (`wire`) and leads it to an endpoint (`routes`).
//! - [`api_client`] logs in, loads and uploads, with the [`credentials`] of a `user`. A model is known by its [`names`].
//! - `manifest` signs and checks the hash of each chunk of a big part.
//! - `model_cache` downloads, proves, stores and repairs these chunks.
//! - [`cdn_manager`] speaks S3, and [`http_client`] speaks HTTP to every server: timeouts, retries, TLS.
//! - [`security`] derives the keys, splits, joins, encrypts and decrypts; its inner loop is a package of its own, `src/cipher`.
//! - [`unlock`] takes the archive of container images through [`binary_split`] into `docker load`, step by step
//!   (`unlock_state`).
//! - `upkeep` logs in, unlocks and keeps models current without a person.
//! - `mount` is a file system of the models, and like most commands a client of the service (`service_stream`).
//! - [`cli`] is the command line, and starts the service. `configuration` reads the environment.
//! - [`hardware_service`] identifies the box, `systemd` talks to the service manager, `logging` and `metrics` report.
//! - Small tools of many rooms: `cancellation`, `constants`, `keyed_lock`, `page_buffer`, `pauses`, [`secret`], `storage` (durable
//!   files), `threads`.
//!
//! # Where something new goes
//! - an endpoint: a file in `http/routes/`, a row in `http/routes.rs`, a path in `http/routes/openapi.json`
//! - an environment variable: a row in `configuration.rs`
//! - a command: a file in `cli/`, a row in `cli.rs`
//! - a counter or gauge: a row in `metrics.rs`, and the line that counts
//! - an error of the CDN: `CdnErrorKind` in `cdn_manager/error.rs`
//! - a limit on request heads: `http/wire/head.rs`
//!
//! Modules are public only if the tests or the fuzz targets use them, so that the compiler finds dead code. Unsafe code is
//! denied except in three places: `cli::terminal` changes the modes of a terminal, `systemd` takes over descriptors, and
//! `mount::large_blocks` gives out memory.

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
#[cfg(feature = "mount")]
mod mount;
pub mod names;
mod page_buffer;
mod pauses;
pub mod secret;
pub mod security;
mod service_stream;
mod storage;
mod systemd;
mod threads;
pub mod unlock;
mod unlock_state;
mod upkeep;
mod user;
