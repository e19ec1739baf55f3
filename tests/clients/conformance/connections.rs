//! RFC 9112, section 9, and RFC 9110, sections 7.6 and 7.8: how long a connection serves.

use std::io::Read;

use super::wire::{BODY, has_option, health_with, login_with, on_both, served, services};
use crate::world::raw;

const NEXT: &str = "GET /nope HTTP/1.1\r\nHost: x\r\n\r\n";

#[test]
fn rfc9112_9_3_a_connection_serves_one_request_after_the_other() {
    on_both("", |client| {
        for _ in 0..3 {
            client.goes_on();
            client.more(&login_with("Content-Length: 13\r\n", BODY));
            client.answers_the_body();
            client.more(NEXT.as_bytes());
            assert!(!has_option(&client.answers("GET", 404), "close"));
            client.more(b"DELETE /health HTTP/1.1\r\nHost: x\r\n\r\n");
            assert!(!has_option(&client.answers("DELETE", 405), "close"));
        }
    });
}

#[test]
fn rfc9112_9_6_connection_close_is_honoured_and_answered() {
    for fields in [
        "Connection: close\r\n",
        "Connection: Close\r\n",
        "Connection: keep-alive, close\r\n",
        "Connection: close, keep-alive\r\n",
        "Connection:close\r\n",
        "Connection: a,close,b\r\n",
        "Connection: , ,\tclose\t,\r\n",
        // RFC 9110, 5.3: several lines are one list.
        "Connection: a\r\nConnection: close\r\n",
        "Connection: keep-alive\r\nA: b\r\nConnection: x, close\r\n",
    ] {
        for (request, method, status) in [
            (health_with(fields), "GET", 200),
            (format!("HEAD /health HTTP/1.1\r\nHost: x\r\n{fields}\r\n").into_bytes(), "HEAD", 200),
            (format!("GET /nope HTTP/1.1\r\nHost: x\r\n{fields}\r\n").into_bytes(), "GET", 404),
            (login_with(format!("{fields}Content-Length: 13\r\n"), BODY), "POST", 422),
            (
                login_with(format!("{fields}Transfer-Encoding: chunked\r\n"), format!("d\r\n{BODY}\r\n0\r\n\r\n")),
                "POST",
                422,
            ),
        ] {
            // A request that follows is not processed.
            on_both([&request[..], NEXT.as_bytes()].concat(), |client| {
                let reply = client.answers(method, status);
                client.ends_as_said(&reply);
            });
        }
    }
    for fields in
        ["Connection: closed\r\n", "Connection: x-close\r\n", "Connection: \"close\"\r\n", "X-Connection: close\r\n"]
    {
        served(health_with(fields), "GET", 200);
    }
}

#[test]
fn rfc9112_9_3_http_1_0_ends_unless_the_client_asks_to_keep_it() {
    for fields in [
        "",
        "Connection: x\r\n",
        "Connection: close\r\n",
        "Connection: keep-alive, close\r\n",
        "Keep-Alive: timeout=5\r\n",
    ] {
        on_both(format!("GET /health HTTP/1.0\r\n{fields}\r\n{NEXT}"), |client| {
            client.answers("GET", 200);
            client.ends();
        });
    }
    for fields in ["Connection: keep-alive\r\n", "Connection: Keep-Alive\r\n", "Connection: x, keep-alive\r\n"] {
        on_both(format!("GET /health HTTP/1.0\r\n{fields}\r\n"), |client| {
            let reply = client.answers("GET", 200);
            assert!(has_option(&reply, "keep-alive"), "{}: {:?}", client.what(), reply.headers);
            client.goes_on();
        });
    }
    let body = format!(
        "POST /login HTTP/1.0\r\nContent-Type: application/json\r\nConnection: keep-alive\r\nContent-Length: 13\r\n\r\n{BODY}"
    );
    on_both(body.repeat(2), |client| {
        client.answers_the_body();
        client.answers_the_body();
    });
}

