//! The body of a refused request is never read as a request: through a proxy or a browser it may come from somebody who is
//! not allowed to send one.

use std::io::{BufReader, Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::world::browser::Browser;
use crate::world::raw::{self, Head, Stream};
use crate::world::resource_api::{Fault, ResourceApi};
use crate::world::service::{Service, ServiceBuilder};
use crate::world::tcp::{TcpServer, reset_on_close};
use crate::world::{eventually, in_ci};

/// The hidden request. There is no archive, so the handler would answer 404 at once.
const HIDDEN: &str = "POST /unlock HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 28\r\n\r\n\
                      {\"email\":\"a\",\"password\":\"b\"}";

const JSON: &str = "Content-Type: application/json\r\n";

/// 6 MiB of requests.
fn large() -> String {
    HIDDEN.repeat((6 << 20) / HIDDEN.len())
}

/// Nearly as much as an endpoint for JSON reads.
fn small() -> String {
    HIDDEN.repeat(60_000 / HIDDEN.len())
}

fn on_both(configure: impl Fn(ServiceBuilder) -> ServiceBuilder, test: impl Fn(&Service)) {
    for builder in [Service::builder(), Service::builder().unix()] {
        let service = configure(builder.timeout(Duration::from_secs(10))).start();
        test(&service);
        // Again, for effects that come late.
        thread::sleep(Duration::from_millis(300));
        nothing_was_asked(&service);
    }
}

/// Checks that no request for `/unlock` has arrived: each would be counted, whatever its answer.
fn nothing_was_asked(service: &Service) {
    let document = service.get("/metrics").text();
    let asked: Vec<_> = document.lines().filter(|line| line.contains("/unlock\"") && line.contains("_total")).collect();
    assert!(asked.is_empty(), "{}: {asked:?}", service.address());
    let log = service.log_text();
    assert!(!log.contains("/unlock"), "{}: {}", service.address(), log.lines().last().unwrap_or_default());
}

/// Sends a head and the hidden requests in its body, from a thread of its own, and reads the answer and all that follows it.
fn refused(service: &Service, head: &str, body: &str, status: u16) {
    let stream = service.connect();
    let mut sender = stream.try_clone().unwrap();
    thread::scope(|scope| {
        let sent = scope.spawn(move || {
            let _ = sender.write_all(head.as_bytes());
            let _ = sender.write_all(body.as_bytes());
            // If the connection stays open, this request ends it.
            let _ = sender.shutdown(Shutdown::Write);
        });
        let mut reader = BufReader::new(stream);
        let reply = raw::read_reply(&mut reader, "POST").unwrap_or_else(|error| panic!("{head:.200}: {error}"));
        assert_eq!(reply.status, status, "{head:.200}: {}", reply.text());
        let mut rest = Vec::new();
        let _ = reader.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{head:.200}: {:.300}", String::from_utf8_lossy(&rest));
        let _ = reader.get_ref().shutdown(Shutdown::Both);
        sent.join().unwrap();
    });
}

/// Sends the head with both framings of a body; both must be refused.
fn refused_in_both_framings(service: &Service, head: &str, status: u16) {
    for body in [HIDDEN.to_owned(), HIDDEN.repeat(8), small(), large()] {
        refused(service, &format!("{head}Content-Length: {}\r\n\r\n", body.len()), &body, status);
        let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        refused(service, &format!("{head}Transfer-Encoding: chunked\r\n\r\n"), &chunked, status);
        // The client sends the body without waiting for `100 Continue`.
        refused(
            service,
            &format!("{head}Expect: 100-continue\r\nContent-Length: {}\r\n\r\n", body.len()),
            &body,
            status,
        );
    }
}

#[test]
fn a_body_refused_with_400_is_not_read_as_requests() {
    on_both(
        |builder| builder,
        |service| {
            let length = HIDDEN.len();
            for fields in [
                format!("Content-Length: {length}\r\nContent-Length: {length}\r\n"),
                format!("Content-Length: 0\r\nContent-Length: {length}\r\n"),
                format!("Content-Length: {length}\r\nContent-Length: 0\r\n"),
                format!("Content-Length: 0, {length}\r\n"),
                "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n".to_owned(),
                "Content-Length: +0\r\n".to_owned(),
                "Content-Length : 5\r\n".to_owned(),
                "A: b\r\n Content-Length: 0\r\n".to_owned(),
                "Host: y\r\n".to_owned(),
                "A b\r\n".to_owned(),
            ] {
                for body in [HIDDEN, &large()] {
                    refused(service, &format!("POST /login HTTP/1.1\r\nHost: x\r\n{JSON}{fields}\r\n"), body, 400);
                }
            }
            for chunks in ["xyz\r\n", "0x0\r\n\r\n", "5\r\nhello", "1\r\n{\r\n0\r\nA b\r\n\r\n", "-1\r\n"] {
                let head =
                    format!("POST /login HTTP/1.1\r\nHost: x\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n{chunks}");
                refused(service, &head, HIDDEN, 400);
            }
        },
    );
}

#[test]
fn a_body_refused_with_401_is_not_read_as_requests() {
    on_both(
        |builder| builder.env("CLIENT_TOKEN", "open-sesame"),
        |service| {
            // The hidden requests have no token either, but they must not even be counted.
            for path in ["/login", "/load/m", "/upload/m"] {
                refused_in_both_framings(service, &format!("POST {path} HTTP/1.1\r\nHost: x\r\n{JSON}"), 401);
            }
        },
    );
}

#[test]
fn a_body_refused_with_403_is_not_read_as_requests() {
    on_both(
        |builder| builder,
        |service| {
            for content_type in ["text/plain", "application/json"] {
                let head = format!(
                    "POST /login HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nOrigin: http://evil.example\r\nContent-Type: {content_type}\r\n"
                );
                refused_in_both_framings(service, &head, 403);
            }
        },
    );
}

#[test]
fn a_body_refused_for_its_path_or_method_is_not_read_as_requests() {
    on_both(
        |builder| builder,
        |service| {
            refused_in_both_framings(service, "POST /nope HTTP/1.1\r\nHost: x\r\n", 404);
            refused_in_both_framings(service, "PUT /login HTTP/1.1\r\nHost: x\r\n", 405);
            refused_in_both_framings(service, "GET /health HTTP/1.1\r\nHost: x\r\n", 200);
        },
    );
}

#[test]
fn a_body_refused_with_413_is_not_read_as_requests() {
    on_both(
        |builder| builder.env("MAX_UPLOAD_BYTES", "1000"),
        |service| {
            let body = large();
            let head = format!("POST /login HTTP/1.1\r\nHost: x\r\n{JSON}");
            refused(service, &format!("{head}Content-Length: {}\r\n\r\n", body.len()), &body, 413);
            let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
            refused(service, &format!("{head}Transfer-Encoding: chunked\r\n\r\n"), &chunked, 413);
        },
    );
}

#[test]
fn a_body_refused_with_422_is_not_read_as_requests() {
    on_both(
        |builder| builder,
        |service| {
            // Refused for its media type alone: a page can send that without a preflight request.
            for path in ["/login", "/load/m", "/upload/m"] {
                let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n");
                refused_in_both_framings(service, &head, 422);
            }
            // A body that is read and found wanting.
            let body = small();
            let head = format!("POST /login HTTP/1.1\r\nHost: x\r\n{JSON}Content-Length: {}\r\n\r\n", body.len());
            refused(service, &head, &body, 422);
        },
    );
}

/// The client leaves or stops in the middle of a body.
#[test]
fn a_body_whose_client_goes_is_not_read_as_requests() {
    on_both(
        |builder| builder.env("CLIENT_STALL_SECONDS", "1"),
        |service| {
            let half = small();
            for (path, content_type) in [
                ("/login", "application/json"),
                ("/upload/m", "multipart/form-data; boundary=b"),
                ("/load/m", "application/json"),
            ] {
                for framing in [
                    format!("Content-Length: {}\r\n\r\n", 2 * half.len()),
                    "Transfer-Encoding: chunked\r\n\r\nea60\r\n".into(),
                ] {
                    for how in 0..4 {
                        let mut stream = service.connect();
                        let head = format!(
                            "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\n{framing}{half}"
                        );
                        let _ = stream.write_all(head.as_bytes());
                        match (how, &stream) {
                            (0, Stream::Tcp(tcp)) => reset_on_close(tcp),
                            (1, _) => drop(stream.shutdown(Shutdown::Write)),
                            (2, _) => thread::sleep(Duration::from_millis(30)),
                            _ => {}
                        }
                    }
                }
            }
        },
    );
}

#[test]
fn a_body_whose_client_is_slow_is_not_read_as_requests() {
    on_both(
        |builder| builder.env("CLIENT_STALL_SECONDS", "1"),
        |service| {
            let mut open = Vec::new();
            for framing in
                ["Content-Length: 60000\r\n\r\n{".to_owned(), "Transfer-Encoding: chunked\r\n\r\nea60\r\n{".into()]
            {
                for _ in 0..3 {
                    let mut stream = service.connect();
                    write!(stream, "POST /login HTTP/1.1\r\nHost: x\r\n{JSON}{framing}").unwrap();
                    open.push(stream);
                }
            }
            // Their time limit has passed.
            for stream in &mut open {
                let mut said = [0; 13];
                if stream.read_exact(&mut said).is_ok() {
                    assert!(matches!(&said, b"HTTP/1.1 422 " | b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&said));
                }
                let _ = stream.write_all(large().as_bytes());
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest);
                assert!(!String::from_utf8_lossy(&rest).contains("HTTP/1.1"), "{}", String::from_utf8_lossy(&rest));
            }
        },
    );
}

