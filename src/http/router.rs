//! From method and request target to a route.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use tiny_http::Method;

/// The endpoints, with what their paths carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `GET /health`
    Health,
    /// `GET /status`
    Status,
    /// `POST /login`
    Login,
    /// `POST /load/{filename}`
    Load(String),
    /// `POST /upload/{filename}`
    Upload(String),
    /// `POST /unlock`
    Unlock,
    /// `GET /unlock/status`
    UnlockStatus,
}

/// Why there is no route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteError {
    /// No such path.
    NotFound,
    /// The path is there, with other methods.
    MethodNotAllowed {
        /// The value of the `Allow` header.
        allow: &'static str,
    },
    /// A path segment does not decode to text.
    BadEncoding,
}

const READ: &str = "GET, HEAD";
const WRITE: &str = "POST";

impl Route {
    /// The methods of this endpoint.
    fn allow(&self) -> &'static str {
        match self {
            Self::Health | Self::Status | Self::UnlockStatus => READ,
            Self::Login | Self::Load(_) | Self::Upload(_) | Self::Unlock => WRITE,
        }
    }

    /// Whether the answer needs nothing but this process's memory.
    #[must_use]
    pub fn answers_from_memory(&self) -> bool {
        matches!(self, Self::Health | Self::Status | Self::UnlockStatus)
    }

    /// Whether a request can do more than look.
    #[must_use]
    pub fn changes_something(&self) -> bool {
        self.allow() == WRITE
    }

    /// Whether the route is open without the `CLIENT_TOKEN`.
    #[must_use]
    pub fn is_public(&self) -> bool {
        matches!(self, Self::Health)
    }
}

/// Finds the route. Percent-encoding is decoded once, after the path was cut into segments, so an encoded slash is part of
/// a segment and for its name check to refuse.
///
/// # Errors
/// See [`RouteError`].
pub fn route(method: &Method, url: &str) -> Result<Route, RouteError> {
    let path = path_of(url);
    let mut segments = Vec::new();
    for segment in path.strip_prefix('/').ok_or(RouteError::NotFound)?.split('/') {
        segments.push(percent_decode_str(segment).decode_utf8().map_err(|_| RouteError::BadEncoding)?);
    }
    let segments: Vec<&str> = segments.iter().map(Cow::as_ref).collect();
    let route = match segments[..] {
        ["health"] => Route::Health,
        ["status"] => Route::Status,
        ["login"] => Route::Login,
        ["load", name] => Route::Load(name.to_owned()),
        ["upload", name] => Route::Upload(name.to_owned()),
        ["unlock"] => Route::Unlock,
        ["unlock", "status"] => Route::UnlockStatus,
        _ => return Err(RouteError::NotFound),
    };
    let allow = route.allow();
    let allowed = match method {
        Method::Get | Method::Head => allow == READ,
        Method::Post => allow == WRITE,
        _ => false,
    };
    if allowed { Ok(route) } else { Err(RouteError::MethodNotAllowed { allow }) }
}

/// The path of a request target, which is a path or, for clients that take this for a proxy, a whole URL.
fn path_of(url: &str) -> &str {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    match url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")) {
        Some(rest) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None => url,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_is_found_by_its_method_and_no_other() {
        for (method, other, url, expected) in [
            (Method::Get, Method::Post, "/health", Route::Health),
            (Method::Head, Method::Put, "/health?x=1", Route::Health),
            (Method::Get, Method::Delete, "/status", Route::Status),
            (Method::Post, Method::Get, "/login", Route::Login),
            (Method::Post, Method::Head, "/load/m.bin", Route::Load("m.bin".into())),
            (Method::Post, Method::Get, "/upload/a%20b", Route::Upload("a b".into())),
            (Method::Post, Method::Get, "/unlock", Route::Unlock),
            (Method::Get, Method::Post, "http://box:8080/unlock/status", Route::UnlockStatus),
        ] {
            let allow = expected.allow();
            assert_eq!(route(&method, url), Ok(expected), "{method} {url}");
            assert_eq!(route(&other, url), Err(RouteError::MethodNotAllowed { allow }), "{other} {url}");
        }
    }

    #[test]
    fn encoded_segments_decode_once() {
        assert_eq!(route(&Method::Post, "/load/..%2Fetc"), Ok(Route::Load("../etc".into())));
        assert_eq!(route(&Method::Post, "/load/%252e%252e"), Ok(Route::Load("%2e%2e".into())));
        assert_eq!(route(&Method::Post, "/load/%ff"), Err(RouteError::BadEncoding));
    }

    #[test]
    fn unknown_paths_are_not_found() {
        for url in
            ["/", "", "*", "/health/", "//health", "/load", "/load/a/b", "/Health", "/unlock/status/x", "http://h"]
        {
            assert_eq!(route(&Method::Get, url), Err(RouteError::NotFound), "{url}");
        }
        // An encoded slash makes no segment, and an empty name is for the route to refuse.
        assert_eq!(route(&Method::Post, "/load/"), Ok(Route::Load(String::new())));
    }
}
