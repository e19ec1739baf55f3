//! A box that nobody visits logs in, unlocks and keeps its models current by itself.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::world::resource_api::{EMAIL, Fault, PASSWORD, ResourceApi};
use crate::world::s3_fault::Fault as S3Fault;
use crate::world::service::{Service, ServiceBuilder};
use crate::world::{World, pattern};

const SIZE: usize = 3 << 20;

/// Only a hang takes longer: the login comes within 28 s of the start.
const PATIENCE: Duration = Duration::from_secs(120);

struct CredentialsFile(tempfile::TempDir);

impl CredentialsFile {
    fn new(password: &str) -> Self {
        let file = Self(tempfile::tempdir().unwrap());
        file.write(password);
        file
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("login.json")
    }

    fn write(&self, password: &str) {
        fs::write(self.path(), json!({ "email": EMAIL, "password": password }).to_string()).unwrap();
    }
}

fn wait_until(what: &str, service: &Service, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: {}\n{}", service.get("/ready").text(), service.log_text());
        thread::sleep(Duration::from_millis(50));
    }
}

fn is_ready(service: &Service) -> bool {
    let reply = service.get("/ready");
    let body = reply.json();
    match reply.status {
        200 => assert_eq!(body, json!({ "ready": true })),
        503 => {
            let waiting = body["waiting"].as_array().unwrap();
            assert!(body["ready"] == json!(false) && !waiting.is_empty(), "{body}");
        }
        status => panic!("/ready answered {status}"),
    }
    reply.status == 200
}

fn waiting(service: &Service) -> String {
    service.get("/ready").json()["waiting"].to_string()
}

fn user(service: &Service) -> Value {
    service.get("/status").json()["user"]["email"].clone()
}

#[test]
fn models_in_keep_are_fetched_after_the_start_and_replaced_without_a_load_that_fails_or_waits() {
    let (world, proxy) = World::behind_proxy();
    let credentials = CredentialsFile::new(PASSWORD);
    world.upload("m.bin", &pattern(SIZE, 1));
    world.upload("n.bin", &pattern(SIZE, 10));
    world.api.down();
    let keep = format!("{0}/m.bin, {0}/n.bin", world.folder);
    let service = Service::builder()
        .api(&world.api)
        .env("CREDENTIALS_PATH", credentials.path())
        .env("KEEP", &keep)
        .env("KEEP_SECONDS", "2")
        .start();
    assert!(!is_ready(&service));
    let reasons = waiting(&service);
    let probe = |arguments: &[&str]| service.run(arguments);
    assert!(probe(&["healthcheck"]).status.success());
    let not_ready = probe(&["healthcheck", "--ready"]);
    let words = String::from_utf8_lossy(&not_ready.stderr);
    assert!(not_ready.status.code() == Some(1) && words.contains("m.bin is not at hand"), "{words}");
    assert!(reasons.contains("logged in") && reasons.contains("m.bin") && reasons.contains("n.bin"), "{reasons}");
    let log = service.log_text();
    assert!(!log.contains("path=/ready"), "those who wait fill the log: {log}");
    world.api.up();
    wait_until("ready after the start", &service, || is_ready(&service));
    assert_eq!(user(&service), EMAIL);
    assert!(probe(&["healthcheck", "--ready"]).status.success());
    proxy.clear_requests();
    for (name, version) in [("m.bin", 1), ("n.bin", 10)] {
        assert!(service.load(&world.folder, name).body == pattern(SIZE, version), "{name}");
    }
    assert_eq!(proxy.bytes_sent("GET", ".big"), 0, "the models were not at hand");

    // The new version takes its time, and nobody waits for it.
    proxy.fault("GET", ".big", S3Fault::Delay(Duration::from_secs(3)), Some(1));
    let (ended, old_ones) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let loads = scope.spawn(|| {
            while !ended.load(Ordering::SeqCst) {
                let reply = service.load(&world.folder, "m.bin");
                assert_eq!(reply.status, 200, "{}", reply.text());
                if reply.body == pattern(SIZE, 1) {
                    old_ones.fetch_add(1, Ordering::SeqCst);
                } else {
                    assert!(reply.body == pattern(SIZE, 2), "neither version was loaded");
                }
                thread::sleep(Duration::from_millis(20));
            }
        });
        world.upload("m.bin", &pattern(SIZE, 2));
        let at_the_commit = old_ones.load(Ordering::SeqCst);
        wait_until("the download of the new version", &service, || !proxy.awaits_a_request());
        let at_the_download = old_ones.load(Ordering::SeqCst);
        wait_until("the new version", &service, || service.load(&world.folder, "m.bin").body == pattern(SIZE, 2));
        assert!(is_ready(&service));
        ended.store(true, Ordering::SeqCst);
        loads.join().unwrap();
        // While the CDN hesitated, the old version was served again and again.
        let while_downloading = old_ones.load(Ordering::SeqCst) - at_the_download;
        assert!(while_downloading >= 3, "{while_downloading} loads in 3 s, {at_the_commit} before");
    });
}

