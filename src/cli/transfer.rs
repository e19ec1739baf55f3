//! Models to and from the running service, as streams.

use std::io::{self, Read, Write};
use std::time::Duration;

use zeroize::Zeroizing;

use super::command::Failure;
use super::connection::{Body, Connection};
use super::running_service::{AskError, RunningService, segment};
use crate::constants::CHUNK;
use crate::names::ModelName;

/// How long the service may be silent: it may have to fetch all of an old upload before the first byte, or to wait for the
/// CDN after the last one.
pub(super) const TIMEOUT: Duration = Duration::from_secs(600);

/// How long to wait for `100 Continue`. Something between that does not know it must not stop the upload.
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(20);

/// The model that `FOLDER/NAME` names.
pub(super) fn model(word: &str) -> Result<ModelName, Failure> {
    let (folder, name) =
        word.split_once('/').ok_or_else(|| Failure::arguments(format!("{word} is not of the form FOLDER/NAME")))?;
    ModelName::new(folder, name).map_err(|error| Failure::arguments(format!("{word}: {error}")))
}

/// How far an earlier load came.
pub(super) struct Begun {
    pub(super) bytes: u64,
    /// The entity tag of what was loaded.
    pub(super) tag: String,
}

/// A load that the service has begun to answer.
pub(super) struct Load {
    /// Where `body` begins.
    pub(super) first: u64,
    /// The length of the whole model.
    pub(super) length: u64,
    pub(super) tag: String,
    pub(super) body: Body,
}

impl RunningService {
    /// Loads a model, or only the rest of it if its version is still the one that was begun.
    pub(super) fn load(&self, model: &ModelName, begun: Option<&Begun>) -> Result<Load, AskError> {
        let path = format!("/load/{}?folder={}", segment(&model.file), model.folder);
        let range = begun
            .map_or(String::new(), |begun| format!("Range: bytes={}-\r\nIf-Range: {}\r\n", begun.bytes, begun.tag));
        let mut connection = self.begin("POST", &path, &format!("Content-Length: 0\r\n{range}"), TIMEOUT)?;
        let head = connection.read_final_head().map_err(|error| self.broken(&error, TIMEOUT))?;
        let tag = head.header("ETag").unwrap_or_default().to_owned();
        let (range, total) = head.header("Content-Range").and_then(|value| value.split_once('/')).unwrap_or_default();
        let total = total.parse::<u64>().ok();
        match (head.status, head.length(), total, begun) {
            (200, Some(length), ..) if !tag.is_empty() => {
                Ok(Load { first: 0, length, tag, body: connection.into_body(length) })
            }
            (206, Some(sent), Some(length), Some(begun)) if range.starts_with(&format!("bytes {}-", begun.bytes)) => {
                Ok(Load { first: begun.bytes, length, tag, body: connection.into_body(sent) })
            }
            // Nothing is missing.
            (416, _, Some(length), Some(begun)) if length == begun.bytes => {
                Ok(Load { first: length, length, tag: begun.tag.clone(), body: connection.into_body(0) })
            }
            (416, ..) if begun.is_some() => self.load(model, None),
            _ => {
                let response = self.read_response(connection, head, TIMEOUT)?;
                let status = Some(response.head.status);
                let (_, _) = self.judge(&path, response)?;
                Err(AskError { status, reason: format!("what answers at {} is not the loader", self.address()) })
            }
        }
    }

    /// Uploads a model. `report` gets the number of bytes that were sent.
    pub(super) fn upload(
        &self,
        model: &ModelName,
        content: &mut Content,
        mut report: impl FnMut(u64),
    ) -> Result<(), AskError> {
        let form = Form::new().map_err(AskError::unanswered)?;
        let framing = match content.length {
            Some(length) => format!("Content-Length: {}\r\n", length + form.overhead()),
            None => "Transfer-Encoding: chunked\r\n".into(),
        };
        let path = format!("/upload/{}?folder={}", segment(&model.file), model.folder);
        let headers = format!(
            "Content-Type: multipart/form-data; boundary={}\r\n{framing}Expect: 100-continue\r\n",
            form.boundary
        );
        let broken = |error| self.broken(&error, TIMEOUT);
        let mut connection = self.begin("POST", &path, &headers, TIMEOUT)?;
        let mut early = None;
        if connection.has_response_within(CONTINUE_TIMEOUT) {
            early = Some(connection.read_head().map_err(broken)?).filter(|head| head.status != 100);
        }
        let head = match early {
            Some(head) => head,
            None => {
                let sent = send(&mut connection, &form, content, &mut report)?;
                match (connection.read_final_head(), sent) {
                    (Ok(head), _) => head,
                    // The first of the two errors is the cause.
                    (Err(_), Err(error)) | (Err(error), Ok(())) => return Err(broken(error)),
                }
            }
        };
        let response = self.read_response(connection, head, TIMEOUT)?;
        self.judge(&path, response).map(drop)
    }
}

