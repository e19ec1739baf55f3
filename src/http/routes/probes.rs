//! `GET /health` and `GET /ready`: the liveness probe, and whether the models and images that this box must have are there.

use serde_json::json;

use crate::http::reply::Reply;
use crate::http::service::Service;

pub(super) fn health(_: &Service) -> Reply {
    Reply::json(200, &json!({ "status": "healthy" }))
}

pub(super) fn ready(service: &Service) -> Reply {
    let waiting = service.upkeep.waiting();
    if waiting.is_empty() {
        Reply::json(200, &json!({ "ready": true }))
    } else {
        Reply::json(503, &json!({ "ready": false, "waiting": waiting }))
    }
}
