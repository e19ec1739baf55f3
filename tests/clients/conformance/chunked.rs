//! RFC 9112, section 7: chunks and trailers.

use super::wire::{BODY, Client, LOGIN, login_with, on_both, refused, services};

fn chunked(body: impl AsRef<[u8]>) -> Vec<u8> {
    login_with("Transfer-Encoding: chunked\r\n", body)
}

/// Sends a chunked body, which must be read as [`BODY`].
fn is_the_body(body: impl AsRef<[u8]>) {
    on_both(chunked(body), |client| {
        client.answers_the_body();
    });
}

#[test]
fn rfc9112_7_1_chunks_are_put_together() {
    is_the_body(format!("d\r\n{BODY}\r\n0\r\n\r\n"));
    is_the_body(format!("5\r\n{}\r\n1\r\n{}\r\n7\r\n{}\r\n0\r\n\r\n", &BODY[..5], &BODY[5..6], &BODY[6..]));
    // One byte per packet, then one per chunk.
    for service in services() {
        let mut client = Client::send(service, format!("{LOGIN}Transfer-Encoding: chunked\r\n\r\n").as_bytes());
        for byte in format!("5\r\n{}\r\n8\r\n{}\r\n0\r\n\r\n", &BODY[..5], &BODY[5..]).bytes() {
            client.more(&[byte]);
        }
        client.answers_the_body();
    }
    let single: String = BODY.chars().map(|letter| format!("1\r\n{letter}\r\n")).collect();
    is_the_body(format!("{single}0\r\n\r\n"));
}

#[test]
fn rfc9112_7_1_a_chunk_size_is_hexadecimal_in_either_case() {
    for size in ["d", "D", "0d", "000000000000000000000000d"] {
        is_the_body(format!("{size}\r\n{BODY}\r\n0\r\n\r\n"));
    }
    is_the_body(format!("d\r\n{BODY}\r\n00000\r\n\r\n"));
}

#[test]
fn rfc9112_7_1_what_is_no_chunk_size_is_400() {
    for size in [
        "0xd", "0Xd", "+d", "-d", "-1", " d", "d ", "\td", "d\t", "_d", "d_", "0_d", "1_0", "d.", "d,", "#d", "dg",
        "g", "x", "", "\u{ff24}", "\"d\"", "d d", "\0d", "d\0", "\x0bd", "d\x0b",
    ] {
        refused(chunked(format!("{size}\r\n{BODY}\r\n0\r\n\r\n")), &[400]);
    }
}

#[test]
fn rfc9112_7_1_a_chunk_size_does_not_overflow() {
    for size in ["1000000000000000d", "1000000000000000000000000000000000d", "10000000000000000", "fffffffffffffffff"] {
        refused(chunked(format!("{size}\r\n{BODY}\r\n0\r\n\r\n")), &[400, 413]);
    }
    // These sizes are valid numbers, but more than the endpoint accepts.
    for size in ["ffffffffffffffff", "7fffffffffffffff", "10000000d", "100000000000000"] {
        refused(chunked(format!("{size}\r\n{}", "x".repeat(70_000))), &[400, 413]);
    }
}

#[test]
fn rfc9112_7_1_a_chunk_ends_with_crlf() {
    for body in [
        format!("d\r\n{BODY}0\r\n\r\n"),
        format!("d\r\n{BODY}\n0\r\n\r\n"),
        format!("d\r\n{BODY}\r0\r\n\r\n"),
        format!("d\r\n{BODY}xx0\r\n\r\n"),
        format!("d\r\n{BODY}\r\r\n0\r\n\r\n"),
        format!("c\r\n{BODY}\r\n0\r\n\r\n"),
        format!("e\r\n{BODY}\r\n0\r\n\r\n"),
        format!("d\n{BODY}\r\n0\r\n\r\n"),
        format!("d\r{BODY}\r\n0\r\n\r\n"),
        format!("d\r\n{BODY}\r\n0\n\r\n"),
        format!("d\r\n{BODY}\r\n\r\n0\r\n\r\n"),
        format!("\r\nd\r\n{BODY}\r\n0\r\n\r\n"),
    ] {
        refused(chunked(body), &[400]);
    }
}

