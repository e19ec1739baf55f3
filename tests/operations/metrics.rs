//! `GET /metrics`.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::world::resource_api::{EMAIL, Fault};
use crate::world::service::Service;
use crate::world::{World, process, skip};

/// The value of a sample in the document.
fn sample(document: &str, name: &str) -> f64 {
    let line = document.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in\n{document}")).parse().unwrap()
}

fn metrics(service: &Service) -> String {
    let reply = service.get("/metrics");
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    reply.text()
}

#[test]
fn metrics_count_what_happened() {
    let world = World::new();
    let before = metrics(&world.service);
    assert_eq!(sample(&before, "loader_authenticated"), 1.0);
    assert_eq!(sample(&before, "loader_cache_files"), 0.0);
    let model = vec![7; 200_000];
    world.upload("m.bin", &model);
    world.loads("m.bin", &model);
    world.forget("m.bin");
    world.api.fault("/resources/get", Fault::Status(500, String::new()), Some(1));
    world.loads("m.bin", &model);
    assert_eq!(world.service.login_as(EMAIL, "wrong-horse").status, 401);
    assert_eq!(world.service.get("/no/such/path?x").status, 404);
    assert_eq!(world.service.get("/load/m.bin").status, 405);

    // Requests are counted, and downloads get their names in the cache, a moment after the client has its answer.
    let late = [r#"loader_http_requests_total{endpoint="/login",status="401"} 1"#, "loader_cache_files 1"];
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !late.iter().all(|line| metrics(&world.service).contains(line)) && std::time::Instant::now() < deadline {}
    let now = metrics(&world.service);
    for (name, expected) in [
        (r#"loader_http_requests_total{endpoint="/load/{filename}",status="200"}"#, 2.0),
        (r#"loader_http_requests_total{endpoint="/load/{filename}",status="405"}"#, 1.0),
        (r#"loader_http_requests_total{endpoint="/upload/{filename}",status="200"}"#, 1.0),
        (r#"loader_http_requests_total{endpoint="/login",status="401"}"#, 1.0),
        (r#"loader_http_requests_total{endpoint="other",status="404"}"#, 1.0),
        (r#"loader_http_request_duration_seconds_count{endpoint="/load/{filename}"}"#, 3.0),
        (r#"loader_http_request_duration_seconds_bucket{endpoint="/login",le="+Inf"}"#, 2.0),
        (r#"loader_transfer_bytes_total{stage="send"}"#, 400_000.0),
        (r#"loader_cache_lookups_total{result="hit"}"#, 1.0),
        (r#"loader_cache_lookups_total{result="miss"}"#, 1.0),
        ("loader_uplink_retries_total", 1.0),
        ("loader_logins_refused_total", 1.0),
        ("loader_ready", 1.0),
        ("loader_queue_full_total", 0.0),
        ("loader_handler_threads", 4.0),
        ("loader_cache_files", 1.0),
        (r#"loader_unlock_state{state="idle"}"#, 1.0),
        (r#"loader_unlock_state{state="ready"}"#, 0.0),
        (&format!(r#"loader_build_info{{version="{}"}}"#, env!("CARGO_PKG_VERSION")), 1.0),
    ] {
        assert_eq!(sample(&now, name), expected, "{name}\n{now}");
    }
    // The model, and what is stored with it.
    for (name, least) in [
        (r#"loader_transfer_bytes_total{stage="receive"}"#, 200_000.0),
        (r#"loader_transfer_bytes_total{stage="publish"}"#, 190_000.0),
        (r#"loader_transfer_bytes_total{stage="download"}"#, 190_000.0),
        (r#"loader_transfer_bytes_total{stage="api"}"#, 3000.0),
        (r#"loader_transfer_seconds_total{stage="api"}"#, 0.000_001),
        ("loader_cache_bytes", 190_000.0),
        ("loader_uptime_seconds", 0.001),
        ("process_resident_memory_bytes", 1e6),
    ] {
        assert!(sample(&now, name) >= least, "{name}\n{now}");
    }
    // The model counts once: neither the form around it nor the retry counts.
    assert!(sample(&now, r#"loader_transfer_bytes_total{stage="receive"}"#) < 210_000.0);
    assert!(!now.contains("operator") && !now.contains("m.bin"), "labels contain what clients sent:\n{now}");
}

#[test]
fn metrics_are_answered_while_handlers_are_busy_and_show_the_full_queue() {
    let world = World::with(|builder| builder.env("HANDLER_THREADS", "2"));
    world.api.fault("/login", Fault::Delay(Duration::from_secs(2)), None);
    let service = &world.service;
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| assert!(matches!(service.login().status, 200 | 503)));
        }
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            let now = metrics(service);
            assert_eq!(sample(&now, "loader_handler_threads"), 2.0);
            if sample(&now, "loader_handler_threads_busy") == 2.0 && sample(&now, "loader_queue_full_total") > 0.0 {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{now}");
        }
        world.api.clear_faults();
    });
    let refused = sample(&metrics(service), r#"loader_http_requests_total{endpoint="/login",status="503"}"#);
    assert_eq!(refused, sample(&metrics(service), "loader_queue_full_total"));
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while sample(&metrics(service), "loader_handler_threads_busy") > 0.0 {
        assert!(std::time::Instant::now() < deadline);
    }
}

#[test]
fn promtool_finds_nothing_to_say_about_the_metrics() {
    if Command::new("promtool").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        return skip("promtool check metrics", "promtool is not installed; Debian's prometheus has it");
    }
    let world = World::new();
    world.upload("m.bin", b"model");
    world.loads("m.bin", b"model");
    let document = metrics(&world.service);
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]);
    let output = process::run_to_end(command, &[], document.as_bytes(), Duration::from_secs(60));
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}\n{document}", String::from_utf8_lossy(&said));
}

#[test]
fn metrics_need_the_client_token() {
    let service = Service::builder().env("CLIENT_TOKEN", "open-sesame").start();
    assert_eq!(service.get("/metrics").status, 401);
    let reply = service.call("GET", "/metrics", &[("Authorization", "Bearer open-sesame")], b"").unwrap();
    assert_eq!(reply.status, 200);
    assert!(reply.text().contains(r#"status="401"} 1"#));
}