/// Sends a form until its end or until the service responds early. The outer error is the content's, the inner one the
/// connection's, after which there may still be a response.
fn send(
    connection: &mut Connection,
    form: &Form,
    content: &mut Content,
    report: &mut impl FnMut(u64),
) -> Result<io::Result<()>, AskError> {
    let is_chunked = content.length.is_none();
    let mut buffer = Zeroizing::new(vec![0; CHUNK]);
    let mut send = |bytes: &[u8]| {
        if is_chunked {
            connection.write_all(format!("{:x}\r\n", bytes.len()).as_bytes())?;
            connection.write_all(bytes)?;
            connection.write_all(b"\r\n")?;
        } else {
            connection.write_all(bytes)?;
        }
        Ok(connection.has_response_within(Duration::ZERO))
    };
    let mut done = 0;
    let mut responded = send(form.before.as_bytes());
    while matches!(responded, Ok(false)) {
        let count = content.fill(&mut buffer)?;
        if count == 0 {
            let mut end = form.after.clone();
            if is_chunked {
                end = format!("{:x}\r\n{end}\r\n0\r\n\r\n", end.len());
            }
            return Ok(connection.write_all(end.as_bytes()));
        }
        responded = send(&buffer[..count]);
        done += count as u64;
        report(done);
    }
    Ok(responded.map(drop))
}

/// What is uploaded.
pub(super) struct Content {
    read: Box<dyn Read>,
    /// What errors call it.
    name: String,
    /// Its length, if that is known before its end.
    pub(super) length: Option<u64>,
    done: u64,
    /// The first bytes, if they were read to see whether there are any.
    peeked: Option<Zeroizing<Vec<u8>>>,
}

impl Content {
    pub(super) fn new(read: impl Read + 'static, name: String, length: Option<u64>) -> Self {
        Self { read: Box::new(read), name, length, done: 0, peeked: None }
    }

    /// Waits for the first bytes. Nothing at all is an error: most likely the program before a pipe has failed.
    pub(super) fn wait_for_some(&mut self) -> Result<(), String> {
        let mut buffer = Zeroizing::new(vec![0; CHUNK]);
        let count = self.fill(&mut buffer).map_err(|error| error.reason)?;
        if count == 0 {
            return Err(format!("{} is empty", self.name));
        }
        buffer.truncate(count);
        self.done = 0;
        self.peeked = Some(buffer);
        Ok(())
    }

    /// Reads at most a buffer full, and no more than the length; 0 is the end.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, AskError> {
        let left = self.length.map_or(u64::MAX, |length| length - self.done);
        let limit = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let failed = |reason: String| AskError::unanswered(format!("{} {reason}", self.name));
        let count = match self.peeked.take() {
            // Both buffers are a chunk.
            Some(bytes) => {
                buffer[..bytes.len()].copy_from_slice(&bytes);
                bytes.len()
            }
            None => loop {
                match self.read.read(&mut buffer[..limit]) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    read => break read.map_err(|error| failed(format!("cannot be read: {error}")))?,
                }
            },
        };
        if count == 0 && limit > 0 && self.length.is_some() {
            return Err(failed("became shorter while it was read".into()));
        }
        self.done += count as u64;
        Ok(count)
    }
}

/// The form around the content.
struct Form {
    boundary: String,
    before: String,
    after: String,
}

impl Form {
    /// With a boundary that no content has.
    fn new() -> Result<Self, String> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| format!("there are no random numbers: {error}"))?;
        let boundary = format!("loader-{:032x}", u128::from_ne_bytes(random));
        let before = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"data\"; filename=\"model\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        let after = format!("\r\n--{boundary}--\r\n");
        Ok(Self { boundary, before, after })
    }

    fn overhead(&self) -> u64 {
        (self.before.len() + self.after.len()) as u64
    }
}

/// Copies a body. Errors of `output` are called after `name`.
pub(super) fn copy(
    service: &RunningService,
    body: &mut Body,
    output: &mut impl Write,
    name: &str,
    mut report: impl FnMut(u64),
) -> Result<(), CopyError> {
    let mut buffer = Zeroizing::new(vec![0; CHUNK]);
    loop {
        let count = match body.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(CopyError::Body(service.broken(&error, TIMEOUT).reason)),
        };
        let written = output.write_all(&buffer[..count]);
        written.map_err(|error| CopyError::Output(format!("{name} cannot be written: {error}")))?;
        report(count as u64);
    }
}

/// Why a body was not copied.
pub(super) enum CopyError {
    /// The transfer broke off.
    Body(String),
    Output(String),
}

impl From<CopyError> for Failure {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Body(reason) | CopyError::Output(reason) => Self::Runtime(reason),
        }
    }
}