#[test]
fn rfc9112_7_1_1_unknown_chunk_extensions_are_ignored() {
    for extension in [";a", ";a=b", ";a=b;c=d", ";a=\"b c\"", ";a=\"b\\\"c\"", ";", &format!(";a={}", "b".repeat(200))]
    {
        is_the_body(format!("d{extension}\r\n{BODY}\r\n0{extension}\r\n\r\n"));
    }
}

#[test]
fn rfc9112_7_1_1_chunk_extensions_have_a_limit() {
    let long = "b".repeat(100_000);
    refused(chunked(format!("d;a={long}\r\n{BODY}\r\n0\r\n\r\n")), &[400, 413, 431]);
    // Unfinished, but too long already.
    refused(chunked(format!("d;a={long}")), &[400, 413, 431]);
    refused(chunked("0".repeat(100_000)), &[400, 413, 431]);
}

#[test]
fn rfc9112_7_1_1_controls_in_a_chunk_extension_are_400() {
    for extension in [";a\nb", ";a\rb", ";a\0b", ";a=\"\n\"", ";a=\"\r\n\"", ";\x0b", ";\x7f"] {
        refused(chunked(format!("d{extension}\r\n{BODY}\r\n0\r\n\r\n")), &[400]);
    }
}

#[test]
fn rfc9112_7_1_2_trailers_are_read_and_mean_nothing() {
    for trailers in [
        "X-Checksum: 1\r\n",
        "A: b\r\nC: d\r\n",
        "Content-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Host: evil.example\r\n",
        "Origin: http://evil.example\r\n",
        "Content-Type: text/plain\r\n",
        "Connection: close\r\nExpect: 100-continue\r\n",
    ] {
        on_both(chunked(format!("d\r\n{BODY}\r\n0\r\n{trailers}\r\n")), |client| {
            let reply = client.answers("POST", 422);
            assert!(reply.detail().contains("password is missing"), "{}: {}", client.what(), reply.text());
            client.ends_as_said_or_goes_on(&reply);
        });
    }
}

#[test]
fn rfc9112_7_1_2_trailers_that_are_no_fields_are_400() {
    for trailers in [
        "GET /hidden HTTP/1.1\r\nHost: x\r\n",
        "A : b\r\n",
        "A: b\r\n c\r\n",
        "A: b\nC: d\r\n",
        "A: b\r\n\nGET /hidden HTTP/1.1\r\nHost: x\r\n",
        "A: \0\r\n",
        ": b\r\n",
    ] {
        refused(chunked(format!("d\r\n{BODY}\r\n0\r\n{trailers}\r\n")), &[400]);
    }
}

#[test]
fn rfc9112_7_1_2_trailers_have_a_limit() {
    refused(chunked(format!("d\r\n{BODY}\r\n0\r\nA: {}\r\n\r\n", "b".repeat(100_000))), &[400, 413, 431]);
    refused(chunked(format!("d\r\n{BODY}\r\n0\r\n{}\r\n", "A: b\r\n".repeat(100_000))), &[400, 413, 431]);
    // Unfinished, but too long already.
    refused(chunked(format!("d\r\n{BODY}\r\n0\r\nA: {}", "b".repeat(100_000))), &[400, 413, 431]);
}

#[test]
fn rfc9112_7_1_3_what_follows_the_last_chunk_is_the_next_request() {
    let request = chunked(format!("d\r\n{BODY}\r\n0\r\nX: y\r\n\r\n"));
    on_both([&request[..], &request[..]].concat(), |client| {
        let reply = client.answers("POST", 422);
        assert!(reply.detail().contains("password is missing"), "{}: {}", client.what(), reply.text());
        if super::wire::has_option(&reply, "close") {
            client.ends();
        } else {
            client.answers_the_body();
            client.goes_on();
        }
    });
}

/// The decoded body has the same limit as one with a `Content-Length`.
#[test]
fn rfc9110_15_5_14_a_chunked_body_that_is_too_large_is_413() {
    let chunk = format!("400\r\n{}\r\n", " ".repeat(1024));
    refused(chunked(chunk.repeat(65)), &[413]);
}