#[test]
fn a_body_refused_with_503_is_not_read_as_requests() {
    let api = ResourceApi::start();
    api.fault("/login", Fault::Hang, None);
    on_both(
        |builder| builder.api(&api).env("HANDLER_THREADS", "1"),
        |service| {
            let login = r#"{"email":"a","password":"b"}"#;
            let mut waiting = Vec::new();
            let is_full = |service: &Service| !service.get("/metrics").text().contains("\nloader_queue_full_total 0\n");
            eventually(Duration::from_secs(10), "the queue is full", || {
                let mut stream = service.connect();
                write!(
                    stream,
                    "POST /login HTTP/1.1\r\nHost: x\r\n{JSON}Content-Length: {}\r\n\r\n{login}",
                    login.len()
                )
                .unwrap();
                waiting.push(stream);
                thread::sleep(Duration::from_millis(10));
                is_full(service)
            });
            for body in [HIDDEN.to_owned(), HIDDEN.repeat(8), small()] {
                for _ in 0..5 {
                    let head =
                        format!("POST /login HTTP/1.1\r\nHost: x\r\n{JSON}Content-Length: {}\r\n\r\n", body.len());
                    refused(service, &head, &body, 503);
                }
                let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
                refused(
                    service,
                    &format!("POST /login HTTP/1.1\r\nHost: x\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n"),
                    &chunked,
                    503,
                );
            }
            drop(waiting);
            api.cut();
        },
    );
}

