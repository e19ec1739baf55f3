//! `POST /login`: proves credentials and loads the CDN configuration.

use crate::http::exchange::Exchange;
use crate::http::json::read_json;
use crate::http::reply::Reply;
use crate::http::service::Service;

pub(super) fn login(service: &Service, exchange: &mut Exchange, _: &str) -> Result<Reply, Reply> {
    let credentials = read_json(exchange, &["email", "password"])?;
    service.client.login(credentials).map(|()| Reply::ok()).map_err(|error| {
        log::warn!("{error}");
        Reply::error(401, error)
    })
}
