//! `POST /load/{filename}`: a model's plaintext.

use serde::Deserialize;

use crate::constants::DEFAULT_FOLDER;
use crate::http::json::read_json;
use crate::http::{Exchange, Reply};
use crate::names::{FileName, Folder, NameError};
use crate::service::Service;

/// The body's file name counts; the path's is used where it has none.
#[derive(Deserialize)]
struct Request {
    filename: Option<String>,
    folder: Option<String>,
}

impl Request {
    fn names(self, path_name: String) -> Result<(Folder, FileName), NameError> {
        let folder = Folder::new(self.folder.unwrap_or_else(|| DEFAULT_FOLDER.to_owned()))?;
        Ok((folder, FileName::new(self.filename.unwrap_or(path_name))?))
    }
}

pub(in crate::http) fn load(service: &Service, exchange: &mut Exchange, path_name: String) -> Reply {
    let request: Request = match read_json(exchange, &["filename", "folder"]) {
        Ok(request) => request,
        Err(reply) => return reply,
    };
    let (folder, file_name) = match request.names(path_name) {
        Ok(names) => names,
        Err(error) => return Reply::error(422, error),
    };
    match service.client.load(&folder, &file_name) {
        Ok(plaintext) => Reply::model(plaintext),
        Err(error) => {
            log::warn!("{}/{} was not loaded: {error}", &*folder, &*file_name);
            Reply::error(500, error)
        }
    }
}
