//! What requests look like on the wire, and which proxies they use.

use std::io::{BufReader, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use loader::cdn_manager::{CdnConfig, CdnManager};
use loader::http_client::{HttpClient, Payload};
use loader::names::ModelName;
use loader::security::SmallHash;

use crate::world::connect_proxy::ConnectProxy;
use crate::world::protocol::{self, Salts};
use crate::world::raw::Head;
use crate::world::resource_api::{Fault as ApiFault, ResourceApi};
use crate::world::s3::S3;
use crate::world::s3_fault::{Fault, Purpose};
use crate::world::service::Service;
use crate::world::tcp::TcpServer;
use crate::world::tls::Authority;
use crate::world::{World, pattern};

const MIB: usize = 1 << 20;

/// An upload by a program without generations and manifests.
fn old_upload(world: &World, name: &str, bytes: &[u8]) {
    let (small, big) = protocol::split(bytes, &Salts::default());
    world.api.put_file(&world.folder, &format!("{name}.small"), small);
    world.s3.put(&world.folder, &format!("{name}.big"), &big, &[]);
}

/// Suffix ranges fail on some servers, and nginx's `slice` asks with ranges of its own under the box's signature.
#[test]
fn ranges_are_explicit_and_neither_they_nor_preconditions_are_signed() {
    let (world, proxy) = World::behind_proxy();
    let bytes = pattern(20 * MIB, 1);
    world.upload("m.bin", &bytes);
    old_upload(&world, "old.bin", &bytes);
    proxy.fault_on(Purpose::Whole, ".big", Fault::CutResponseAt(MIB as u64), Some(2));
    for name in ["m.bin", "old.bin"] {
        world.forget(name);
        world.loads(name, &bytes);
        world.forget(name);
        let path = format!("/load/{name}?folder={}", world.folder);
        let reply = world.service.call("POST", &path, &[("Range", "bytes=9000000-9000009")], b"").unwrap();
        assert!(reply.status == 206 && reply.body == bytes[9_000_000..9_000_010], "{name}: {}", reply.status);
    }
    let requests = proxy.requests();
    let ranges: Vec<_> = requests.iter().filter_map(|request| request.range.clone()).collect();
    assert!(ranges.len() > 2, "{ranges:?}");
    for range in ranges {
        let (from, to) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')).expect("a byte range");
        assert!(from.parse::<u64>().is_ok() && to.parse::<u64>().is_ok(), "{range}");
    }
    let mut preconditions = 0;
    for request in &requests {
        let header = |wanted: &str| request.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        preconditions += usize::from(header("if-match").is_some());
        let (_, authorization) = header("authorization").expect("each request is signed");
        let signed = authorization.split("SignedHeaders=").nth(1).unwrap().split(',').next().unwrap();
        assert!(signed.split(';').all(|name| name != "range" && name != "if-match"), "{signed}");
        let (_, host) = header("host").unwrap();
        assert_eq!(format!("http://{host}"), proxy.url());
    }
    assert!(preconditions > 0, "an old upload is read in one version");
}

/// A compressing proxy or a CDN may make the tag of an object weak, and `If-Match` never matches a weak tag.
#[test]
fn weak_entity_tags_are_compared_and_not_sent() {
    let (world, proxy) = World::behind_proxy();
    let bytes = pattern(3 * MIB, 1);
    old_upload(&world, "old.bin", &bytes);
    proxy.fault("", "old.bin.big", Fault::WeakTag, None);
    world.loads("old.bin", &bytes);
    // A tag that becomes weak between `HEAD` and `GET` is still of the same version.
    world.forget("old.bin");
    proxy.clear_faults();
    proxy.fault("GET", "old.bin.big", Fault::WeakTag, None);
    world.loads("old.bin", &bytes);
}

#[test]
fn an_empty_object_has_no_range_and_is_refused_with_a_reason() {
    let world = World::new();
    world.api.put_file(&world.folder, "m.bin.small", protocol::split(b"model", &Salts::default()).0);
    world.s3.put(&world.folder, "m.bin.big", b"", &[]);
    let detail = world.service.load(&world.folder, "m.bin").detail();
    assert!(!detail.contains("was replaced"), "{detail}");
    assert!(detail.contains("decrypt"), "{detail}");
}

#[test]
fn a_wrong_clock_is_corrected_once() {
    let (world, proxy) = World::behind_proxy();
    for hours in [-30_i64, 5] {
        let bytes = pattern(400_000, hours.unsigned_abs());
        proxy.fault("", "", Fault::ClockAhead(hours * 3600), None);
        proxy.clear_requests();
        world.upload("m.bin", &bytes);
        world.forget("m.bin");
        world.loads("m.bin", &bytes);
        let refused = proxy.requests().iter().filter(|request| request.status == Some(403)).count();
        assert_eq!(refused, 1, "the correction is remembered");
        proxy.clear_faults();
    }
    assert!(world.service.log_text().contains("signed with the CDN's time"));
}

#[test]
fn proxies_of_the_environment_are_used_except_for_no_proxy() {
    let proxy = ConnectProxy::start();
    let authority = Authority::new();
    let (api, s3) = (ResourceApi::start(), S3::start());
    let cdn_front = authority.front(s3.host_port());
    api.put_file("", "cdn.yaml", s3.cdn_yaml_at(&cdn_front.url));
    let folder = s3.new_bucket("models");
    let pem = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(pem.path(), &authority.pem).unwrap();
    let service = |no_proxy: &str| {
        let builder = Service::builder().api(&api).env("CA_CERT_PATH", pem.path());
        builder.env("HTTPS_PROXY", proxy.url()).env("NO_PROXY", no_proxy).start()
    };
    let bytes = pattern(MIB, 1);
    let uses = |service: &Service| {
        let before = proxy.asked().len();
        assert_eq!(service.login().status, 200);
        assert_eq!(service.upload(&folder, "m.bin", &bytes).status, 200);
        let mut asked = proxy.asked().split_off(before);
        asked.sort();
        asked.dedup();
        asked
    };
    let api_host = format!("127.0.0.1:{}", api.port());
    let cdn_host = cdn_front.url.trim_start_matches("https://").to_owned();
    assert_eq!(uses(&service("")), [api_host.clone(), cdn_host.clone()]);
    assert_eq!(uses(&service("example.com, 127.0.0.1")), [cdn_host]);
    assert_eq!(uses(&service("localhost")), [api_host]);
    assert!(uses(&service("*")).is_empty());
    let through = service("");
    proxy.down();
    let detail = through.login().detail();
    assert!(detail.contains("through the proxy 127.0.0.1:") && detail.contains("is unreachable"), "{detail}");
}

#[test]
fn an_invalid_proxy_stops_the_start() {
    for value in ["http://", "ftp://user:hush@proxy:3128", "socks5://proxy:1080"] {
        let output = Service::builder().env("HTTPS_PROXY", value).run(&[], b"");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{value}: {said}");
        assert!(
            said.contains("HTTPS_PROXY is not the address of a proxy") && !said.contains("hush"),
            "{value}: {said}"
        );
    }
}

#[test]
fn rotated_cdn_keys_need_no_new_login() {
    let s3 = S3::start();
    let right = s3.cdn_yaml();
    let wrong = right.replace(&s3.downloader().secret, "old-secret-d").replace(&s3.uploader().secret, "old-secret-u");
    let world = World::at(s3, &wrong, |builder| builder);
    let bytes = pattern(400_000, 1);
    // While the new keys are wrong, each call reads the configuration once more and fails.
    world.api.clear_requests();
    let detail = world.service.upload(&world.folder, "m.bin", &bytes).detail();
    assert!(detail.contains("the CDN refused access"), "{detail}");
    assert_eq!(world.api.count("/resources/get/"), 1);

    world.api.put_file("", "cdn.yaml", right);
    world.upload("m.bin", &bytes);
    world.forget("m.bin");
    world.loads("m.bin", &bytes);
    assert_eq!(world.api.count("/login"), 0);
}

#[test]
fn a_missing_bucket_is_named_in_the_error() {
    let detail = World::new().service.upload("no-such-bucket", "m.bin", b"x").detail();
    assert!(detail.contains("the CDN has no bucket for object no-such-bucket/m.bin"), "{detail}");
}

#[test]
fn a_name_that_does_not_resolve_is_an_unreachable_server() {
    let service = Service::builder().env("RESOURCE_API_URL", "http://no-such-host.invalid").start();
    let detail = service.login().detail();
    assert!(detail.contains("http://no-such-host.invalid is unreachable"), "{detail}");
}

#[test]
fn a_cdn_without_tls_is_warned_about_off_loopback() {
    let api = ResourceApi::start();
    let s3 = S3::start();
    let warning = "the CDN is used without TLS";
    for (host, expected) in [(s3.endpoint().to_owned(), false), ("http://cdn.invalid:8333".to_owned(), true)] {
        api.put_file("", "cdn.yaml", s3.cdn_yaml_at(&host));
        let service = Service::builder().api(&api).start();
        assert_eq!(service.login().status, 200);
        assert_eq!(service.log_text().contains(warning), expected, "{host}");
    }
}

#[test]
fn a_redirect_is_refused_with_the_name_of_its_target() {
    let (world, proxy) = World::behind_proxy();
    world.upload("m.bin", b"model");
    world.forget("m.bin");
    proxy.fault("", "m.bin", Fault::Redirect("https://elsewhere.example/m?X-Amz-Signature=hush".into()), None);
    let detail = world.service.load(&world.folder, "m.bin").detail();
    assert!(detail.contains("a redirect to https://elsewhere.example/m,") && !detail.contains("hush"), "{detail}");
    world.api.fault("/login", ApiFault::Redirect("https://portal.example/".into()), None);
    let detail = world.service.login().detail();
    assert!(detail.contains("answered 302") && detail.contains("a redirect to https://portal.example/,"), "{detail}");
}

/// With an endless listing a hostile CDN could keep an upload busy for ever and fill its memory.
#[test]
fn an_endless_listing_is_abandoned() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let server = TcpServer::start(0, move |stream| {
        let mut reader = BufReader::new(&stream);
        while let Ok(Some(_)) = Head::read(&mut reader) {
            let page = count.fetch_add(1, Ordering::SeqCst);
            let contents: String = (0..100)
                .map(|n| {
                    format!(
                        "<Contents><Key>m.bin.{page:08x}{n:08x}.big</Key><LastModified>2026-01-01T00:00:00Z</LastModified>\
                         <Size>1</Size></Contents>"
                    )
                })
                .collect();
            let body = format!(
                "<ListBucketResult><Name>models</Name><Prefix></Prefix><IsTruncated>true</IsTruncated>\
                 <NextContinuationToken>{page}</NextContinuationToken>{contents}</ListBucketResult>"
            );
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            if (&stream).write_all(format!("{head}{body}").as_bytes()).is_err() {
                return;
            }
        }
    });
    let yaml = S3::at(&format!("http://{}", server.host_port()), keys(), keys()).cdn_yaml();
    let cdn = CdnManager::new(HttpClient::new(None).unwrap(), &CdnConfig::from_yaml(yaml.as_bytes()).unwrap());
    let error = cdn
        .prune(&ModelName::new("models", "m.bin").unwrap(), SmallHash::of(b"small"), SmallHash::of(b"new"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("the listing does not end"), "{error}");
    assert!(asked.load(Ordering::SeqCst) <= 100);
}

fn keys() -> crate::world::s3::Keys {
    crate::world::s3::Keys::new("key", "secret")
}

/// When an uplink goes away, all idle connections are as dead as the one in use: a retry on each of them would fail or wait for
/// the stall limit.
#[test]
fn a_retry_does_not_use_connections_that_were_idle_when_one_broke() {
    let outage = Arc::new(AtomicUsize::new(0));
    let outages = outage.clone();
    let server = TcpServer::start(0, move |stream| {
        let born = outages.load(Ordering::SeqCst);
        let mut reader = BufReader::new(&stream);
        while let Ok(Some(_)) = Head::read(&mut reader) {
            if outages.load(Ordering::SeqCst) != born {
                return;
            }
            thread::sleep(Duration::from_millis(200));
            let _ = (&stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let client = HttpClient::new(None).unwrap();
    let request = http::Request::get(format!("http://{}/", server.host_port())).body(()).unwrap();
    let fetch = || client.fetch(&request, Payload::None, 100).map(|answer| answer.status);
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| assert!(fetch().is_ok()));
        }
    });
    assert!(server.open_connections() >= 4, "{} connections are idle", server.open_connections());
    outage.fetch_add(1, Ordering::SeqCst);
    // The third try succeeds.
    fetch().unwrap();
}
