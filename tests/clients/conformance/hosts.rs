//! RFC 9112, section 3.2, and RFC 9110, section 7.2: exactly one valid `Host`.

use super::wire::{refused, served, served_last};

#[test]
fn rfc9112_3_2_a_request_without_host_is_400() {
    refused("GET /health HTTP/1.1\r\n\r\n", &[400]);
    refused("GET /health HTTP/1.1\r\nHosts: x\r\nX-Host: x\r\n\r\n", &[400]);
    refused("POST /login HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}", &[400]);
}

#[test]
fn rfc9112_3_2_a_second_host_is_400() {
    for hosts in [
        "Host: x\r\nHost: x\r\n",
        "Host: x\r\nHost: y\r\n",
        "Host: x\r\nA: b\r\nhOST: x\r\n",
        "Host: x\r\nHost:\r\n",
        "Host:\r\nHost: x\r\n",
    ] {
        refused(format!("GET /health HTTP/1.1\r\n{hosts}\r\n"), &[400]);
        refused(format!("GET /health HTTP/1.0\r\n{hosts}\r\n"), &[400]);
    }
}

#[test]
fn rfc9112_3_2_an_empty_host_is_400() {
    for host in ["Host:", "Host: ", "Host:\t "] {
        refused(format!("GET /health HTTP/1.1\r\n{host}\r\n\r\n"), &[400]);
    }
}

#[test]
fn rfc9112_3_2_an_invalid_host_is_400() {
    for host in [
        "x y", "x/", "x/health", "http://x", "user@x", "x:80:80", "x:8x", "x:-1", ":80", "::1", "[::1", "::1]", "[]",
        "[x]", "[::1]x", "[::g]", "x?y", "x#y", "x\\y", "x\"", "<x>", "x, y", "x\ty", "{x}", "x^", "x|y", "x`", "%",
        "%4", "%zz", "h\u{e9}",
    ] {
        refused(format!("GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n"), &[400]);
        refused(format!("GET /health HTTP/1.0\r\nHost: {host}\r\n\r\n"), &[400]);
    }
}

#[test]
fn rfc9110_7_2_every_valid_host_is_accepted() {
    for host in [
        "x",
        "x:80",
        "x:",
        "X.Example",
        "x.example.",
        "127.0.0.1",
        "127.0.0.1:8080",
        "[::1]",
        "[::1]:8080",
        "[fe80::1:2]",
        "[::ffff:127.0.0.1]:80",
        "a-b.c_d~e",
        "%41",
        "a!$&'()*+;=b",
        "\tx \t",
    ] {
        served(format!("GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n"), "GET", 200);
    }
}

#[test]
fn rfc9112_3_2_http_1_0_needs_no_host() {
    served("GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "GET", 200);
    served_last("GET /health HTTP/1.0\r\n\r\n", "GET", 200);
}