#[test]
fn rfc9112_9_3_2_pipelined_requests_are_answered_in_order() {
    let login = login_with("Content-Length: 13\r\n", BODY);
    let requests = [
        &health_with("")[..],
        &login,
        NEXT.as_bytes(),
        b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"OPTIONS /login HTTP/1.1\r\nHost: x\r\n\r\n",
        &login,
        b"\r\n",
        &health_with("Connection: close\r\n"),
        NEXT.as_bytes(),
    ];
    on_both(requests.concat(), |client| {
        assert_eq!(client.answers("GET", 200).text(), r#"{"status":"healthy"}"#);
        client.answers_the_body();
        client.answers("GET", 404);
        client.answers("HEAD", 200);
        client.answers("OPTIONS", 204);
        client.answers_the_body();
        let last = client.answers("GET", 200);
        client.ends_as_said(&last);
    });
    // More than the service buffers for one request.
    on_both(NEXT.repeat(300), |client| {
        for _ in 0..300 {
            client.answers("GET", 404);
        }
        client.goes_on();
    });
}

#[test]
fn rfc9112_2_2_a_request_may_come_in_any_pieces() {
    let request = login_with("Content-Length: 13\r\n", BODY);
    for pieces in [1, 2, 7] {
        on_both("", |client| {
            for piece in request.chunks(pieces) {
                client.more(piece);
            }
            client.answers_the_body();
            client.goes_on();
        });
    }
}

#[test]
fn rfc9112_9_6_an_answer_is_not_lost_because_more_was_on_its_way() {
    // The head is refused while the client still sends its whole body.
    let body = "x".repeat(1 << 20);
    let request = login_with(format!("Content-Length: {}\r\n", body.len()), &body);
    on_both(request, |client| {
        let reply = client.answers("POST", 413);
        client.ends_as_said(&reply);
    });
}

#[test]
fn rfc9112_9_5_a_client_that_closes_is_closed() {
    for service in services() {
        for beginning in ["", "GET /hea", "GET /health HTTP/1.1\r\nHost: x\r\n"] {
            let mut stream = service.connect();
            std::io::Write::write_all(&mut stream, beginning.as_bytes()).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).unwrap();
            assert!(said.is_empty() || said.starts_with("HTTP/1.1 400 "), "{beginning:?}: {said}");
        }
        // A client that has shut down its sending side still reads the answers.
        let mut stream = service.connect();
        std::io::Write::write_all(&mut stream, &health_with("").repeat(2)).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut reader = std::io::BufReader::new(stream);
        for _ in 0..2 {
            assert_eq!(raw::read_reply(&mut reader, "GET").unwrap().status, 200);
        }
    }
}

#[test]
fn rfc9110_7_8_upgrade_is_ignored() {
    for fields in [
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\n",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Connection: upgrade\r\nUpgrade: TLS/1.0\r\n",
        "Upgrade: x\r\n",
    ] {
        served(health_with(fields), "GET", 200);
        on_both(login_with(format!("{fields}Content-Length: 13\r\n"), BODY), |client| {
            client.answers_the_body();
            client.goes_on();
        });
    }
    served("GET /health HTTP/1.0\r\nConnection: upgrade, keep-alive\r\nUpgrade: x\r\n\r\n", "GET", 200);
}

#[test]
fn rfc9110_7_6_1_fields_that_concern_other_hops_change_nothing() {
    for fields in [
        "TE: trailers, deflate\r\nConnection: TE\r\n",
        "Keep-Alive: timeout=1, max=1\r\n",
        "Proxy-Connection: close\r\n",
        "Trailer: X\r\n",
        "Max-Forwards: 0\r\n",
        "Via: 1.0 a, 1.1 b\r\n",
    ] {
        served(health_with(fields), "GET", 200);
    }
    // An intermediary would drop the fields that `Connection` names; the last hop uses them.
    on_both(login_with("Connection: Content-Length, Host\r\nContent-Length: 13\r\n", BODY), |client| {
        client.answers_the_body()
    });
}
