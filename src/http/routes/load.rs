//! `POST /load/{filename}`: a model's plaintext, or the range of it that a `Range` header names.

use serde::Deserialize;

use super::folder_in_query;
use crate::api_client::{ByteRange, LoadError, RangeRequest};
use crate::constants::DEFAULT_FOLDER;
use crate::http::json::{admit_json, read_json};
use crate::http::{Exchange, Reply, Service};
use crate::names::{ModelName, NameError};

/// The body's file name counts; the path's is used where it has none.
#[derive(Deserialize)]
struct Request {
    filename: Option<String>,
    folder: Option<String>,
}

impl Request {
    /// That of a request without a body, whose folder may be in the query. `curl` resumes a transfer (`-C -`) only if it does
    /// not send any.
    fn without_body(url: &str) -> Self {
        Self { filename: None, folder: folder_in_query(url).map(str::to_owned) }
    }

    fn model(self, path_name: String) -> Result<ModelName, NameError> {
        ModelName::new(self.folder.unwrap_or_else(|| DEFAULT_FOLDER.to_owned()), self.filename.unwrap_or(path_name))
    }
}

fn has_body(exchange: &Exchange) -> bool {
    exchange.declared_length() != Some(0) || exchange.header("content-type").is_some()
}

/// Refuses what can be told from the head.
pub(in crate::http) fn admit_load(exchange: &Exchange) -> Result<(), Reply> {
    if has_body(exchange) { admit_json(exchange) } else { Ok(()) }
}

pub(in crate::http) fn load(service: &Service, exchange: &mut Exchange, path_name: String) -> Reply {
    let request: Request = match has_body(exchange).then(|| read_json(exchange, &["filename", "folder"])) {
        None => Request::without_body(exchange.target()),
        Some(Ok(request)) => request,
        Some(Err(reply)) => return reply,
    };
    let model = match request.model(path_name) {
        Ok(model) => model,
        Err(error) => return Reply::error(422, error),
    };
    let request = RangeRequest {
        range: exchange.header("range").and_then(ByteRange::parse),
        if_tag: exchange.header("if-range").map(str::to_owned),
    };
    match service.client.load(&model, &request) {
        Ok(plaintext) => Reply::model(plaintext),
        Err(error @ LoadError::NoSuchRange { length }) => Reply::error(416, error)
            .with_header("Accept-Ranges", "bytes")
            .with_header("Content-Range", format!("bytes */{length}")),
        Err(error) => {
            log::warn!("{model} was not loaded: {error}");
            Reply::error(500, error)
        }
    }
}
