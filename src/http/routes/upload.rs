//! `POST /upload/{filename}`: a form with the file and its folder. The folder may also be in the query. If it comes before the
//! file, the file goes to the CDN while it is being received.

use std::io::{self, Read};

use crate::api_client::{ReceivedUpload, UploadError};
use crate::constants::{CHUNK, DEFAULT_FOLDER};
use crate::http::exchange::Exchange;
use crate::http::multipart::{Multipart, boundary};
use crate::http::reply::Reply;
use crate::http::service::Service;
use crate::metrics::{Stage, Transfer};
use crate::names::{FileName, Folder, ModelName, NameError};

/// The size limit of a form without its file.
const FORM_OVERHEAD: u64 = 64 * 1024;

/// A longer folder field cannot be a folder, and is cut.
const MAX_FOLDER: u64 = 256;

pub(super) fn admit(service: &Service, exchange: &Exchange, path_name: &str) -> Result<(), Reply> {
    FileName::new(path_name.to_owned()).map_err(bad_name)?;
    if boundary(exchange.header("content-type").unwrap_or_default()).is_none() {
        let detail = "the body must be a form with Content-Type: multipart/form-data and its boundary";
        return Err(Reply::error(422, detail));
    }
    let limit = service.configuration.max_upload_bytes;
    if exchange.declared_length().is_some_and(|length| length > limit.saturating_add(FORM_OVERHEAD)) {
        return Err(too_large(limit));
    }
    Ok(())
}

pub(super) fn upload(service: &Service, exchange: &mut Exchange, path_name: &str) -> Result<Reply, Reply> {
    let (upload, model) = receive(service, exchange, path_name)?;
    service.client.publish(upload, &model).map(|()| Reply::ok()).map_err(|error| failed(&error))
}

fn bad_name(error: NameError) -> Reply {
    Reply::error(422, error)
}

fn failed(error: &UploadError) -> Reply {
    log::warn!("{error}");
    Reply::error(500, error)
}

fn too_large(limit: u64) -> Reply {
    Reply::error(413, format!("the file has more than MAX_UPLOAD_BYTES ({limit}) bytes"))
}

/// Reads the form. Whatever can be refused is refused before anything is written.
fn receive(service: &Service, exchange: &mut Exchange, path_name: &str) -> Result<(ReceivedUpload, ModelName), Reply> {
    let file = FileName::new(path_name.to_owned()).map_err(bad_name)?;
    let boundary = boundary(exchange.header("content-type").unwrap_or_default()).unwrap_or_default();
    let limit = service.configuration.max_upload_bytes;

    // The rest of the form is small, so the file is nearly as long as the form.
    let declared = exchange.declared_length();
    let (shortest, longest) =
        (declared.unwrap_or(0).saturating_sub(FORM_OVERHEAD), declared.unwrap_or(limit).min(limit));
    let in_query = exchange.query("folder").map(|text| Folder::new(text.to_owned())).transpose().map_err(bad_name)?;
    let transfer = Transfer::begin(Stage::Receive, &*file, 0, declared);
    let mut form = Multipart::new(exchange, &boundary);
    let (mut upload, mut folder) = (None, None);
    while let Some(part) = form.next_part().map_err(|error| Reply::unreadable(&error))? {
        match part.name.as_str() {
            "data" if upload.is_none() => {
                let folder = in_query.clone().or(folder.clone());
                let model = folder.map(|folder| ModelName { folder, file: file.clone() });
                let sink = service.client.begin_upload(model, shortest, longest);
                let mut sink = sink.map_err(|error| failed(&error))?;
                let mut content = (&mut form).take(limit.saturating_add(1));
                if copy(&mut content, &mut sink, &transfer)? > limit {
                    return Err(too_large(limit));
                }
                upload = Some(sink.finish().map_err(|error| failed(&error))?);
            }
            "folder" if folder.is_none() => {
                let mut text = Vec::new();
                let content = (&mut form).take(MAX_FOLDER).read_to_end(&mut text);
                content.map_err(|error| Reply::unreadable(&error))?;
                let named = Folder::new(String::from_utf8(text).unwrap_or_default()).map_err(bad_name)?;
                if in_query.as_ref().is_some_and(|folder| **folder != *named) {
                    return Err(Reply::error(422, "the form and the query name different folders"));
                }
                folder = Some(named);
            }
            "data" | "folder" => return Err(Reply::error(422, format!("the form has two fields named {}", part.name))),
            // Browsers and frameworks add fields of their own.
            _ => {}
        }
    }
    let upload = upload.ok_or_else(|| Reply::error(422, "the form has no file field named data"))?;
    let folder = in_query.or(folder).map_or_else(|| Folder::new(DEFAULT_FOLDER).map_err(bad_name), Ok)?;
    Ok((upload, ModelName { folder, file }))
}

/// Copies the file. A client that fails is answered 422, local storage or a CDN that fails 500.
fn copy(content: &mut impl Read, sink: &mut impl io::Write, transfer: &Transfer) -> Result<u64, Reply> {
    let mut buffer = vec![0; CHUNK];
    let mut copied = 0;
    loop {
        let count = content.read(&mut buffer).map_err(|error| Reply::unreadable(&error))?;
        if count == 0 {
            return Ok(copied);
        }
        sink.write_all(&buffer[..count]).map_err(|error| failed(&error.into()))?;
        copied += count as u64;
        transfer.moved(count as u64);
    }
}
