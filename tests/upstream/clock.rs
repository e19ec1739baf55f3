//! A box whose clock has no battery starts in 1970, and no certificate is valid then.

use std::fs;
use std::time::Duration;

use serde_json::json;

use crate::world::eventually;
use crate::world::resource_api::{EMAIL, PASSWORD, ResourceApi};
use crate::world::s3::S3;
use crate::world::service::Service;
use crate::world::tls::Authority;
use crate::world::wall_clock::WallClock;

const IN_1970: &str = "the clock is wrong (1970-01-01), TLS certificates cannot be checked until it is set";

/// Only a hang takes longer: each of the two logins waits for a random time of up to 28 s.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn a_box_that_starts_in_1970_says_so_and_logs_in_when_its_clock_is_set() {
    let test = "a_box_that_starts_in_1970_says_so_and_logs_in_when_its_clock_is_set";
    let Some(clock) = WallClock::at(test, 10) else { return };
    let (authority, api, s3) = (Authority::new(), ResourceApi::start(), S3::start());
    let front = authority.front(&format!("127.0.0.1:{}", api.port()));
    api.put_file("", "cdn.yaml", s3.cdn_yaml());
    let directory = tempfile::tempdir().unwrap();
    let (pem, credentials) = (directory.path().join("ca.pem"), directory.path().join("login.json"));
    fs::write(&pem, &authority.pem).unwrap();
    fs::write(&credentials, json!({ "email": EMAIL, "password": PASSWORD }).to_string()).unwrap();
    let builder = Service::builder().env("RESOURCE_API_URL", &front.url).env("CA_CERT_PATH", &pem);
    let service = clock.of(builder.env("CREDENTIALS_PATH", &credentials)).start();
    assert!(service.log_text().contains("time=1970-01-01"), "{}", service.log_text());

    // Whoever logs in is told, and so is whoever waits for `/ready`.
    let reply = service.login();
    assert_eq!(reply.status, 401);
    assert!(reply.detail().ends_with(IN_1970), "{}", reply.detail());
    eventually(PATIENCE, "the login in the background is tried", || service.get("/ready").text().contains(IN_1970));
    assert_eq!((service.get("/ready").status, api.requests().len()), (503, 0));
    clock.set_right();
    eventually(PATIENCE, "the box is ready", || service.get("/ready").status == 200);
    assert_eq!(service.login().status, 200);
}

/// A system may start at the time at which it was built, which is before the certificates of today.
#[test]
fn a_certificate_that_is_not_valid_yet_tells_a_wrong_clock() {
    const FEBRUARY_3_2026: i64 = 1_770_091_506;
    let test = "a_certificate_that_is_not_valid_yet_tells_a_wrong_clock";
    let Some(clock) = WallClock::at(test, FEBRUARY_3_2026) else { return };
    let (authority, api) = (Authority::new(), ResourceApi::start());
    let front = authority.front_from(&format!("127.0.0.1:{}", api.port()), (2026, 3, 1));
    let directory = tempfile::tempdir().unwrap();
    let pem = directory.path().join("ca.pem");
    fs::write(&pem, &authority.pem).unwrap();
    let builder = Service::builder().env("RESOURCE_API_URL", &front.url).env("CA_CERT_PATH", &pem);
    let service = clock.of(builder).start();
    let detail = service.login().detail();
    assert!(detail.ends_with(&IN_1970.replace("1970-01-01", "2026-02-03")), "{detail}");
    clock.set_right();
    let detail = service.login().detail();
    assert!(detail.starts_with("logged in, but the CDN configuration cannot be read"), "{detail}");
}
