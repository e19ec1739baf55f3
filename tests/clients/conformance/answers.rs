//! RFC 9110, sections 6 and 15: the form of answers; refused requests are logged and counted.

use std::time::Duration;

use super::wire::{Client, LOGIN, health_with, on_both, refused, services};
use crate::world::service::Service;

/// Each cause for which no route is asked, and its status.
const REFUSED: [(&str, u16); 10] = [
    ("GET /health HTTP/1.1\r\n\r\n", 400),
    ("GET /h\u{e9}alth HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 5\r\n\r\nhello", 400),
    ("POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("GET /health HTTP/1.1\r\nHost: x\r\nExpect: x\r\n\r\n", 417),
    ("POST /login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    ("CONNECT /health HTTP/1.1\r\nHost: x\r\n\r\n", 501),
    ("CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n", 501),
    ("GET /health HTTP/9.9\r\nHost: x\r\n\r\n", 505),
    ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
];

#[test]
fn rfc9110_6_6_1_every_answer_has_a_date() {
    // Every test of this module checks the date of its answers; these are the answers that come from no route.
    for (request, status) in REFUSED {
        refused(request, &[status]);
    }
    for request in
        [health_with(""), health_with("Connection: close\r\n"), b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()]
    {
        on_both(request, |client| {
            assert!(client.answer("GET").header("date").is_some());
        });
    }
}

#[test]
fn rfc9110_15_5_9_a_head_that_does_not_come_in_time_is_408() {
    for builder in [Service::builder(), Service::builder().unix()] {
        let service = builder.env("CLIENT_STALL_SECONDS", "1").timeout(Duration::from_secs(10)).start();
        for beginning in
            ["G", "GET /hea", "GET /health HTTP/1.1\r\nHost: x\r\n", "GET /health HTTP/1.1\r\nHost: x\r\nA: "]
        {
            let mut client = Client::send(&service, beginning.as_bytes());
            let reply = client.answers("GET", 408);
            assert_eq!(reply.header("content-type"), Some("application/json"));
            assert!(reply.detail().contains(' '), "{}", reply.text());
            client.ends_as_said(&reply);
        }
        // The same after another request on the connection.
        let mut client = Client::send(&service, b"");
        client.goes_on();
        client.more(b"GET /hea");
        let reply = client.answers("GET", 408);
        client.ends_as_said(&reply);
        assert!(service.get("/metrics").text().contains(r#"status="408"} 5"#), "{}", service.get("/metrics").text());
    }
}

/// Requests that `tiny_http` refused by itself used to appear in no log and no metric.
#[test]
fn what_is_refused_is_counted_and_logged() {
    for builder in [Service::builder(), Service::builder().unix()] {
        let service = builder.timeout(Duration::from_secs(10)).start();
        let more = [
            (health_with("A: b\r\n".repeat(200)), 431),
            (format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "q".repeat(9000)).into_bytes(), 414),
            (format!("{LOGIN}Transfer-Encoding: chunked\r\n\r\nxyz\r\n").into_bytes(), 400),
            (b"BREW /health HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), 501),
        ];
        let all = REFUSED.iter().map(|(request, status)| (request.as_bytes().to_vec(), *status)).chain(more);
        // One of each status first, because the log sums up a flood of lines.
        let mut all: Vec<_> = all.collect();
        let firsts: Vec<u16> = all.iter().map(|(_, status)| *status).collect();
        let mut places = (0..all.len()).collect::<Vec<_>>();
        places.sort_by_key(|place| firsts[..*place].contains(&firsts[*place]));
        all = places.into_iter().map(|place| all[place].clone()).collect();
        let mut expected = std::collections::BTreeMap::<u16, u64>::new();
        for (request, status) in all {
            let mut client = Client::send(&service, &request);
            client.answers("GET", status);
            *expected.entry(status).or_default() += 1;
        }
        let counted = || {
            let document = service.get("/metrics").text();
            let mut counted = std::collections::BTreeMap::<u16, u64>::new();
            for line in document.lines().filter(|line| line.starts_with("loader_http_requests_total{")) {
                let (labels, count) = line.rsplit_once(' ').unwrap();
                let status = labels.split_once("status=\"").unwrap().1.split('"').next().unwrap().parse().unwrap();
                *counted.entry(status).or_default() += count.parse::<u64>().unwrap();
            }
            // Leaves out the 200 of `/metrics` itself and of the probe at the start.
            counted.remove(&200);
            counted
        };
        // A handler counts a request after the client has its answer.
        crate::world::eventually(Duration::from_secs(10), "all are counted", || counted() == expected);
        let log = service.log_text();
        for status in expected.keys() {
            assert!(log.contains(&format!("status={status}")), "no {status} in\n{log}");
        }
        // Whatever was sent, it stays on one line.
        assert!(log.lines().all(|line| line.starts_with("time=")), "{log}");
    }
}

#[test]
fn rfc9110_11_6_1_a_401_has_its_challenge() {
    for builder in [Service::builder(), Service::builder().unix()] {
        let service = builder.env("CLIENT_TOKEN", "open-sesame").timeout(Duration::from_secs(10)).start();
        for request in [
            "GET /status HTTP/1.1\r\nHost: x\r\n\r\n",
            "POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
        ] {
            let mut client = Client::send(&service, request.as_bytes());
            let reply = client.answers("GET", 401);
            assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
            client.ends_as_said_or_goes_on(&reply);
        }
    }
    assert!(services().iter().all(|service| service.get("/health").status == 200));
}
