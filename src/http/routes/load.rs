//! `POST /load/{filename}`: a model's plaintext, or the range of it that a `Range` header names.

use serde::Deserialize;

use crate::api_client::{ByteRange, LoadError, RangeRequest};
use crate::constants::DEFAULT_FOLDER;
use crate::http::exchange::Exchange;
use crate::http::json::{admit_json, read_json};
use crate::http::reply::Reply;
use crate::http::service::Service;
use crate::names::{ModelName, NameError};

#[derive(Deserialize)]
struct Request {
    /// Takes precedence over the file name in the path.
    filename: Option<String>,
    folder: Option<String>,
}

impl Request {
    /// Without a body the folder may be in the query: `curl -C -` resumes a transfer only if it sends no body.
    fn without_body(exchange: &Exchange) -> Self {
        Self { filename: None, folder: exchange.query("folder").map(str::to_owned) }
    }

    fn model(self, path_name: &str) -> Result<ModelName, NameError> {
        let folder = self.folder.unwrap_or_else(|| DEFAULT_FOLDER.to_owned());
        ModelName::new(folder, self.filename.unwrap_or_else(|| path_name.to_owned()))
    }
}

fn has_body(exchange: &Exchange) -> bool {
    exchange.declared_length() != Some(0) || exchange.header("content-type").is_some()
}

pub(super) fn admit(service: &Service, exchange: &Exchange, path_name: &str) -> Result<(), Reply> {
    if has_body(exchange) { admit_json(service, exchange, path_name) } else { Ok(()) }
}

pub(super) fn load(service: &Service, exchange: &mut Exchange, path_name: &str) -> Result<Reply, Reply> {
    let request = if has_body(exchange) {
        read_json(exchange, &["filename", "folder"])?
    } else {
        Request::without_body(exchange)
    };
    let model = request.model(path_name).map_err(|error| Reply::error(422, error))?;
    let range = RangeRequest {
        range: exchange.header("range").and_then(ByteRange::parse),
        if_tag: exchange.header("if-range").map(str::to_owned),
        if_match: exchange.header("if-match").map(str::to_owned),
    };
    match service.client.load(&model, &range) {
        Ok(plaintext) => Ok(Reply::model(plaintext)),
        Err(error @ LoadError::NoSuchRange { length }) => Err(Reply::error(416, error)
            .with_header("Accept-Ranges", "bytes")
            .with_header("Content-Range", format!("bytes */{length}"))),
        Err(error @ LoadError::Replaced) => Err(Reply::error(412, error)),
        Err(error) => {
            log::warn!("{model} was not loaded: {error}");
            let reply = Reply::error(500, &error);
            Err(match error.kind() {
                Some(kind) => reply.with_header("Loader-Failure", kind),
                None => reply,
            })
        }
    }
}
