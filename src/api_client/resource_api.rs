//! The Resource API's calls (SPEC section 4), one function each.

use std::fmt;
use std::time::Instant;

use http::{Method, Request, StatusCode, header};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::outage::Outage;
use super::token::{Token, TokenReader};
use crate::constants::MAX_RESOURCE_BYTES;
use crate::credentials::Credentials;
use crate::http_client::{BufferedResponse, HttpClient, HttpClientError, HttpClientErrorKind, Payload};
use crate::metrics::{self, Stage};
use crate::names::ModelName;
use crate::secret::{Secret, json_object};
use crate::security::{AesKey, Salts, hex};

/// Why a call to the Resource API failed.
#[derive(Clone, Debug)]
pub enum ApiError {
    /// The API could not be reached, or could not answer.
    HttpClient(HttpClientError),
    /// The token is not accepted, or no longer (401 or 403).
    Unauthorized(StatusCode),
    /// The API refused for a reason of its own (409), such as a wrong password.
    Business {
        /// The API's error number.
        code: i64,
        /// The API's message.
        message: String,
    },
    /// The API has no file of this name (404 or 410).
    NotFound(String),
    /// A status that the API does not define.
    Unexpected(StatusCode),
    /// A success with an unusable body.
    BadAnswer(String),
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HttpClient(error) => write!(f, "the Resource API cannot be used: {error}"),
            Self::Unauthorized(status) => {
                write!(f, "the Resource API does not accept this account's token for this call ({status})")
            }
            Self::Business { code, message } => write!(f, "the Resource API refused: {message} (error {code})"),
            Self::NotFound(name) => write!(f, "the Resource API has no file {name}"),
            Self::Unexpected(status) => write!(f, "the Resource API answered {status}, which is unexpected here"),
            Self::BadAnswer(what) => write!(f, "the Resource API's answer is unusable: {what}"),
        }
    }
}

impl From<HttpClientError> for ApiError {
    fn from(error: HttpClientError) -> Self {
        Self::HttpClient(error)
    }
}

impl ApiError {
    /// Whether the Resource API is away: it does not answer, or cannot.
    pub fn is_away(&self) -> bool {
        matches!(self, Self::HttpClient(error) if error.is_outage())
    }

    /// Whether the answer to a login was that these credentials are wrong, or not accepted any more.
    pub fn refuses_credentials(&self) -> bool {
        matches!(self, Self::Unauthorized(_) | Self::Business { .. })
    }

    /// Whether the Resource API answered that this user may not have the file, or that it does not exist.
    pub fn is_refusal(&self) -> bool {
        self.refuses_credentials() || matches!(self, Self::NotFound(_))
    }
}

/// The Resource API at one address, as this box uses it.
pub struct ResourceApi {
    pub(super) http: HttpClient,
    /// Without a trailing slash.
    pub(super) base: String,
    pub(super) tokens: TokenReader,
    pub(super) hardware: String,
    pub(super) salts: Salts,
    pub(super) outage: Outage,
}

/// The name of a model's small part in the Resource API.
pub(super) fn small_name(model: &ModelName) -> String {
    format!("{}.small", model.file)
}

impl ResourceApi {
    /// The key with which the API encrypts files for these credentials on this box.
    pub fn api_key(&self, credentials: &Credentials) -> AesKey {
        AesKey::of_api(credentials, &self.hardware, &self.salts)
    }

    /// `POST /login`: exchanges the credentials for a token.
    pub fn login(&self, credentials: &Credentials) -> Result<Token, ApiError> {
        #[derive(Deserialize)]
        struct Answer {
            token: Secret,
        }
        let body = credentials.to_json();
        let answer = self.ask(&Method::POST, "/login", None, "application/json", &body)?;
        let answer = accepted(answer, Some(&credentials.password)).inspect_err(|error| {
            if error.is_refusal() {
                metrics::LOGINS_REFUSED.add();
            }
        })?;
        let answer: Answer =
            serde_json::from_slice(&answer).map_err(|_| ApiError::BadAnswer("it contains no token".into()))?;
        self.tokens.read(answer.token).map_err(ApiError::BadAnswer)
    }

