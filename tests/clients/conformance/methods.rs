//! RFC 9110, section 9 and the statuses that belong to it.

use super::wire::{BODY, login_with, on_both, refused, served, services};
use crate::world::raw::Reply;

fn allowed(reply: &Reply) -> Vec<String> {
    let mut methods: Vec<_> =
        reply.header("allow").unwrap_or_default().split(',').map(|method| method.trim().to_owned()).collect();
    methods.sort();
    methods
}

#[test]
fn rfc9110_9_1_an_unknown_method_is_501() {
    for method in ["BREW", "PROPFIND", "X", "!", "GETT", "M-SEARCH"] {
        for path in ["/health", "/nope", "/login"] {
            on_both(format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n"), |client| {
                let reply = client.answers("GET", 501);
                assert!(reply.detail().contains(' '), "{}: {}", client.what(), reply.text());
                client.ends_as_said_or_goes_on(&reply);
            });
        }
    }
}

#[test]
fn rfc9110_15_5_6_a_known_method_that_is_not_allowed_is_405_with_allow() {
    for (path, methods, allow) in [
        ("/health", ["POST", "PUT", "DELETE", "PATCH"], ["GET", "HEAD", "OPTIONS"].as_slice()),
        ("/unlock/status", ["POST", "PUT", "DELETE", "PATCH"], &["GET", "HEAD", "OPTIONS"]),
        ("/login", ["GET", "PUT", "DELETE", "PATCH"], &["OPTIONS", "POST"]),
        ("/load/m", ["GET", "PUT", "DELETE", "PATCH"], &["OPTIONS", "POST"]),
        ("/login", ["HEAD", "PUT", "DELETE", "PATCH"], &["OPTIONS", "POST"]),
    ] {
        for method in methods {
            on_both(format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n"), |client| {
                let reply = client.answers(method, 405);
                let mut said = allowed(&reply);
                // `Allow` may leave out OPTIONS.
                said.extend((!said.contains(&"OPTIONS".to_owned())).then(|| "OPTIONS".to_owned()));
                said.sort();
                assert_eq!(said, allow, "{}", client.what());
                client.goes_on();
            });
        }
    }
    for method in ["GET", "POST", "PUT", "DELETE", "PATCH"] {
        served(format!("{method} /nope HTTP/1.1\r\nHost: x\r\n\r\n"), method, 404);
    }
}

#[test]
fn rfc9110_9_3_2_head_is_get_without_a_body() {
    for path in ["/health", "/", "/docs", "/openapi.json", "/unlock/status", "/nope"] {
        let ask = |method: &str| format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        on_both(format!("{}{}", ask("HEAD"), ask("GET")), |client| {
            let (head, get) = (client.answer("HEAD"), client.answer("GET"));
            assert_eq!(head.status, get.status, "{path}");
            let fields = |reply: &Reply| {
                // These two differ from answer to answer.
                let own = |name: &str| matches!(name, "date" | "x-request-id");
                let fields = reply.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone()));
                fields.filter(|(name, _)| !own(name)).collect::<Vec<_>>()
            };
            assert_eq!(fields(&head), fields(&get), "{path}");
            client.goes_on();
        });
    }
}

#[test]
fn rfc9110_9_3_7_options_lists_the_methods_of_a_path() {
    for (path, allow) in [
        ("/health", ["GET", "HEAD", "OPTIONS"].as_slice()),
        ("/", &["GET", "HEAD", "OPTIONS"]),
        ("/login", &["OPTIONS", "POST"]),
        ("/load/m", &["OPTIONS", "POST"]),
        ("/unlock", &["OPTIONS", "POST"]),
    ] {
        on_both(format!("OPTIONS {path} HTTP/1.1\r\nHost: x\r\n\r\n"), |client| {
            assert_eq!(allowed(&client.answers("OPTIONS", 204)), allow, "{path}");
            client.goes_on();
        });
    }
    served("OPTIONS /nope HTTP/1.1\r\nHost: x\r\n\r\n", "OPTIONS", 404);
}

#[test]
fn rfc9110_9_3_7_options_of_an_asterisk_is_about_the_service() {
    for request in [
        "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        "OPTIONS * HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    ] {
        on_both(request, |client| {
            let allow = allowed(&client.answers("OPTIONS", 204));
            for method in ["GET", "HEAD", "OPTIONS", "POST"] {
                assert!(allow.contains(&method.to_owned()), "{allow:?}");
            }
            client.goes_on();
        });
    }
}

#[test]
fn rfc9110_9_3_6_connect_is_refused_and_what_follows_is_no_request() {
    for target in ["x:80", "example.com:443", "[::1]:80", "127.0.0.1:1"] {
        refused(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"), &[501]);
    }
    for target in ["/health", "http://x/health", "x", "x:", ":80", "*"] {
        refused(format!("CONNECT {target} HTTP/1.1\r\nHost: x\r\n\r\n"), &[400, 501]);
    }
}

#[test]
fn rfc9110_9_3_8_trace_repeats_nothing() {
    for (path, status) in [("/health", 405), ("/nope", 404), ("/login", 405), ("/", 405)] {
        let request = format!("TRACE {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer open-sesame\r\n\r\n");
        on_both(&request, |client| assert!(!client.answers("TRACE", status).text().contains("sesame")));
    }
}

#[test]
fn rfc9110_9_3_methods_that_carry_nothing_may_carry_something() {
    for method in ["GET", "HEAD", "DELETE", "OPTIONS"] {
        on_both(format!("{method} /health HTTP/1.1\r\nHost: x\r\nContent-Length: 13\r\n\r\n{BODY}"), |client| {
            let reply = client.answer(method);
            client.ends_as_said_or_goes_on(&reply);
        });
    }
    on_both(login_with("Content-Length: 13\r\n", BODY), |client| client.answers_the_body());
    assert!(services().iter().all(|service| service.get("/health").status == 200));
}
