//! `POST /unlock` and `GET /unlock/status`: the container images.

use crate::credentials::Credentials;
use crate::http::exchange::Exchange;
use crate::http::json::read_json;
use crate::http::reply::Reply;
use crate::http::service::Service;

pub(super) fn unlock(service: &Service, exchange: &mut Exchange, _: &str) -> Result<Reply, Reply> {
    let credentials: Credentials = read_json(exchange, &["email", "password"])?;
    match service.unlock.start(Some(credentials)) {
        Some(state) => Ok(Reply::json(200, &serde_json::json!({ "state": state }))),
        None => Err(Reply::error(404, "Encrypted archive not found")),
    }
}

pub(super) fn status(service: &Service) -> Reply {
    Reply::json(200, &service.unlock.status())
}
