//! Clients that mean harm: floods, requests hidden in bodies, and clients that take what others need.
//!
//! What single misbehaving clients may cost is in `clients::misuse`.

mod fairness;
mod floods;
mod hidden_requests;
mod many_connections;
mod scene;
