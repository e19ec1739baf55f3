//! RFC 9112, section 5, and RFC 9110, section 5: field lines.

use super::wire::{BODY, health_with, login_with, on_both, refused, served};

#[test]
fn rfc9112_5_1_white_space_before_a_colon_is_400() {
    for line in [
        "A : b",
        "A\t: b",
        "A \t : b",
        "Content-Length : 0",
        "Transfer-Encoding : chunked",
        "Connection\t: close",
        "A\x0b: b",
    ] {
        refused(health_with(format!("{line}\r\n")), &[400]);
    }
    refused("GET /health HTTP/1.1\r\nHost : x\r\n\r\n", &[400]);
    refused(login_with("Content-Length : 13\r\n", BODY), &[400]);
}

#[test]
fn rfc9112_5_a_line_without_colon_is_400() {
    for line in ["A", "A b", "GET /health HTTP/1.1", "=", "\u{e9}"] {
        refused(health_with(format!("{line}\r\n")), &[400]);
    }
}

#[test]
fn rfc9110_5_1_a_field_name_is_a_token() {
    for byte in (0..=255_u8).filter(|byte| !byte.is_ascii_alphanumeric() && !b"!#$%&'*+-.^_`|~:\n".contains(byte)) {
        refused(health_with([b"A", &[byte][..], b"B: c\r\n"].concat()), &[400]);
    }
    refused(health_with(": b\r\n"), &[400]);
    served(health_with("!#$%&'*+-.^_`|~09azAZ: b\r\n"), "GET", 200);
}

#[test]
fn rfc9110_5_1_field_names_have_no_case() {
    on_both(
        format!(
            "POST /login HTTP/1.1\r\nhOST: x\r\nCONTENT-type: application/json\r\ncontent-LENGTH: {}\r\n\r\n{BODY}",
            BODY.len()
        ),
        |client| {
            client.answers_the_body();
            client.goes_on();
        },
    );
    on_both(health_with("cONNECTION: close\r\n"), |client| {
        let reply = client.answers("GET", 200);
        client.ends_as_said(&reply);
    });
}

#[test]
fn rfc9112_5_2_a_folded_line_is_400() {
    for fields in [
        "A: b\r\n c\r\n",
        "A: b\r\n\tc\r\n",
        "A: b\r\n \r\n",
        "A:\r\n b\r\n",
        "A: b\r\n Content-Length: 30\r\n",
        "A: b\r\n Transfer-Encoding: chunked\r\n",
        "Connection: keep-alive,\r\n close\r\n",
    ] {
        refused(health_with(fields), &[400]);
    }
    refused("GET /health HTTP/1.1\r\nHost: x\r\n y\r\n\r\n", &[400]);
    for fields in ["Content-Length: 1\r\n 3\r\n", "Content-Length:\r\n 13\r\n", "Transfer-Encoding:\r\n\tchunked\r\n"] {
        refused(login_with(fields, BODY), &[400]);
    }
}

#[test]
fn rfc9110_5_5_nul_and_controls_in_a_value_are_400() {
    for byte in (0..0x20).filter(|byte| !b"\t\r\n".contains(byte)).chain([0x7f]) {
        refused(health_with([b"A: b", &[byte][..], b"c\r\n"].concat()), &[400]);
        // At the edges of a value, where a parser that trims too much would lose it.
        refused(login_with([b"Content-Length: ", &[byte][..], b"13\r\n"].concat(), BODY), &[400]);
        refused(login_with([b"Content-Length: 13", &[byte][..], b"\r\n"].concat(), BODY), &[400]);
        refused(login_with([b"Transfer-Encoding: ", &[byte][..], b"chunked\r\n"].concat(), "0\r\n\r\n"), &[400]);
    }
}

#[test]
fn rfc9110_5_5_letters_beyond_ascii_are_accepted_in_a_value() {
    served(health_with("X-Name: caf\u{e9}\r\n"), "GET", 200);
    served(health_with(b"X-Name: caf\xe9\r\n"), "GET", 200);
    served(health_with([b"X: ".to_vec(), (0x80..=0xff).collect(), b"\r\n".to_vec()].concat()), "GET", 200);
}

#[test]
fn rfc9110_5_6_3_spaces_and_tabs_around_a_value_are_not_part_of_it() {
    for line in ["Content-Length:13", "Content-Length: 13", "Content-Length:\t13", "Content-Length: \t 13 \t "] {
        on_both(login_with(format!("{line}\r\n"), BODY), |client| {
            client.answers_the_body();
            client.goes_on();
        });
    }
    for line in ["A:", "A: ", "A: b\tc  d", "A: :", "A: \"b", "A: (b", "A: b: c"] {
        served(health_with(format!("{line}\r\n")), "GET", 200);
    }
}

#[test]
fn rfc9110_5_3_the_order_of_fields_means_nothing() {
    served(health_with("A: 1\r\nB: 2\r\nA: 3\r\nA:\r\n"), "GET", 200);
    on_both(
        format!(
            "POST /login HTTP/1.1\r\nContent-Length: {}\r\nA: b\r\nContent-Type: application/json\r\nHost: x\r\n\r\n{BODY}",
            BODY.len()
        ),
        |client| client.answers_the_body(),
    );
}

#[test]
fn rfc9110_5_4_more_fields_than_are_read_are_431() {
    // With `Host` there are 100.
    served(health_with("A: b\r\n".repeat(99)), "GET", 200);
    refused(health_with("A: b\r\n".repeat(100)), &[431]);
    refused(health_with("A: b\r\n".repeat(4000)), &[431]);
}

#[test]
fn rfc9110_5_4_a_head_of_more_than_16_kib_is_431() {
    served(health_with(format!("A: {}\r\n", "v".repeat(15_000))), "GET", 200);
    refused(health_with(format!("A: {}\r\n", "v".repeat(20_000))), &[431]);
    refused(health_with(format!("{}: b\r\n", "A".repeat(20_000))), &[431]);
    // Unfinished, but too long already.
    refused(format!("GET /health HTTP/1.1\r\nHost: x\r\nA: {}", "v".repeat(20_000)), &[431]);
    refused(format!("GET /health HTTP/1.1\r\nHost: x\r\n{}", "v".repeat(20_000)), &[431]);
    refused(format!("GET /health HTTP/1.1\r\nHost: x\r\nA: {}", "v".repeat(1 << 20)), &[431]);
}