#[test]
fn a_changed_password_needs_no_restart_and_a_persons_login_wins() {
    let api = ResourceApi::start();
    let world = World::new();
    api.put_file("", "cdn.yaml", world.s3.cdn_yaml());
    api.add_user("person@example.com", "typed", "Operator");
    let credentials = CredentialsFile::new("old-password-that-is-wrong");
    let start = |api: &ResourceApi| Service::builder().api(api).env("CREDENTIALS_PATH", credentials.path()).start();
    let (left_alone, visited) = (start(&api), start(&api));
    for service in [&left_alone, &visited] {
        wait_until("the refusal", service, || waiting(service).contains("login failed"));
        let log = service.log_text();
        assert!(log.contains("level=error") && log.contains("correct the credentials"), "{log}");
        assert!(!log.contains("old-password-that-is-wrong") && !waiting(service).contains("old-password"), "{log}");
    }
    assert_eq!(visited.login_as("person@example.com", "typed").status, 200);
    credentials.write(PASSWORD);
    wait_until("the login with the new password", &left_alone, || is_ready(&left_alone));
    assert_eq!(user(&left_alone), EMAIL);
    // The other service has checked the file for as long.
    thread::sleep(Duration::from_secs(11));
    assert_eq!(user(&visited), "person@example.com");
}

#[test]
fn a_file_of_credentials_that_cannot_be_used_is_named_and_read_again() {
    let world = World::new();
    let credentials = CredentialsFile::new(PASSWORD);
    fs::write(credentials.path(), r#"{"email":"operator@example.com","password":17,"hush":"hush"}"#).unwrap();
    let service = Service::builder().api(&world.api).env("CREDENTIALS_PATH", credentials.path()).start();
    wait_until("the complaint", &service, || waiting(&service).contains("CREDENTIALS_PATH"));
    assert!(!service.log_text().contains("hush"));
    credentials.write(PASSWORD);
    wait_until("the login", &service, || is_ready(&service));
}

/// The power of a site returns. Boxes that know nothing of each other can only choose their moments at random; in 3 of
/// 1,000 starts 21 of 200 choose the same second (a test in `background_login` shows it), and three such starts in a
/// row are no accident.
#[test]
fn two_hundred_boxes_that_start_at_once_log_in_one_after_the_other() {
    let mut fleets = (0..3).map(|_| busiest_21_logins_of_200_boxes());
    assert!(fleets.any(|busiest| busiest > Duration::from_secs(1)), "21 logins within a second, three times");
}

/// The shortest time in which 21 logins came.
fn busiest_21_logins_of_200_boxes() -> Duration {
    let world = World::new();
    let credentials = CredentialsFile::new(PASSWORD);
    world.api.clear_requests();
    let start = || {
        let builder: ServiceBuilder = Service::builder().api(&world.api);
        builder.env("CREDENTIALS_PATH", credentials.path()).env("LOG_DIR", "").start()
    };
    let services: Vec<Service> = (0..200).map(|_| start()).collect();
    let deadline = Instant::now() + PATIENCE;
    while world.api.count("/login") < services.len() {
        assert!(Instant::now() < deadline, "{} of {} logged in", world.api.count("/login"), services.len());
        thread::sleep(Duration::from_millis(100));
    }
    let mut times: Vec<Instant> =
        world.api.requests().iter().filter(|request| request.path == "/login").map(|request| request.at).collect();
    times.sort();
    times.windows(21).map(|logins| logins[20] - logins[0]).min().unwrap()
}

#[test]
fn an_api_that_refuses_many_is_not_asked_by_this_box_more_often_than_its_pauses_allow() {
    let world = World::new();
    let credentials = CredentialsFile::new(PASSWORD);
    world.api.clear_requests();
    world.api.fault("/login", Fault::Status(503, "busy".into()), None);
    let service = Service::builder().api(&world.api).env("CREDENTIALS_PATH", credentials.path()).start();
    wait_until("a failed login", &service, || waiting(&service).contains("503"));
    thread::sleep(Duration::from_secs(5));
    // Three tries each: at 0 s, then 0.5 to 1, 1 to 2, and 2 to 4 seconds later.
    let asked = world.api.count("/login");
    assert!(asked <= 15, "{asked} requests");
    world.api.clear_faults();
    wait_until("the login", &service, || is_ready(&service));
}
