//! `DELETE /models/{folder}/{filename}`: removes a model from the cache.

use crate::http::exchange::Exchange;
use crate::http::reply::Reply;
use crate::http::service::Service;
use crate::model_cache::RemoveError;
use crate::names::ModelName;

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
