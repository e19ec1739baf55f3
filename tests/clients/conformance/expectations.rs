//! RFC 9110, section 10.1.1: `Expect`.

use super::wire::{BODY, LOGIN, health_with, login_with, on_both, refused, served};

#[test]
fn rfc9110_10_1_1_an_unknown_expectation_is_417() {
    for value in ["200-ok", "x", "100-continue, x", "x, 100-continue", "100-continue;a=b", "100", "\"100-continue\""] {
        refused(login_with(format!("Expect: {value}\r\nContent-Length: 13\r\n"), BODY), &[417]);
        refused(health_with(format!("Expect: {value}\r\n")), &[417]);
    }
    refused(login_with("Expect: 100-continue\r\nExpect: x\r\nContent-Length: 13\r\n", BODY), &[417]);
}

#[test]
fn rfc9110_10_1_1_the_body_is_asked_for_when_it_is_wanted() {
    let chunked = format!("d\r\n{BODY}\r\n0\r\n\r\n");
    for (expect, framing, body) in [
        ("100-continue", "Content-Length: 13", BODY),
        // Expectations are case-insensitive.
        ("100-Continue", "Content-Length: 13", BODY),
        ("100-continue", "Transfer-Encoding: chunked", &chunked),
    ] {
        on_both(format!("{LOGIN}Expect: {expect}\r\n{framing}\r\n\r\n"), |client| {
            // The interim answer comes before any byte of the body.
            let interim = client.any_answer("POST");
            assert_eq!(interim.status, 100, "{}", client.what());
            client.more(body.as_bytes());
            // It comes once.
            let reply = client.any_answer("POST");
            assert_eq!(reply.status, 422, "{}", client.what());
            assert!(reply.detail().contains("password is missing"), "{}: {}", client.what(), reply.text());
            client.ends_as_said_or_goes_on(&reply);
        });
    }
}

#[test]
fn rfc9110_10_1_1_a_body_that_came_unasked_is_read() {
    on_both(login_with("Expect: 100-continue\r\nContent-Length: 13\r\n", BODY), |client| client.answers_the_body());
}

#[test]
fn rfc9110_10_1_1_a_body_that_is_not_wanted_is_not_asked_for() {
    for (request, status) in [
        ("POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n", 422),
        ("POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 65537\r\n", 413),
        (
            "POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nOrigin: http://y.example\r\nContent-Length: 13\r\n",
            403,
        ),
        ("POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 13\r\n", 404),
        ("POST /nope HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n", 404),
        ("PUT /login HTTP/1.1\r\nHost: x\r\nContent-Length: 13\r\n", 405),
        ("POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n", 405),
        ("GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n", 200),
        ("POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 13, 13\r\n", 400),
    ] {
        on_both(format!("{request}Expect: 100-continue\r\n\r\n"), |client| {
            let reply = client.any_answer("POST");
            assert_eq!(reply.status, status, "{}: {}", client.what(), reply.text());
            // The client may or may not send the body now, so the connection cannot be used any more.
            client.ends_as_said(&reply);
        });
    }
}

#[test]
fn rfc9110_10_1_1_without_a_body_there_is_nothing_to_ask_for() {
    on_both(health_with("Expect: 100-continue\r\n"), |client| {
        assert_eq!(client.any_answer("GET").status, 200, "{}", client.what());
        client.goes_on();
    });
    on_both(login_with("Expect: 100-continue\r\nContent-Length: 0\r\n", ""), |client| {
        assert_eq!(client.any_answer("POST").status, 422, "{}", client.what());
        client.goes_on();
    });
}

#[test]
fn rfc9110_15_2_http_1_0_gets_no_interim_answer() {
    let head =
        "POST /login HTTP/1.0\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: 13\r\n\r\n";
    on_both(format!("{head}{BODY}"), |client| {
        let reply = client.any_answer("POST");
        assert_eq!(reply.status, 422, "{}", client.what());
        assert!(reply.detail().contains("password is missing"), "{}: {}", client.what(), reply.text());
    });
    served("GET /health HTTP/1.0\r\nConnection: keep-alive\r\nExpect: 100-continue\r\n\r\n", "GET", 200);
}