/// A page of another site may send any amount of plain text without a preflight request.
#[test]
fn what_a_page_of_another_site_sends_is_not_read_as_requests() {
    let Some(browser) = Browser::or_skip("requests hidden in what a page sends") else { return };
    let page = TcpServer::start(0, |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Ok(Some(_)) = Head::read(&mut reader) {
            let html = "<!doctype html><title>another site</title>";
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{html}",
                html.len()
            );
        }
    });
    let service = Service::builder().start();
    let tries = if in_ci() { 20 } else { 6 };
    for site in [page.host_port(), page.host_port().replace("127.0.0.1", "localhost")] {
        browser.open(&format!("http://{site}/"));
        for path in ["/login", "/load/m"] {
            browser.script(&format!(
                "const body = {}.repeat({}); window.done = 0;
                 const send = count => fetch({}, {{method: 'POST', mode: 'no-cors', body}}).catch(() => 0)
                     .then(() => {{ window.done += 1; if (count > 1) send(count - 1); }});
                 send({tries})",
                json!(HIDDEN),
                (6 << 20) / HIDDEN.len(),
                json!(service.url(path)),
            ));
            browser.wait(&format!("window.done === {tries}"));
        }
    }
    thread::sleep(Duration::from_millis(300));
    let document = service.get("/metrics").text();
    // The page's requests did arrive.
    assert!(document.contains(r#"endpoint="/login",status="403""#), "{document}");
    nothing_was_asked(&service);
}
