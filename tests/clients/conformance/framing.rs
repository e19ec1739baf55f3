//! RFC 9112, sections 6 and 8, and RFC 9110, section 8.6: where a body ends.

use std::net::Shutdown;

use super::wire::{BODY, Client, health_with, login_with, on_both, refused, services};

/// A body that must never be read as a request.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n";

#[test]
fn rfc9112_6_3_a_second_content_length_is_400() {
    for fields in [
        "Content-Length: 13\r\nContent-Length: 13\r\n",
        "Content-Length: 13\r\nContent-Length: 0\r\n",
        "Content-Length: 0\r\nContent-Length: 13\r\n",
        "Content-Length: 13\r\nA: b\r\ncontent-length: 14\r\n",
        "Content-Length: 13, 13\r\n",
        "Content-Length: 13,13\r\n",
        "Content-Length: 13, 14\r\n",
        "Content-Length: 13,\r\n",
        "Content-Length: , 13\r\n",
    ] {
        refused(login_with(fields, BODY), &[400]);
        refused(health_with(fields), &[400]);
    }
}

#[test]
fn rfc9110_8_6_a_content_length_is_digits() {
    for length in [
        "",
        "+13",
        "-13",
        "-0",
        "0x0d",
        "0xd",
        "d",
        "13.0",
        "1e1",
        "1 3",
        "13;",
        "13\"",
        "\"13\"",
        "1_3",
        "'13'",
        "13 bytes",
        "*",
        "\u{ff11}\u{ff13}",
        "13\u{a0}",
    ] {
        refused(login_with(format!("Content-Length: {length}\r\n"), BODY), &[400]);
    }
    // Digits that are not ASCII.
    on_both(login_with("Content-Length: 0013\r\n", BODY), |client| {
        client.answers_the_body();
        client.goes_on();
    });
}

#[test]
fn rfc9110_8_6_a_content_length_does_not_overflow() {
    // 2^64, 2^64 + 13, 2^128 + 13 and a long one.
    for length in [
        "18446744073709551616",
        "18446744073709551629",
        "340282366920938463463374607431768211469",
        &format!("1{}13", "0".repeat(400)),
    ] {
        refused(login_with(format!("Content-Length: {length}\r\n"), BODY), &[400]);
    }
    // Valid, but too large for the endpoint.
    for length in ["65537", "4294967309", "9223372036854775807", "18446744073709551615"] {
        refused(login_with(format!("Content-Length: {length}\r\n"), BODY), &[413]);
    }
}

#[test]
fn rfc9112_6_1_content_length_with_transfer_encoding_is_400() {
    for fields in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\nA: b\r\nContent-Length: 0\r\n",
    ] {
        refused(login_with(fields, "0\r\n\r\n"), &[400]);
        refused(health_with(fields), &[400]);
    }
    refused(login_with("Transfer-Encoding: gzip\r\nContent-Length: 5\r\n", "hello"), &[400]);
}