    /// `POST /resources/get/{folder}`: a file, encrypted with the API key.
    pub fn resource(
        &self,
        token: &Secret,
        credentials: &Credentials,
        folder: &str,
        file_name: &str,
    ) -> Result<Zeroizing<Vec<u8>>, ApiError> {
        let password = credentials.password.expose();
        let body = json_object([("password", password), ("hardware", self.hardware.as_str()), ("fileName", file_name)]);
        let path = format!("/resources/get/{folder}");
        let answer = self.ask(&Method::POST, &path, Some(token), "application/json", &body)?;
        accepted(answer, Some(&credentials.password)).map_err(|error| match error {
            ApiError::Unexpected(StatusCode::NOT_FOUND | StatusCode::GONE) => ApiError::NotFound(file_name.to_owned()),
            error => error,
        })
    }

    /// `POST /resources/{folder}`: stores a small file.
    ///
    /// Repeating this call is safe: it stores the same bytes under the same name.
    pub fn store(&self, token: &Secret, folder: &str, file_name: &str, bytes: &[u8]) -> Result<(), ApiError> {
        // 128 random bits do not occur in the content by chance.
        let mut boundary = [0; 16];
        getrandom::fill(&mut boundary).map_err(|error| ApiError::BadAnswer(format!("no random bytes: {error}")))?;
        let boundary = hex(&boundary);
        // A quote would end the parameter. Names contain no backslash, so only quotes must be escaped.
        let quoted_name = file_name.replace('"', "\\\"");
        let mut body = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"data\"; filename=\"{quoted_name}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        )
        .into_bytes();
        body.extend_from_slice(bytes);
        body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
        let content_type = format!("multipart/form-data; boundary={boundary}");
        let path = format!("/resources/{folder}");
        accepted(self.ask(&Method::POST, &path, Some(token), &content_type, &body)?, None).map(drop)
    }

    /// `GET /binary-split/key-fragment`: the raw bytes from which the archive's key is made.
    pub fn key_fragment(&self, token: &Secret) -> Result<Zeroizing<Vec<u8>>, ApiError> {
        let answer = self.ask(&Method::GET, "/binary-split/key-fragment", Some(token), "", &[])?;
        let fragment = accepted(answer, None)?;
        if fragment.is_empty() { Err(ApiError::BadAnswer("the key fragment is empty".into())) } else { Ok(fragment) }
    }

    fn ask(
        &self,
        method: &Method,
        path: &str,
        token: Option<&Secret>,
        content_type: &str,
        body: &[u8],
    ) -> Result<BufferedResponse, HttpClientError> {
        let payload = if *method == Method::GET { Payload::None } else { Payload::Bytes(body) };
        let started = Instant::now();
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(token) = token {
            let bearer = Zeroizing::new(format!("Bearer {}", token.expose()));
            request = request.header(header::AUTHORIZATION, bearer.as_str());
        }
        if !content_type.is_empty() {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        let unusable = |_| HttpClientError { server: "RESOURCE_API_URL".into(), kind: HttpClientErrorKind::BadAddress };
        let result = self.http.fetch(&request.body(()).map_err(unusable)?, payload, MAX_RESOURCE_BYTES);
        self.outage.note(&result);
        let received = result.as_ref().map_or(0, |answer| answer.body.len());
        metrics::moved(Stage::Api, (body.len() + received) as u64, started.elapsed());
        result
    }
}

/// The body of a success, otherwise the meaning of the status. If the API repeats `secret` in its message, it is masked.
fn accepted(answer: BufferedResponse, secret: Option<&Secret>) -> Result<Zeroizing<Vec<u8>>, ApiError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Refusal {
        error_code: i64,
        #[serde(default)]
        message: String,
    }
    match answer.status {
        StatusCode::OK => Ok(answer.body),
        status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => Err(ApiError::Unauthorized(status)),
        status @ StatusCode::CONFLICT => {
            let refusal: Refusal = serde_json::from_slice(&answer.body).map_err(|_| ApiError::Unexpected(status))?;
            let mut message = one_line(&refusal.message);
            if let Some(secret) = secret.filter(|secret| !secret.expose().is_empty()) {
                message = message.replace(secret.expose(), "***");
            }
            Err(ApiError::Business { code: refusal.error_code, message })
        }
        status => Err(ApiError::Unexpected(status)),
    }
}

/// Another program's text, made fit for a log line and a `detail`.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}
