//! `GET /health`: the liveness probe.

use crate::http::Reply;

pub(in crate::http) fn health() -> Reply {
    Reply::json(200, &serde_json::json!({ "status": "healthy" }))
}
