//! Pages of other sites in a browser, which must not get in.

use serde_json::json;

use crate::world::World;
use crate::world::multipart::Form;
use crate::world::raw::{self};
use crate::world::resource_api::{EMAIL, PASSWORD};
use crate::world::service::Service;

#[test]
fn pages_of_other_sites_cannot_make_a_browser_do_anything() {
    let world = World::new();
    world.upload("m.bin", b"model");
    world.api.clear_requests();
    let own = world.service.address().to_owned();
    let form = Form::new("x", &[("folder", &world.folder)], &[]);
    let upload = [&form.before[..], b"DATA", &form.after].concat();
    let credentials = json!({"email": EMAIL, "password": PASSWORD}).to_string();
    let folder = json!({"folder": world.folder}).to_string();
    let json = "application/json";
    let requests: [(&str, &str, &[u8]); 4] = [
        ("/login", json, credentials.as_bytes()),
        ("/unlock", json, credentials.as_bytes()),
        ("/load/m.bin", json, folder.as_bytes()),
        ("/upload/other.bin", &form.content_type, &upload),
    ];
    let strangers: [&[(&str, &str)]; 6] = [
        &[("Origin", "http://evil.example")],
        &[("Origin", "null")],
        &[("Sec-Fetch-Site", "cross-site")],
        &[("Sec-Fetch-Site", "same-site"), ("Origin", "http://other.localhost")],
        // DNS rebinding: the name resolves to this machine after the page was loaded from elsewhere.
        &[("Origin", "http://evil.example"), ("Host", "evil.example")],
        &[("Origin", "http://evil.example"), ("Host", "evil.example"), ("Sec-Fetch-Site", "same-origin")],
    ];
    let send = |path: &str, content_type: &str, headers: &[(&str, &str)], body: &[u8]| {
        let headers = [&[("Host", own.as_str()), ("Content-Type", content_type)], headers].concat();
        raw::request(world.service.connect(), "POST", path, &headers, body).unwrap()
    };
    for (path, content_type, body) in requests {
        for headers in strangers {
            let reply = send(path, content_type, headers, body);
            assert_eq!(reply.status, 403, "{path} {headers:?}: {}", reply.text());
            assert!(
                reply.detail().contains("ALLOWED_HOSTS") || reply.detail().contains("another site"),
                "{}",
                reply.text()
            );
        }
    }
    assert!(world.api.requests().is_empty(), "{:?}", world.api.requests());
    assert_eq!(world.service.get("/unlock/status").json()["state"], "idle");
    assert!(!world.keys().iter().any(|key| key.starts_with("other")));

    // The service's own page may send these, programs may under any name, and anybody may send a GET.
    let own_origin = format!("http://{own}");
    let friends: [&[(&str, &str)]; 3] = [
        &[("Origin", &own_origin), ("Sec-Fetch-Site", "same-origin")],
        &[("Origin", &own_origin)],
        &[("Host", "box17.fleet.example.com")],
    ];
    for headers in friends {
        for ((path, content_type, body), status) in requests.into_iter().zip([200, 404, 200, 200]) {
            let reply = send(path, content_type, headers, body);
            assert_eq!(reply.status, status, "{path} {headers:?}: {}", reply.text());
        }
    }
    let headers = [("Origin", "http://evil.example"), ("Sec-Fetch-Site", "cross-site")];
    let reply = world.service.call("GET", "/status", &headers, b"").unwrap();
    assert_eq!(reply.status, 200);
    // Without this header the browser does not let the page read the answer.
    assert_eq!(reply.header("access-control-allow-origin"), None);
}

/// The browser takes the page's requests for same-origin ones; over plain HTTP only `Host` gives them away.
#[test]
fn a_page_reads_nothing_by_dns_rebinding() {
    let private = ["/status", "/unlock/status", "/metrics"];
    let public = ["/", "/docs", "/openapi.json", "/health"];
    let status = |service: &Service, path: &str, host: &str| {
        let reply = raw::request(service.connect(), "GET", path, &[("Host", host)], b"").unwrap();
        assert!(reply.status == 200 || reply.detail().contains("ALLOWED_HOSTS"), "{}", reply.text());
        reply.status
    };
    let service = Service::builder().start();
    for path in private {
        for host in ["evil.example:8080", "evil.example", "box.local", "loader"] {
            assert_eq!(status(&service, path, host), 403, "{path} {host}");
        }
        for host in ["127.0.0.1:8080", "localhost", "[::1]:8080"] {
            assert_eq!(status(&service, path, host), 200, "{path} {host}");
        }
    }
    for path in public {
        assert_eq!(status(&service, path, "evil.example"), 200, "{path}");
    }
    let service = Service::builder().env("ALLOWED_HOSTS", "box17.example.com,loader").start();
    for (host, expected) in [("box17.example.com:8080", 200), ("loader", 200), ("evil.example", 403)] {
        assert_eq!(status(&service, "/status", host), expected, "{host}");
    }
    let service = Service::builder().unix().start();
    assert_eq!(status(&service, "/status", "any.example"), 200);
}

#[test]
fn a_client_token_makes_any_host_name_acceptable() {
    let service = Service::builder().env("CLIENT_TOKEN", "open-sesame").start();
    let headers = [("Origin", "http://box.example"), ("Host", "box.example"), ("Content-Type", "application/json")];
    let call = |more: &[(&str, &str)]| {
        raw::request(service.connect(), "POST", "/login", &[&headers, more].concat(), b"{}").unwrap().status
    };
    assert_eq!((call(&[]), call(&[("Authorization", "Bearer open-sesame")])), (401, 422));
}
