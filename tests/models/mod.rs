//! Models: upload and load, the formats of their parts and manifests, the cache, and what happens while the Resource API is away.

mod atomic_uploads;
mod downloads;
mod manifest_signatures;
pub mod manifests;
mod offline;
mod old_uploads;
pub mod pairs;
mod peer;
mod repair;
mod streaming;
mod transfers;
mod vectors;
mod verify;
