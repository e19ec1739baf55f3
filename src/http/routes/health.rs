//! `GET /health`: the liveness probe.

use crate::http::reply::Reply;
use crate::http::service::Service;

pub(super) fn health(_: &Service) -> Reply {
    Reply::json(200, &serde_json::json!({ "status": "healthy" }))
}
