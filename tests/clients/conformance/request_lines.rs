//! RFC 9112, sections 2 and 3: where a message begins, its lines, its version, its method.

use super::wire::{BODY, health_with, login_with, on_both, refused, served};

#[test]
fn rfc9112_2_2_a_bare_lf_ends_no_line() {
    for head in [
        "GET /health HTTP/1.1\nHost: x\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: x\nA: b\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: x\r\n\n",
        "GET /health HTTP/1.1\r\nHost: x\n\r\n",
        "GET /health HTTP/1.1\nHost: x\n\n",
        "\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        refused(head, &[400]);
    }
}

#[test]
fn rfc9112_2_2_a_bare_cr_is_400_wherever_it_is() {
    for head in [
        "GET /hea\rlth HTTP/1.1\r\nHost: x\r\n\r\n",
        "GE\rT /health HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET\r/health HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /health\rHTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /health HTTP/1.1\r\r\nHost: x\r\n\r\n",
        "GET /health HTTP/1.1\rHost: x\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: x\r\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: x\r\nA\r: b\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: x\r\n\r\r\n",
        "\rGET /health HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        refused(head, &[400]);
    }
}

#[test]
fn rfc9112_2_2_empty_lines_before_a_request_line_are_skipped() {
    for lines in ["\r\n", "\r\n\r\n"] {
        served(format!("{lines}GET /health HTTP/1.1\r\nHost: x\r\n\r\n"), "GET", 200);
    }
    // Some clients send an extra line end after the body.
    let length = BODY.len();
    on_both(login_with(format!("Content-Length: {length}\r\n"), format!("{BODY}\r\n")), |client| {
        client.answers_the_body();
        client.goes_on();
    });
}

#[test]
fn rfc9112_2_2_empty_lines_without_end_are_not_waited_for() {
    refused("\r\n".repeat(40_000), &[400, 431]);
}

#[test]
fn rfc9112_2_2_white_space_before_the_first_field_is_400() {
    for space in [" ", "\t", "  "] {
        refused(format!("GET /health HTTP/1.1\r\n{space}Host: x\r\nHost: y\r\n\r\n"), &[400]);
        refused(format!("GET /health HTTP/1.1\r\n{space}\r\nHost: y\r\n\r\n"), &[400]);
    }
}

#[test]
fn rfc9112_2_2_what_is_no_request_is_400() {
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"\0\0\0\0",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"{\"jsonrpc\":\"2.0\"}\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET \r\n\r\n",
        b"GET /health\r\n\r\n",
        b": \r\n\r\n",
    ] {
        refused(bytes, &[400]);
    }
}

#[test]
fn rfc9112_2_3_a_higher_minor_version_is_served_as_1_1() {
    for version in ["1.2", "1.9"] {
        served(format!("GET /health HTTP/{version}\r\nHost: x\r\n\r\n"), "GET", 200);
    }
    // A later 1.x follows the rules of 1.1.
    refused("GET /health HTTP/1.2\r\n\r\n", &[400]);
}

#[test]
fn rfc9112_2_3_another_major_version_is_505() {
    for version in ["0.9", "2.0", "3.0", "9.9"] {
        refused(format!("GET /health HTTP/{version}\r\nHost: x\r\n\r\n"), &[505]);
        refused(format!("POST /login HTTP/{version}\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"), &[505]);
    }
    // What `curl --http2-prior-knowledge` and gRPC probes send first.
    refused("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04\0\0\0\0\0", &[505]);
}

#[test]
fn rfc9112_2_3_what_is_no_version_is_400() {
    for version in [
        "http/1.1",
        "Http/1.1",
        "HTTP/1",
        "HTTP/1.",
        "HTTP/.1",
        "HTTP/1.1.1",
        "HTTP/+1.1",
        "HTTP/1,1",
        "HTP/1.1",
        "HTTP1.1",
        "HTTPS/1.1",
        "HTTP/ 1.1",
        "HTTP /1.1",
        "HTTP/x.1",
        "HTTP/1.x",
        "HTTP/",
        "ICY/1.1",
    ] {
        refused(format!("GET /health {version}\r\nHost: x\r\n\r\n"), &[400]);
    }
    for version in ["HTTP/11.1", "HTTP/1.10", "HTTP/01.1"] {
        refused(format!("GET /health {version}\r\nHost: x\r\n\r\n"), &[400, 505]);
    }
}

#[test]
fn rfc9112_3_a_request_line_has_three_words_and_one_space_between_them() {
    for line in [
        " GET /health HTTP/1.1",
        "GET  /health HTTP/1.1",
        "GET /health  HTTP/1.1",
        "GET /health HTTP/1.1 ",
        "GET\t/health HTTP/1.1",
        "GET /health\tHTTP/1.1",
        "GET /health HTTP/1.1\t",
        "GET\x0b/health HTTP/1.1",
        "GET\x0c/health\x0cHTTP/1.1",
        "GET /health x HTTP/1.1",
        "GET /health HTTP/1.1 x",
        "GET /health HTTP/1.1 HTTP/1.1",
    ] {
        refused(format!("{line}\r\nHost: x\r\n\r\n"), &[400]);
    }
}

#[test]
fn rfc9112_3_a_request_line_of_8000_octets_is_read() {
    let around = "GET /health? HTTP/1.1".len();
    let line = format!("GET /health?{} HTTP/1.1", "q".repeat(8000 - around));
    assert_eq!(line.len(), 8000);
    served(format!("{line}\r\nHost: x\r\n\r\n"), "GET", 200);
}

#[test]
fn rfc9112_3_a_longer_target_is_414() {
    refused(format!("GET /health?{} HTTP/1.1\r\nHost: x\r\n\r\n", "q".repeat(9_000)), &[414]);
    // Unfinished, but too long already.
    for length in [20_000, 1 << 20] {
        refused(format!("GET /health?{}", "q".repeat(length)), &[414, 431]);
    }
}

#[test]
fn rfc9112_3_1_methods_are_case_sensitive() {
    for method in ["get", "Get", "GEt", "options"] {
        on_both(format!("{method} /health HTTP/1.1\r\nHost: x\r\n\r\n"), |client| {
            let reply = client.answers("GET", 501);
            client.ends_as_said_or_goes_on(&reply);
        });
    }
}

#[test]
fn rfc9112_3_1_what_is_no_token_is_no_method() {
    for method in
        ["GE(T", "GET,", "G@T", "{}", "G\"ET", "G\0T", "G\x7fT", "G\u{c9}T", "<GET>", "[GET]", "GET:", "a/b", "\\"]
    {
        refused(format!("{method} /health HTTP/1.1\r\nHost: x\r\n\r\n"), &[400]);
    }
}

#[test]
fn rfc9112_3_a_method_longer_than_any_known_is_501() {
    refused(format!("{} /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "A".repeat(100)), &[501]);
    refused("A".repeat(100_000), &[400, 414, 431, 501]);
}

#[test]
fn rfc9110_5_5_nul_and_controls_in_a_request_line_are_400() {
    for byte in (0..0x20).filter(|byte| !b"\r\n".contains(byte)).chain([0x7f]) {
        refused([b"GET /health?", &[byte][..], b" HTTP/1.1\r\nHost: x\r\n\r\n"].concat(), &[400]);
    }
    // A body may hold any bytes.
    let reached = login_with("Content-Length: 3\r\n", b"\0\x01\x7f");
    on_both(reached, |client| {
        client.answers("POST", 422);
        client.goes_on();
    });
    served(health_with(""), "GET", 200);
}
