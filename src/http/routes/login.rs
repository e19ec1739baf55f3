//! `POST /login`, `POST /unlock` and `GET /unlock/status`: what credentials are good for.

use serde_json::json;

use crate::http::exchange::Exchange;
use crate::http::json::read_json;
use crate::http::reply::Reply;
use crate::http::service::Service;

/// The fields of [`Credentials`](crate::credentials::Credentials).
const FIELDS: &[&str] = &["email", "password"];

/// Proves credentials and loads the CDN configuration.
pub(super) fn login(service: &Service, exchange: &mut Exchange, _: &str) -> Result<Reply, Reply> {
    service.client.login(read_json(exchange, FIELDS)?).map(|()| Reply::ok()).map_err(|error| {
        log::warn!("{error}");
        Reply::error(401, error)
    })
}

/// Starts the unlock of the container images.
pub(super) fn unlock(service: &Service, exchange: &mut Exchange, _: &str) -> Result<Reply, Reply> {
    let state = service.unlock.start(Some(read_json(exchange, FIELDS)?));
    let state = state.ok_or_else(|| Reply::error(404, "Encrypted archive not found"))?;
    Ok(Reply::json(200, &json!({ "state": state })))
}

pub(super) fn unlock_status(service: &Service) -> Reply {
    Reply::json(200, &service.unlock.status())
}
