//! `POST /upload/{filename}`: a form with the file and, before or after it or in the query, its folder. Where the folder is
//! known first, the file goes on to the CDN while it is received.

use std::io::{self, Read};

use super::folder_in_query;
use crate::api_client::{ReceivedUpload, UploadError};
use crate::constants::DEFAULT_FOLDER;
use crate::http::multipart::{Multipart, MultipartError, boundary};
use crate::http::{Exchange, Reply, Service};
use crate::metrics::Stage;
use crate::metrics::Transfer;
use crate::names::{FileName, Folder, ModelName};

/// The most that a form may have besides its file, in bytes.
const FORM_OVERHEAD: u64 = 64 * 1024;

/// The longest folder field that is read; a longer one is no folder.
const MAX_FOLDER: u64 = 256;

pub(in crate::http) fn upload(service: &Service, exchange: &mut Exchange, path_name: String) -> Reply {
    let (upload, model) = match receive(service, exchange, path_name) {
        Ok(received) => received,
        Err(reply) => return reply,
    };
    match service.client.publish(upload, &model) {
        Ok(()) => Reply::ok(),
        Err(error) => failed(&error),
    }
}

fn failed(error: &UploadError) -> Reply {
    log::warn!("{error}");
    Reply::error(500, error)
}

fn unreadable(error: &MultipartError) -> Reply {
    match error {
        MultipartError::Io(error) => Reply::unreadable(error),
        MultipartError::Malformed(_) => Reply::error(422, error),
    }
}

fn too_large(limit: u64) -> Reply {
    Reply::error(413, format!("the file has more than MAX_UPLOAD_BYTES ({limit}) bytes"))
}

/// Refuses what can be told from the head, before the client is asked to send the body.
pub(in crate::http) fn admit_upload(service: &Service, exchange: &Exchange, path_name: &str) -> Result<(), Reply> {
    FileName::new(path_name.to_owned()).map_err(|error| Reply::error(422, error))?;
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

/// Reads the form. What can be refused is refused before anything is written.
fn receive(
    service: &Service,
    exchange: &mut Exchange,
    path_name: String,
) -> Result<(ReceivedUpload, ModelName), Reply> {
    let file = FileName::new(path_name).map_err(|error| Reply::error(422, error))?;
    let boundary = boundary(exchange.header("content-type").unwrap_or_default()).unwrap_or_default();
    let limit = service.configuration.max_upload_bytes;

    // What the form has besides its file is little, so the length of the file is nearly known.
    let declared = exchange.declared_length();
    let (shortest, longest) =
        (declared.unwrap_or(0).saturating_sub(FORM_OVERHEAD), declared.unwrap_or(limit).min(limit));
    let bad_name = |error| Reply::error(422, error);
    let in_query = folder_in_query(exchange.target()).map(|text| Folder::new(text.to_owned())).transpose();
    let in_query = in_query.map_err(bad_name)?;
    let transfer = Transfer::begin(Stage::Receive, &*file, 0, exchange.declared_length());
    let mut form = Multipart::new(exchange, &boundary);
    let (mut upload, mut folder) = (None, None);
    while let Some(part) = form.next_part().map_err(|error| unreadable(&error))? {
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
                content.map_err(|error| unreadable(&error.into()))?;
                let text = String::from_utf8(text).unwrap_or_default();
                let named = Folder::new(text).map_err(bad_name)?;
                if in_query.as_ref().is_some_and(|folder| **folder != *named) {
                    return Err(Reply::error(422, "the folder of the form is another than that of the query"));
                }
                folder = Some(named);
            }
            "data" | "folder" => return Err(Reply::error(422, format!("the form has two fields named {}", part.name))),
            // Browsers and frameworks send fields of their own.
            _ => {}
        }
    }
    let upload = upload.ok_or_else(|| Reply::error(422, "the form has no file field named data"))?;
    let folder = match in_query.or(folder) {
        Some(folder) => folder,
        None => Folder::new(DEFAULT_FOLDER).map_err(bad_name)?,
    };
    Ok((upload, ModelName { folder, file }))
}

/// Copies, and tells a client that fails (422) from local storage or a CDN that fails (500).
fn copy(content: &mut impl Read, sink: &mut impl io::Write, transfer: &Transfer) -> Result<u64, Reply> {
    let mut buffer = vec![0; crate::constants::CHUNK];
    let mut copied = 0;
    loop {
        let count = content.read(&mut buffer).map_err(|error| unreadable(&error.into()))?;
        if count == 0 {
            return Ok(copied);
        }
        sink.write_all(&buffer[..count]).map_err(|error| failed(&error.into()))?;
        copied += count as u64;
        transfer.moved(count as u64);
    }
}
