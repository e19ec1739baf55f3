//! The route table. An endpoint is one file in `routes/`, one row in [`ROUTES`] and one path in `routes/openapi.json`.

mod docs;
mod load;
mod login;
mod models;
mod monitoring;
mod page;
mod status;
mod upload;

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::exchange::Exchange;
use super::json::admit_json;
use super::reply::Reply;
use super::service::Service;

/// The text is the path parameter. Several are separated by slashes, which no valid name has.
type Admit = fn(&Service, &Exchange, &str) -> Result<(), Reply>;

/// The text is as for [`Admit`]. Either result is the answer.
type Handle = fn(&Service, &mut Exchange, &str) -> Result<Reply, Reply>;

/// A row of the table.
pub(super) struct Route {
    /// A segment in braces matches any segment, whose decoded text is a path parameter. Logs and metrics name the
    /// endpoint by this pattern.
    pub(super) pattern: &'static str,
    /// The methods, as the `Allow` header lists them.
    pub(super) allow: &'static str,
    /// Open without the `CLIENT_TOKEN`, and under any host name. Besides the liveness probe these are the texts that are the
    /// same on every box: a browser cannot send a token with the first page that it opens.
    pub(super) public: bool,
    /// Clients ask every few seconds, so successful answers are logged at level debug.
    pub(super) polled: bool,
    /// The work is of no use to anybody once its client has gone, and is cancelled then.
    pub(super) cancellable: bool,
    /// Refuses a request whose head shows that it must fail, before the client is asked for the body.
    pub(super) admit: Admit,
    pub(super) answered_by: AnsweredBy,
}

#[derive(Clone, Copy)]
pub(super) enum AnsweredBy {
    /// The answer needs nothing but this process's memory.
    AcceptLoop(fn(&Service) -> Reply),
    /// The answer may have to wait for the network, a disk, docker or the client.
    Handler(Handle),
}

/// All endpoints. Any other path is not found.
static ROUTES: [Route; 15] = [
    Route { public: true, ..get("/", page::page) },
    Route { public: true, ..get("/docs", docs::docs) },
    Route { public: true, ..get("/openapi.json", docs::openapi) },
    Route { polled: true, ..get("/metrics", monitoring::metrics) },
    Route { public: true, polled: true, ..get("/health", monitoring::health) },
    Route { polled: true, ..get("/ready", monitoring::ready) },
    Route { polled: true, ..get("/status", status::status) },
    get("/models", models::models),
    Route { cancellable: true, ..post("/models/verify", admit_json, models::verify) },
    Route { cancellable: true, ..post("/login", admit_json, login::login) },
    Route { cancellable: true, ..post("/load/{filename}", load::admit, load::load) },
    post("/upload/{filename}", upload::admit, upload::upload),
    delete("/models/{folder}/{filename}", models::remove),
    post("/unlock", admit_json, login::unlock),
    Route { polled: true, ..get("/unlock/status", login::unlock_status) },
];

// The metrics also count the requests that reach no endpoint.
const _: () = assert!(ROUTES.len() < crate::metrics::ENDPOINTS);

const fn get(pattern: &'static str, answer: fn(&Service) -> Reply) -> Route {
    let (admit, answered_by): (Admit, _) = (|_, _, _| Ok(()), AnsweredBy::AcceptLoop(answer));
    Route { pattern, allow: "GET, HEAD, OPTIONS", public: false, polled: false, cancellable: false, admit, answered_by }
}

const fn post(pattern: &'static str, admit: Admit, handle: Handle) -> Route {
    let answered_by = AnsweredBy::Handler(handle);
    Route { pattern, allow: "POST, OPTIONS", public: false, polled: false, cancellable: false, admit, answered_by }
}

const fn delete(pattern: &'static str, handle: Handle) -> Route {
    Route { allow: "DELETE, OPTIONS", ..post(pattern, |_, _, _| Ok(()), handle) }
}

impl Route {
    pub(super) fn allows(&self, method: &str) -> bool {
        self.allow.split(", ").any(|allowed| allowed == method)
    }

    /// Safe methods (RFC 9110, 9.2.1) only read.
    pub(super) fn is_safe(&self) -> bool {
        self.allows("GET")
    }
}

