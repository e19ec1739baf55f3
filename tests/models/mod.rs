//! Models: upload and load, the formats of their parts and manifests, the cache, and what happens while the Resource API is away.

mod atomic_uploads;
mod cache_limits;
mod download_rate;
mod downloads;
mod manifest_signatures;
pub mod manifests;
mod offline;
mod old_uploads;
pub mod pairs;
mod peer;
mod removal;
mod repair;
mod streaming;
mod transfers;
mod vectors;
mod verify;
