//! `GET /status`: who is logged in, and what is cached.

use serde::Serialize;

use crate::http::reply::Reply;
use crate::http::service::Service;
use crate::metrics;
use crate::model_cache::CacheSummary;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    status: &'static str,
    authenticated: bool,
    model_cache_dir: String,
    version: &'static str,
    uptime_seconds: u64,
    user: Option<User>,
    cache: CacheSummary,
}

#[derive(Serialize)]
struct User {
    email: String,
    role: String,
}

pub(super) fn status(service: &Service) -> Reply {
    let user = service.client.user().map(|user| User { email: user.email, role: user.role.to_string() });
    Reply::json(
        200,
        &Status {
            status: "healthy",
            authenticated: user.is_some(),
            model_cache_dir: service.configuration.model_cache_dir.to_string_lossy().into_owned(),
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: metrics::uptime().as_secs(),
            user,
            cache: service.client.cache().summary(),
        },
    )
}
