//! How the loader renews its login, and what it does when the Resource API fails.

use std::thread;
use std::time::{Duration, Instant};

use crate::world::World;
use crate::world::resource_api::{EMAIL, Fault, PASSWORD, ResourceApi};
use crate::world::service::Service;

#[test]
fn a_token_that_is_about_to_expire_is_renewed_before_its_use() {
    let world = World::new();
    world.upload("m.bin", b"model");
    world.api.set_token_lifetime(Duration::from_secs(59));
    world.login();
    world.api.clear_requests();
    world.api.set_token_lifetime(Duration::from_secs(3600));
    world.loads("m.bin", b"model");
    assert_eq!(world.api.count("/login"), 1);
    world.loads("m.bin", b"model");
    assert_eq!(world.api.count("/login"), 1);
}

#[test]
fn a_refused_token_is_renewed_once_and_the_call_repeated() {
    let world = World::new();
    world.upload("m.bin", b"model");
    world.api.clear_requests();
    world.api.revoke_tokens();
    world.loads("m.bin", b"model");
    assert_eq!((world.api.count("/login"), world.api.count("/resources/get")), (1, 2));
    for status in [401, 403] {
        world.api.clear_requests();
        world.api.fault("/resources/get", Fault::Status(status, String::new()), None);
        let detail = world.service.load(&world.folder, "m.bin").detail();
        assert!(detail.contains("does not accept this account's token"), "{detail}");
        assert_eq!((world.api.count("/login"), world.api.count("/resources/get")), (1, 2), "once, not for ever");
        world.api.clear_faults();
    }
}

#[test]
fn concurrent_calls_share_one_renewal() {
    let world = World::with(|builder| builder.env("HANDLER_THREADS", "8"));
    world.upload("m.bin", b"model");
    world.api.clear_requests();
    world.api.revoke_tokens();
    world.api.fault("/login", Fault::Delay(Duration::from_millis(300)), None);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| world.loads("m.bin", b"model"));
        }
    });
    assert_eq!(world.api.count("/login"), 1);
}

#[test]
fn calls_that_are_safe_to_repeat_are_repeated() {
    let world = World::new();
    world.upload("m.bin", b"model");
    for fault in [
        Fault::Reset,
        Fault::Truncate,
        Fault::Garbage,
        Fault::Status(500, String::new()),
        Fault::Status(503, String::new()),
    ] {
        world.api.fault("/resources/get", fault.clone(), Some(2));
        world.api.clear_requests();
        world.loads("m.bin", b"model");
        assert_eq!(world.api.count("/resources/get"), 3, "{fault:?}");
        world.api.fault("/resources/get", fault.clone(), None);
        assert_eq!(world.service.load(&world.folder, "m.bin").status, 500, "{fault:?}");
        world.api.clear_faults();
    }
}

#[test]
fn retry_after_is_honoured() {
    let world = World::new();
    world.upload("m.bin", b"model");
    world.api.fault("/resources/get", Fault::StatusWithRetryAfter(429, 2), Some(1));
    let started = Instant::now();
    world.loads("m.bin", b"model");
    assert!(started.elapsed() >= Duration::from_secs(2), "{:?}", started.elapsed());
}

#[test]
fn redirects_are_not_followed_with_credentials() {
    let elsewhere = ResourceApi::start();
    let world = World::new();
    for path in ["/login", "/resources/get"] {
        world.api.fault(path, Fault::Redirect(elsewhere.url()), None);
    }
    assert!(world.service.login().detail().contains("302"));
    assert_eq!(world.service.load(&world.folder, "m").status, 500);
    assert!(elsewhere.requests().is_empty());
}

#[test]
fn tokens_are_verified_where_a_key_is_given() {
    let (api, pem) = ResourceApi::start_signed();
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("key.pem");
    std::fs::write(&key, pem).unwrap();
    api.put_file("", "cdn.yaml", "host: http://127.0.0.1:1\ndownloader_access_key: a\ndownloader_access_secret: b\nuploader_access_key: c\nuploader_access_secret: d\n");
    let service = Service::builder().api(&api).env("JWT_PUBLIC_KEY_PATH", &key).start();
    assert_eq!(service.login().status, 200);
    let forged = ResourceApi::start();
    let service = Service::builder().api(&forged).env("JWT_PUBLIC_KEY_PATH", &key).start();
    let reply = service.login();
    assert_eq!(reply.status, 401);
    assert!(reply.detail().contains("does not verify"), "{}", reply.detail());
}

#[test]
fn the_token_names_the_user_and_role_in_the_log() {
    let world = World::new();
    assert!(world.service.log_text().contains(&format!("logged in as {EMAIL} (role Operator")));
    assert!(!world.service.log_text().contains(PASSWORD));
}

#[test]
fn no_level_of_logging_shows_a_secret() {
    let world = World::with(|builder| builder.env("LOG_LEVEL", "trace").env("API_KEY_SALT", "dev-api-key-salt"));
    world.upload("m.bin", &[5; 5000]);
    world.forget("m.bin");
    world.loads("m.bin", &[5; 5000]);
    world.service.login_as(EMAIL, "another-password");
    world.service.load(&world.folder, "missing");
    let log = world.service.log_text();
    let bearer = world.api.requests().iter().find_map(|request| {
        request
            .headers
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case("authorization"))
            .map(|(_, value)| value["Bearer ".len()..].to_owned())
    });
    let (downloader, uploader) = (world.s3.downloader().secret.clone(), world.s3.uploader().secret.clone());
    for secret in [
        PASSWORD,
        "another-password",
        "dev-api-key-salt",
        &bearer.unwrap(),
        &downloader,
        &uploader,
        "AWS4-HMAC",
        "Signature=",
    ] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
    assert!(log.contains("POST"), "{log}");
}
