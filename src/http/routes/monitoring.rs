//! `GET /health`, `GET /ready` and `GET /metrics`: what monitors ask for.

use serde_json::json;

use crate::http::reply::Reply;
use crate::http::service::Service;
use crate::metrics::{self, Text};
use crate::unlock_state::UnlockState;

/// The liveness probe.
pub(super) fn health(_: &Service) -> Reply {
    Reply::json(200, &json!({ "status": "healthy" }))
}

/// Whether the models and images that this box must have are there.
pub(super) fn ready(service: &Service) -> Reply {
    let waiting = service.upkeep.waiting();
    if waiting.is_empty() {
        Reply::json(200, &json!({ "ready": true }))
    } else {
        Reply::json(503, &json!({ "ready": false, "waiting": waiting }))
    }
}

/// The state of the service in numbers, for Prometheus.
pub(super) fn metrics(service: &Service) -> Reply {
    let mut text = Text::default();
    metrics::write(&mut text);

    let unlock = service.unlock.status();
    text.family("loader_unlock_state", "gauge", "1 for the state of the unlock, else 0.");
    for state in UnlockState::ALL {
        text.sample("", &[("state", &state.to_string())], u8::from(state == unlock.state));
    }
    text.single("loader_unlock_done_bytes", "gauge", "Bytes handed to docker.", unlock.progress.done);
    text.single("loader_unlock_size_bytes", "gauge", "Bytes of the archive.", unlock.progress.total);
    let cache = service.client.cache().summary();
    text.single("loader_cache_bytes", "gauge", "Bytes of cached models.", cache.bytes);
    text.single("loader_cache_files", "gauge", "Cached models.", cache.files);
    text.single(
        "loader_authenticated",
        "gauge",
        "1 if a user is logged in, else 0.",
        u8::from(service.client.user().is_some()),
    );
    let ready = service.upkeep.waiting().is_empty();
    text.single("loader_ready", "gauge", "1 if GET /ready answers 200, else 0.", u8::from(ready));
    Reply::text(Text::CONTENT_TYPE, text.into_bytes())
}
