//! Who is logged in, and who may ask: `POST /login` and `CLIENT_TOKEN`.

use super::endpoints::{alone, detail_of};
use serde_json::json;

use crate::world::World;
use crate::world::resource_api::{EMAIL, Fault, PASSWORD, ResourceApi};
use crate::world::service::Service;

#[test]
fn login_proves_the_credentials() {
    let world = World::new();
    let reply = world.service.login();
    assert_eq!((reply.status, reply.json()), (200, json!({"status": "ok"})));
    assert_eq!(world.api.count("/login"), 2);
}

#[test]
fn login_distinguishes_its_failures_and_repeats_no_password() {
    let (service, api) = alone();
    let fails = |email: &str, password: &str| {
        let detail = detail_of(&service.login_as(email, password), 401);
        assert!(!detail.contains(password), "{detail}");
        detail
    };
    assert!(fails(EMAIL, "wrong-horse").contains("Passwords do not match"));
    assert!(fails("nobody@example.com", "wrong-horse").contains("No such email found. (error 30)"));
    // The account is right, but there is no CDN configuration.
    assert!(fails(EMAIL, PASSWORD).contains("logged in, but the CDN configuration cannot be read"));
    api.put_file("", "cdn.yaml", "host: [");
    assert!(fails(EMAIL, PASSWORD).contains("the CDN configuration is unusable"));
    api.put_file("", "cdn.yaml", "host: http://127.0.0.1:1\n");
    assert!(fails(EMAIL, PASSWORD).contains("missing field `downloader_access_key`"));
    api.fault("/login", Fault::Status(409, format!(r#"{{"ErrorCode":9,"Message":"bad {PASSWORD}"}}"#)), None);
    assert!(fails(EMAIL, PASSWORD).contains("bad *** (error 9)"));
    api.clear_faults();
    api.fault("/login", Fault::Status(200, r#"{"token":"not a token"}"#.into()), None);
    assert!(fails(EMAIL, PASSWORD).contains("the token is not a JWT"));
    api.down();
    assert!(fails(EMAIL, PASSWORD).contains("is unreachable"));
    assert_eq!(service.get("/status").json()["authenticated"], false);
}

#[test]
fn a_failed_login_leaves_the_credentials_that_worked_in_force() {
    let world = World::new();
    world.upload("m.bin", b"model");
    assert_eq!(world.service.login_as(EMAIL, "wrong-horse").status, 401);
    assert_eq!(world.service.get("/status").json()["authenticated"], true);
    world.loads("m.bin", b"model");
}

#[test]
fn the_cdn_configuration_may_be_a_file() {
    let s3 = crate::world::s3::S3::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cdn.yaml");
    std::fs::write(&path, s3.cdn_yaml()).unwrap();
    let api = ResourceApi::start();
    let service = Service::builder().api(&api).env("CDN_CONFIG_PATH", &path).start();
    assert_eq!(service.login().status, 200);
    assert_eq!(api.count("/resources/get"), 0);
    std::fs::write(&path, "nonsense").unwrap();
    assert!(detail_of(&service.login(), 401).contains("the CDN configuration is unusable"));
}

#[test]
fn load_and_upload_need_a_login_first() {
    let (service, _api) = alone();
    assert!(detail_of(&service.load("models", "m.bin"), 500).contains("log in first"));
    assert!(detail_of(&service.upload("models", "m.bin", b"x"), 500).contains("log in first"));
}

#[test]
fn a_client_token_is_asked_for_everywhere_but_at_health() {
    let service = Service::builder().env("CLIENT_TOKEN", "open-sesame").start();
    assert_eq!(service.get("/health").status, 200);
    for (method, path) in
        [("GET", "/status"), ("GET", "/unlock/status"), ("POST", "/login"), ("POST", "/load/m"), ("POST", "/unlock")]
    {
        for header in [
            None,
            Some("Bearer open-sesam"),
            Some("Bearer open-sesame2"),
            Some("Basic open-sesame"),
            Some("open-sesame"),
        ] {
            let headers: Vec<_> = header.map(|value| ("Authorization", value)).into_iter().collect();
            let reply = service.call(method, path, &headers, b"").unwrap();
            detail_of(&reply, 401);
            assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
        }
        let reply = service.call(method, path, &[("Authorization", "bearer open-sesame")], b"").unwrap();
        assert_ne!(reply.status, 401, "{method} {path}");
    }
    assert!(!service.log_text().contains("sesam"));
}