/// The route of a request target, and its path parameters. The path is split before it is decoded, so an encoded slash is part
/// of a segment; names with a slash are refused later.
pub(super) fn find(target: &str) -> Result<(&'static Route, String), Reply> {
    let not_found = || Reply::error(404, "Not Found");
    let path = target.split('?').next().unwrap_or_default();
    let segments: Result<Vec<Cow<'_, str>>, _> = path
        .strip_prefix('/')
        .ok_or_else(not_found)?
        .split('/')
        .map(|segment| percent_decode_str(segment).decode_utf8())
        .collect();
    let segments = segments.map_err(|_| Reply::error(422, "the path is not percent-encoded UTF-8"))?;
    'routes: for route in &ROUTES {
        let mut patterns = route.pattern[1..].split('/');
        let mut parameters: Vec<&str> = Vec::new();
        for segment in &segments {
            match patterns.next() {
                Some(pattern) if pattern.starts_with('{') => parameters.push(segment),
                Some(pattern) if pattern == segment => {}
                _ => continue 'routes,
            }
        }
        if patterns.next().is_none() {
            return Ok((route, parameters.join("/")));
        }
    }
    Err(not_found())
}

/// The methods of the whole service, for `OPTIONS *`.
pub(super) fn all_methods() -> String {
    let mut methods: Vec<&str> = ROUTES.iter().flat_map(|route| route.allow.split(", ")).collect();
    methods.sort_unstable();
    methods.dedup();
    methods.join(", ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn found(target: &str) -> Result<(&'static str, String), u16> {
        find(target).map(|(route, parameter)| (route.pattern, parameter)).map_err(|reply| reply.status)
    }

    #[test]
    fn every_route_is_found_by_its_path() {
        for route in &ROUTES {
            let parameter = match route.pattern.matches('{').count() {
                0 => "",
                1 => "a b",
                _ => "f/a b",
            };
            let path = route.pattern.replace("{filename}", "a%20b").replace("{folder}", "f");
            for target in [path.clone(), format!("{path}?x=1/2")] {
                assert_eq!(found(&target), Ok((route.pattern, parameter.to_owned())), "{target}");
            }
        }
    }

    #[test]
    fn segments_are_decoded_once() {
        assert_eq!(found("/load/..%2Fetc"), Ok(("/load/{filename}", "../etc".into())));
        assert_eq!(found("/load/%252e%252e"), Ok(("/load/{filename}", "%2e%2e".into())));
        assert_eq!(found("/load/%ff"), Err(422));
        // Two names with one slash too many, which is in neither.
        let pattern = "/models/{folder}/{filename}";
        assert_eq!(found("/models/a%2Fb/c"), Ok((pattern, "a/b/c".into())));
    }

    #[test]
    fn unknown_paths_are_not_found() {
        for target in ["", "*", "//", "/health/", "//health", "/load", "/load/a/b", "/Health", "/unlock/status/x"] {
            assert_eq!(found(target), Err(404), "{target}");
        }
        // An empty name is for the endpoint to refuse.
        assert_eq!(found("/load/"), Ok(("/load/{filename}", String::new())));
    }

    /// Each operation has all statuses that can come before the endpoint sees the request.
    #[test]
    fn every_route_has_its_path_in_the_openapi_document_and_the_document_has_no_other() {
        let document: Value = serde_json::from_str(docs::DOCUMENT).unwrap();
        let paths = document["paths"].as_object().unwrap();
        for route in &ROUTES {
            let (method, _) = route.allow.split_once(',').unwrap();
            let (method, pattern) = (method.to_ascii_lowercase(), route.pattern);
            let operation = &document["paths"][pattern][&method];
            assert!(operation.is_object(), "routes/openapi.json has no {method} of {pattern}");
            assert_eq!(operation["security"].is_array(), route.public, "{pattern}: who may call it");
            let has = |status: &str| operation["responses"][status].is_object();
            for status in ["400", "405", "408", "414", "417", "431", "500", "501", "503", "505"] {
                assert!(has(status), "{pattern} can answer {status}");
            }
            for status in ["401", "403"] {
                assert_eq!(has(status), !route.public, "{pattern}: {status}");
            }
        }
        let described: BTreeSet<_> = paths.keys().map(String::as_str).collect();
        assert_eq!(described, ROUTES.iter().map(|route| route.pattern).collect());
        assert!(paths.values().all(|operations| operations.as_object().unwrap().len() == 1));
    }
}
