//! `POST /login`: proves credentials and loads the CDN configuration.

use crate::http::json::read_json;
use crate::http::{Exchange, Reply, Service};

pub(in crate::http) fn login(service: &Service, exchange: &mut Exchange) -> Reply {
    let credentials = match read_json(exchange, &["email", "password"]) {
        Ok(credentials) => credentials,
        Err(reply) => return reply,
    };
    match service.client.login(credentials) {
        Ok(()) => Reply::ok(),
        Err(error) => {
            log::warn!("{error}");
            Reply::error(401, error)
        }
    }
}
