//! `GET /models`, `POST /models/verify` and `DELETE /models/{folder}/{filename}`: what is in the cache, whether it is intact,
//! and the removal of a model from it.

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::constants::DEFAULT_FOLDER;
use crate::http::exchange::Exchange;
use crate::http::json::read_json;
use crate::http::reply::Reply;
use crate::http::service::Service;
use crate::model_cache::{RemoveError, Verified, VerifyError};
use crate::names::ModelName;

pub(super) fn models(service: &Service) -> Reply {
    let keep = service.configuration.keep.iter();
    let keep: Vec<_> = keep.map(|ModelName { folder, file }| json!({ "folder": **folder, "name": **file })).collect();
    Reply::json(200, &json!({ "models": service.client.cache().models(), "keep": keep }))
}

#[derive(Deserialize)]
struct Request {
    folder: Option<String>,
    filename: String,
    /// The first chunk to verify.
    first: Option<usize>,
    /// How many chunks to verify; without it, all from the first one on.
    count: Option<usize>,
}

#[derive(Serialize)]
struct Answer {
    status: &'static str,
    #[serde(flatten)]
    verified: Verified,
}

pub(super) fn verify(service: &Service, exchange: &mut Exchange, _: &str) -> Result<Reply, Reply> {
    let Request { folder, filename, first, count } = read_json(exchange, &["filename", "folder"])?;
    let folder = folder.unwrap_or_else(|| DEFAULT_FOLDER.to_owned());
    let model = ModelName::new(folder, filename).map_err(|error| Reply::error(422, error))?;
    let first = first.unwrap_or(0);
    let chunks = first..first.saturating_add(count.unwrap_or(usize::MAX));
    match service.client.verify(&model, chunks) {
        Ok(verified) => Ok(Reply::json(200, &Answer { status: "ok", verified })),
        Err(error @ VerifyError::NotCached) => Err(Reply::error(404, error)),
        Err(error) => {
            log::warn!("{model} was not verified: {error}");
            Err(Reply::error(500, error))
        }
    }
}

pub(super) fn remove(service: &Service, _: &mut Exchange, parameters: &str) -> Result<Reply, Reply> {
    let (folder, file) = parameters.split_once('/').unwrap_or_default();
    let model = ModelName::new(folder, file).map_err(|error| Reply::error(422, error))?;
    service.client.remove_from_cache(&model).map_err(|error| {
        let status = match error {
            RemoveError::NotCached => 404,
            RemoveError::Kept => 409,
            RemoveError::Io(_) => 500,
        };
        Reply::error(status, error)
    })?;
    log::info!("{model} was removed from the cache");
    Ok(Reply::ok())
}
