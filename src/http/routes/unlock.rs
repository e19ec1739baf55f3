//! `POST /unlock` and `GET /unlock/status`: the container images.

use std::sync::Arc;

use crate::credentials::Credentials;
use crate::http::json::read_json;
use crate::http::{Exchange, Reply, Service};

pub(in crate::http) fn unlock(service: &Arc<Service>, exchange: &mut Exchange) -> Reply {
    let credentials: Credentials = match read_json(exchange, &["email", "password"]) {
        Ok(credentials) => credentials,
        Err(reply) => return reply,
    };
    match service.unlock.start(credentials) {
        Some(state) => Reply::json(200, &serde_json::json!({ "state": state })),
        None => Reply::error(404, "Encrypted archive not found"),
    }
}

pub(in crate::http) fn unlock_status(service: &Service) -> Reply {
    Reply::json(200, &service.unlock.status())
}
