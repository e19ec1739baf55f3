//! Clients that mean harm: floods, requests hidden in bodies, and clients that take what others need.
//!
//! What one misbehaving client may cost is in `clients::slow` and `clients::descriptors`.

mod fairness;
mod floods;
mod hidden_requests;
mod many_connections;
mod scene;