#[test]
fn rfc9112_6_1_transfer_encoding_in_http_1_0_is_400() {
    for more in ["", "Connection: keep-alive\r\n", "Host: x\r\n"] {
        refused(
            format!(
                "POST /login HTTP/1.0\r\n{more}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
            &[400],
        );
    }
}

#[test]
fn rfc9112_6_1_an_unknown_transfer_coding_is_501() {
    for coding in ["gzip, chunked", "gzip,chunked", "x-mine, chunked", "identity, chunked"] {
        refused(login_with(format!("Transfer-Encoding: {coding}\r\n"), "0\r\n\r\n"), &[501]);
    }
    refused(login_with("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), &[501]);
}

/// If the body's end cannot be found, the answer is the 400 of section 6.3, not the 501 of section 6.1.
#[test]
fn rfc9112_6_3_a_last_coding_that_is_not_chunked_is_refused() {
    for fields in [
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: x-mine\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunkedx\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: chunked, gzip\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: chunked,\r\n",
        "Transfer-Encoding: , chunked\r\n",
        "Transfer-Encoding: chunked;q=1\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding: chunk\r\n",
        "Transfer-Encoding:\r\n",
    ] {
        refused(login_with(fields, format!("0\r\n\r\n{HIDDEN}")), &[400]);
    }
}

#[test]
fn rfc9112_7_the_name_of_a_coding_has_no_case() {
    for coding in ["chunked", "Chunked", "CHUNKED", "\tchunked \t"] {
        on_both(
            login_with(format!("Transfer-Encoding: {coding}\r\n"), format!("d\r\n{BODY}\r\n0\r\n\r\n")),
            |client| {
                client.answers_the_body();
            },
        );
    }
}

#[test]
fn rfc9112_6_3_a_request_without_framing_has_no_body() {
    on_both(login_with("", ""), |client| {
        let reply = client.answer("POST");
        assert!(matches!(reply.status, 411 | 422), "{}: {}", client.what(), reply.status);
        client.ends_as_said_or_goes_on(&reply);
    });
    on_both(login_with("", "GET /health HTTP/1.1\r\nHost: x\r\n\r\n"), |client| {
        let reply = client.answer("POST");
        assert!(matches!(reply.status, 411 | 422), "{}: {}", client.what(), reply.status);
        assert_eq!(client.answers("GET", 200).text(), r#"{"status":"healthy"}"#);
    });
}

#[test]
fn rfc9112_6_3_a_body_ends_where_its_length_says() {
    let twice = login_with("Content-Length: 13\r\n", BODY).repeat(2);
    on_both([&twice[..], b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"].concat(), |client| {
        client.answers_the_body();
        client.answers_the_body();
        client.answers("GET", 200);
        client.goes_on();
    });
}

/// Bytes after a head with a length are its body, whatever the method and the path.
#[test]
fn rfc9112_9_3_a_body_that_nobody_reads_is_not_a_request() {
    let small = HIDDEN.repeat(2);
    let large = HIDDEN.repeat(20_000);
    for body in [&small, &large] {
        for (method, path, more, status) in [
            ("GET", "/health", "", 200),
            ("GET", "/status", "", 200),
            ("GET", "/nope", "", 404),
            ("POST", "/nope", "", 404),
            ("POST", "/health", "", 405),
            ("DELETE", "/status", "", 405),
            ("POST", "/login", "Origin: http://evil.example\r\n", 403),
            ("POST", "/login", "Content-Type: text/plain\r\n", 422),
            ("POST", "/unlock", "Content-Type: text/plain\r\n", 422),
        ] {
            let lengths = [
                format!("Content-Length: {}\r\n\r\n{body}", body.len()),
                format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len()),
            ];
            for rest in lengths {
                on_both(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{more}{rest}"), |client| {
                    let reply = client.answers(method, status);
                    client.ends_as_said_or_goes_on(&reply);
                });
            }
        }
    }
}

#[test]
fn rfc9112_6_3_a_declared_body_that_does_not_come_keeps_no_answer_back() {
    for (request, status) in [
        ("GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n", 200),
        ("POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551615\r\n\r\n", 404),
        ("POST /nope HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", 404),
    ] {
        on_both(request, |client| {
            client.answers("GET", status);
        });
    }
}

#[test]
fn rfc9112_8_an_incomplete_body_is_not_acted_on() {
    for (fields, body) in [
        ("Content-Length: 14\r\n", BODY.to_owned()),
        ("Content-Length: 1000\r\n", BODY.to_owned()),
        ("Transfer-Encoding: chunked\r\n", format!("d\r\n{BODY}")),
        ("Transfer-Encoding: chunked\r\n", format!("d\r\n{BODY}\r\n")),
        ("Transfer-Encoding: chunked\r\n", format!("d\r\n{BODY}\r\n0")),
        ("Transfer-Encoding: chunked\r\n", format!("d\r\n{BODY}\r\n0\r\n")),
        ("Transfer-Encoding: chunked\r\n", format!("d\r\n{BODY}\r\n0\r\nX: y\r\n")),
        ("Transfer-Encoding: chunked\r\n", format!("e\r\n{BODY}")),
    ] {
        for service in services() {
            let mut client = Client::send(service, &login_with(fields, &body));
            client.shutdown(Shutdown::Write);
            let reply = client.answer("POST");
            assert!(matches!(reply.status, 400 | 422), "{}: {}", client.what(), reply.status);
            assert!(!reply.detail().contains("password"), "{}: {}", client.what(), reply.text());
            client.ends_as_said(&reply);
        }
    }
}
