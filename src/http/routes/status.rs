//! `GET /status`: whether somebody is logged in, and where models are cached.

use serde::Serialize;

use crate::http::Reply;
use crate::service::Service;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    status: &'static str,
    authenticated: bool,
    model_cache_dir: String,
}

pub(in crate::http) fn status(service: &Service) -> Reply {
    Reply::json(
        200,
        &Status {
            status: "healthy",
            authenticated: service.client.user().is_some(),
            model_cache_dir: service.configuration.model_cache_dir.to_string_lossy().into_owned(),
        },
    )
}
