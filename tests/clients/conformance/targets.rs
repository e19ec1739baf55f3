//! RFC 9112, section 3.2: the four forms of a request target.

use super::wire::{BODY, on_both, refused, served, services};

#[test]
fn rfc9112_3_2_a_target_that_is_no_uri_is_400() {
    for target in
        ["/h\u{e9}alth", "/load/\u{43c}\u{43e}\u{434}\u{435}\u{43b}\u{44c}", "/health?\u{20ac}", "/health#fragment"]
    {
        refused(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n"), &[400]);
    }
    // This is not even UTF-8.
    refused(b"GET /h\xe9alth HTTP/1.1\r\nHost: x\r\n\r\n", &[400]);
}

#[test]
fn rfc9112_3_2_1_an_origin_form_begins_with_a_slash() {
    for target in ["health", "?x", "%2fhealth", "./health", "..", "\\health", ":80"] {
        refused(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n"), &[400]);
    }
    served("GET /health?a=/b/../c?d HTTP/1.1\r\nHost: x\r\n\r\n", "GET", 200);
}

#[test]
fn rfc9112_3_2_2_an_absolute_form_is_accepted() {
    for target in [
        "http://x/health",
        "http://127.0.0.1:8080/health",
        "http://[::1]:80/health?q",
        // RFC 9110, 4.2.3: scheme and host have no case.
        "HTTP://X/health",
        "http://x:/health",
    ] {
        on_both(format!("GET {target} HTTP/1.1\r\nHost: y\r\n\r\n"), |client| {
            let reply = client.answers("GET", 200);
            assert_eq!(reply.text(), r#"{"status":"healthy"}"#, "{}", client.what());
            client.goes_on();
        });
    }
    // An empty path is the root.
    for target in ["http://x", "http://x?q", "http://x/"] {
        on_both(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n"), |client| {
            assert_eq!(client.answers("GET", 200).header("content-type"), Some("text/html; charset=utf-8"));
        });
    }
    served("GET http://x/health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "GET", 200);
}

#[test]
fn rfc9112_3_2_2_the_authority_of_an_absolute_form_replaces_host() {
    let length = BODY.len();
    let ask = |authority: &str, host: &str, origin: &str| {
        format!(
            "POST http://{authority}/login HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{BODY}"
        )
    };
    on_both(ask("127.0.0.1:81", "evil.example", "http://127.0.0.1:81"), |client| client.answers_the_body());
    for origin in ["http://evil.example", "http://127.0.0.1:81"] {
        on_both(ask("evil.example", "127.0.0.1:81", origin), |client| {
            client.answers("POST", 403);
        });
    }
}

#[test]
fn rfc9112_3_2_2_an_absolute_form_needs_host_and_is_checked() {
    // `Host` is required with every form.
    refused("GET http://x/health HTTP/1.1\r\n\r\n", &[400]);
    for target in [
        "http:///health",
        "http://",
        "http://:80/health",
        "http://[::1/health",
        "http://::1/health",
        "http://x:8x/health",
        "http://x:-1/health",
        // RFC 9110, 4.2.4: a name and a password before the host are an error.
        "http://user@x/health",
        "http://user:password@x/health",
        "http:/health",
        "http:health",
        "http//x/health",
    ] {
        refused(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n"), &[400]);
    }
}

#[test]
fn rfc9110_7_4_other_schemes_are_not_served() {
    for target in ["ftp://x/health", "ws://x/health", "file:///health", "javascript:/health"] {
        on_both(format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), |client| {
            let status = client.answer("GET").status;
            assert!(matches!(status, 400 | 404 | 421), "{}: {status}", client.what());
        });
    }
}

#[test]
fn rfc9112_3_2_3_an_authority_form_is_for_connect_only() {
    for method in ["GET", "HEAD", "POST", "OPTIONS", "DELETE"] {
        for target in ["x:80", "127.0.0.1:80", "[::1]:80"] {
            refused(format!("{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n"), &[400]);
        }
    }
}

#[test]
fn rfc9112_3_2_4_an_asterisk_is_for_options_only() {
    for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"] {
        refused(format!("{method} * HTTP/1.1\r\nHost: x\r\n\r\n"), &[400]);
    }
    for target in ["**", "*x", "*/health", "*?"] {
        refused(format!("OPTIONS {target} HTTP/1.1\r\nHost: x\r\n\r\n"), &[400]);
    }
    assert!(services().iter().all(|service| service.get("/health").status == 200));
}
