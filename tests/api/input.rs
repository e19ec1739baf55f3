//! Input that is refused before anything is done with it, and names that inject nothing.

use std::io::{BufReader, Read, Write};
use std::time::Duration;

use serde_json::json;

use crate::world::World;
use crate::world::multipart::Form;
use crate::world::raw::{self};
use crate::world::service::Service;

#[test]
fn a_refused_upload_is_not_asked_for_its_body() {
    let service = Service::builder().env("CLIENT_TOKEN", "open-sesame").start();
    let token = "Authorization: Bearer open-sesame\r\n";
    for (headers, status) in [
        ("Content-Type: multipart/form-data; boundary=b\r\n".to_owned(), "401"),
        (format!("{token}Origin: http://evil.example\r\n"), "403"),
        (format!("{token}Content-Type: text/plain\r\n"), "422"),
        (format!("{token}Content-Type: multipart/form-data; boundary=b\r\nTransfer-Encoding: gzip\r\n"), "400"),
    ] {
        let length = if headers.contains("gzip") { "" } else { "Content-Length: 1000000\r\n" };
        let mut stream = service.connect();
        stream.set_timeout(Duration::from_secs(10)).unwrap();
        write!(stream, "POST /upload/m HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n{length}{headers}\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
}

#[test]
fn json_bombs_are_refused() {
    let service = Service::builder().start();
    let deep = "[".repeat(30_000);
    let json = [("Content-Type", "application/json")];
    let closed = "]".repeat(30_000);
    for (body, status) in [
        (format!(r#"{{"email":"a","password":"b","x":{deep}"#), 422),
        (format!(r#"{{"email":{deep}{closed},"password":"b"}}"#), 422),
        (format!("{}1{}", r#"{"a":"#.repeat(9_000), "}".repeat(9_000)), 422),
        // An unknown field is skipped, however deep it is: this login fails only because there is no API.
        (format!(r#"{{"email":"a","password":"b","x":{deep}{closed}}}"#), 401),
    ] {
        let reply = service.call("POST", "/login", &json, body.as_bytes()).unwrap();
        assert_eq!(reply.status, status, "{}", reply.text());
    }
    // Too large, with `Content-Length` and without; with one byte less the body is parsed.
    let body = |size: usize| format!(r#"{{"email":"{}"}}"#, "a".repeat(size - 12));
    for (size, status) in [(65_537, 413), (65_536, 422)] {
        assert_eq!(service.call("POST", "/login", &json, body(size).as_bytes()).unwrap().status, status);
        let mut reader = BufReader::new(service.connect());
        let stream = reader.get_mut();
        write!(stream, "POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n").unwrap();
        write!(stream, "Transfer-Encoding: chunked\r\n\r\n{size:x}\r\n{}\r\n0\r\n\r\n", body(size)).unwrap();
        assert_eq!(raw::read_reply(&mut reader, "POST").unwrap().status, status);
    }
    assert!(service.is_running());
}

/// A valid name reaches the Resource API, the CDN and the disk unchanged, and has no special meaning there.
#[test]
fn names_inject_nothing_anywhere() {
    let world = World::new();
    let names = [
        "a\"; filename=\"b",
        "a'; name=folder",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "%0d%0aX-Injected: 1",
        "a?versionId=1&b#c",
        "a+b c",
        "..hidden..",
        "модель;=,",
        "{\"a\":1}",
        "-rf *",
    ];
    for name in names {
        world.upload(name, name.as_bytes());
        world.loads(name, name.as_bytes());
        world.forget(name);
        world.loads(name, name.as_bytes());
        assert!(world.api.file(&world.folder, &format!("{name}.small")).is_some(), "{name}");
        assert!(world.keys().contains(&format!("{name}.big")), "{name}: {:?}", world.keys());
        assert!(world.cached(name).is_file(), "{name}");
    }
    let expected: Vec<_> = names.iter().map(|name| format!("{name}.small")).collect();
    let stored = world.api.files().into_iter().filter(|(folder, _)| !folder.is_empty());
    for (folder, name) in stored {
        assert!(folder == world.folder && expected.contains(&name), "{folder}/{name}");
    }
    assert!(!world.api.requests().iter().any(|request| request.headers.iter().any(|(name, _)| name == "X-Injected")));

    // Names that would end a header line or leave the folder are refused; encoded twice they are plain text, as above.
    let known = (world.api.files(), world.keys());
    for path in ["a%0d%0aX:%201", "a%0a", "%00", "..%2f..%2fetc%2fpasswd", "%2e%2e", "..%5c", "a%2fb", "%c0%ae%c0%ae"] {
        let form = Form::new("x", &[("folder", &world.folder)], &[]);
        let body = [&form.before[..], b"DATA", &form.after].concat();
        let headers = [("Content-Type", form.content_type.as_str())];
        let reply = world.service.call("POST", &format!("/upload/{path}"), &headers, &body).unwrap();
        assert_eq!(reply.status, 422, "{path}: {}", reply.text());
        let reply = world.service.post_json(&format!("/load/{path}"), json!({"folder": world.folder}));
        assert_eq!(reply.status, 422, "{path}: {}", reply.text());
        assert!(!reply.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("x")), "{path}");
    }
    assert_eq!((world.api.files(), world.keys()), known);
    // Paths are not normalized either: `..` does not lead to another endpoint.
    for path in ["/load/../status", "/load/%2e%2e/status", "//status", "/./status", "/status/../../etc/passwd"] {
        let reply = raw::request(world.service.connect(), "GET", path, &[], b"").unwrap();
        assert_eq!(reply.status, 404, "{path}");
    }
    // The log quotes what it was sent: one line stays one.
    assert!(!world.service.log_text().lines().any(|line| line.starts_with('X')));
}
