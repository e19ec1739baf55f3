//! From method and request target to a route.

use percent_encoding::percent_decode_str;
use tiny_http::Method;

/// The endpoints, with what their paths carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `GET /`
    Page,
    /// `GET /docs`
    Docs,
    /// `GET /openapi.json`
    OpenApi,
    /// `GET /metrics`
    Metrics,
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

const READ: &str = "GET, HEAD, OPTIONS";
const WRITE: &str = "POST, OPTIONS";

/// One line of the table of endpoints.
struct Endpoint {
    /// The path; a segment in braces is any one.
    pattern: &'static str,
    /// Its methods, as `Allow` lists them.
    allow: &'static str,
    /// Makes the route of the segment in braces, which is empty where the path has none.
    route: fn(&str) -> Route,
}

/// All endpoints: what is not here is not found.
static ENDPOINTS: [Endpoint; 11] = [
    Endpoint { pattern: "/", allow: READ, route: |_| Route::Page },
    Endpoint { pattern: "/docs", allow: READ, route: |_| Route::Docs },
    Endpoint { pattern: "/openapi.json", allow: READ, route: |_| Route::OpenApi },
    Endpoint { pattern: "/metrics", allow: READ, route: |_| Route::Metrics },
    Endpoint { pattern: "/health", allow: READ, route: |_| Route::Health },
    Endpoint { pattern: "/status", allow: READ, route: |_| Route::Status },
    Endpoint { pattern: "/login", allow: WRITE, route: |_| Route::Login },
    Endpoint { pattern: "/load/{filename}", allow: WRITE, route: |name| Route::Load(name.to_owned()) },
    Endpoint { pattern: "/upload/{filename}", allow: WRITE, route: |name| Route::Upload(name.to_owned()) },
    Endpoint { pattern: "/unlock", allow: WRITE, route: |_| Route::Unlock },
    Endpoint { pattern: "/unlock/status", allow: READ, route: |_| Route::UnlockStatus },
];

/// What stands for paths that are no endpoint's.
pub(super) const NO_ENDPOINT: &str = "other";

/// The pattern of the endpoint that a request target leads to, such as `/load/{filename}`, or `other`: one of a few words
/// whatever clients send, for logs and metrics.
pub fn endpoint_of(url: &str) -> &'static str {
    find(url).map_or(NO_ENDPOINT, |(endpoint, _)| endpoint.pattern)
}

impl Route {
    /// Whether the answer needs nothing but this process's memory.
    pub fn answers_from_memory(&self) -> bool {
        match self {
            Self::Page | Self::Docs | Self::OpenApi | Self::Metrics => true,
            Self::Health | Self::Status | Self::UnlockStatus => true,
            Self::Login | Self::Load(_) | Self::Upload(_) | Self::Unlock => false,
        }
    }

    /// Whether a request can do more than look.
    pub fn changes_something(&self) -> bool {
        matches!(self, Self::Login | Self::Load(_) | Self::Upload(_) | Self::Unlock)
    }

    /// Whether the route is open without the `CLIENT_TOKEN`. Besides the liveness probe these are the texts that are the
    /// same for every box: a browser cannot send a token with the first page that it opens.
    pub fn is_public(&self) -> bool {
        matches!(self, Self::Health | Self::Page | Self::Docs | Self::OpenApi)
    }
}

/// Finds the route. Percent-encoding is decoded once, after the path was cut into segments, so an encoded slash is part of
/// a segment and for its name check to refuse.
///
/// # Errors
/// See [`RouteError`].
pub fn route(method: &Method, url: &str) -> Result<Route, RouteError> {
    let (endpoint, name) = find(url)?;
    let allow = endpoint.allow;
    let allowed = match method {
        Method::Get | Method::Head => allow == READ,
        Method::Post => allow == WRITE,
        _ => false,
    };
    if allowed { Ok((endpoint.route)(&name)) } else { Err(RouteError::MethodNotAllowed { allow }) }
}

/// The methods that a target has, as `Allow` lists them. `*` has all of them.
///
/// # Errors
/// As those of [`route`].
pub(super) fn methods_of(target: &str) -> Result<&'static str, RouteError> {
    if target == "*" { Ok("GET, HEAD, POST, OPTIONS") } else { find(target).map(|(endpoint, _)| endpoint.allow) }
}

/// The endpoint that a path leads to, and the segment that stands in its braces.
fn find(url: &str) -> Result<(&'static Endpoint, String), RouteError> {
    let path = url.split('?').next().unwrap_or_default();
    let mut segments = Vec::new();
    for segment in path.strip_prefix('/').ok_or(RouteError::NotFound)?.split('/') {
        segments.push(percent_decode_str(segment).decode_utf8().map_err(|_| RouteError::BadEncoding)?);
    }
    'endpoints: for endpoint in &ENDPOINTS {
        let mut patterns = endpoint.pattern[1..].split('/');
        let mut name = "";
        for segment in &segments {
            match patterns.next() {
                Some(pattern) if pattern.starts_with('{') => name = segment,
                Some(pattern) if pattern == segment => {}
                _ => continue 'endpoints,
            }
        }
        if patterns.next().is_none() {
            return Ok((endpoint, name.to_owned()));
        }
    }
    Err(RouteError::NotFound)
}

/// Pattern and methods of every endpoint.
#[cfg(test)]
pub(super) fn endpoints() -> impl Iterator<Item = (&'static str, &'static str)> {
    ENDPOINTS.iter().map(|endpoint| (endpoint.pattern, endpoint.allow))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_is_found_by_its_method_and_no_other() {
        for (method, other, url, expected) in [
            (Method::Get, Method::Post, "/", Route::Page),
            (Method::Get, Method::Post, "/?x", Route::Page),
            (Method::Head, Method::Post, "/docs", Route::Docs),
            (Method::Get, Method::Post, "/openapi.json", Route::OpenApi),
            (Method::Get, Method::Post, "/metrics", Route::Metrics),
            (Method::Get, Method::Post, "/health", Route::Health),
            (Method::Head, Method::Put, "/health?x=1", Route::Health),
            (Method::Get, Method::Delete, "/status", Route::Status),
            (Method::Post, Method::Get, "/login", Route::Login),
            (Method::Post, Method::Head, "/load/m.bin", Route::Load("m.bin".into())),
            (Method::Post, Method::Get, "/upload/a%20b", Route::Upload("a b".into())),
            (Method::Post, Method::Get, "/unlock", Route::Unlock),
            (Method::Get, Method::Post, "/unlock/status", Route::UnlockStatus),
        ] {
            let allow = if method == Method::Post { WRITE } else { READ };
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
        for url in ["", "*", "//", "/health/", "//health", "/load", "/load/a/b", "/Health", "/unlock/status/x"] {
            assert_eq!(route(&Method::Get, url), Err(RouteError::NotFound), "{url}");
        }
        assert_eq!((endpoint_of("/nope"), endpoint_of("/load/x%20y?z")), (NO_ENDPOINT, "/load/{filename}"));
        // An encoded slash makes no segment, and an empty name is for the route to refuse.
        assert_eq!(route(&Method::Post, "/load/"), Ok(Route::Load(String::new())));
    }
}
