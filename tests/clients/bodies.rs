//! Bodies: their framing and length, `100 Continue`, and transfers that break off.

use std::io::{BufReader, Read, Write};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::pieces::{FILE, UPLOAD};
use crate::world::raw::{self, Stream};
use crate::world::resource_api::ResourceApi;
use crate::world::s3::S3;
use crate::world::s3_fault::{Fault, Purpose};
use crate::world::service::Service;
use crate::world::{World, pattern};
use std::net::Shutdown;

#[test]
fn a_declared_length_costs_nothing() {
    let (service, _api) = (Service::builder().start(), ());
    service.get("/health");
    let (descriptors, rss) = (service.descriptors(), service.vm_rss_kib());
    for round in 0..1000 {
        let (path, extra) = [
            ("/login", "Content-Type: application/json\r\n"),
            ("/upload/m", "Content-Type: multipart/form-data; boundary=b\r\n"),
            ("/nope", ""),
            ("/health", ""),
        ][round % 4];
        let mut stream = service.connect();
        write!(stream, "POST {path} HTTP/1.1\r\nHost: x\r\n{extra}Content-Length: 1000000000000000\r\n\r\n").unwrap();
        let mut reader = BufReader::new(stream);
        let status = raw::read_reply(&mut reader, "POST").unwrap().status;
        assert!(matches!(status, 404 | 405 | 413 | 500 | 422), "{path}: {status}");
    }
    // A body that ends early must not be read as a request either.
    for _ in 0..20 {
        let mut stream = service.connect();
        write!(
            stream,
            "POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n{{"
        )
        .unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(raw::read_reply(&mut BufReader::new(stream), "POST").unwrap().status, 422);
    }
    assert!(service.is_running());
    let deadline = Instant::now() + Duration::from_secs(8);
    while service.descriptors() > descriptors + 2 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(50));
    }
    assert!(service.descriptors() <= descriptors + 2, "{} descriptors, {descriptors} before", service.descriptors());
    let grown = service.vm_rss_kib().saturating_sub(rss);
    assert!(grown < 24 * 1024, "{grown} KiB");
}

#[test]
fn requests_with_contradictory_framing_are_refused_and_their_connection_ends() {
    let service = Service::builder().start();
    for head in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: five\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 99999999999999999999999\r\n",
        "Transfer-Encoding: gzip\r\n",
    ] {
        let mut stream = service.connect();
        write!(stream, "POST /login HTTP/1.1\r\nHost: x\r\n{head}\r\nhelloGET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap();
        let mut reader = BufReader::new(stream);
        assert_eq!(raw::read_reply(&mut reader, "POST").unwrap().status, 400, "{head}");
        let mut rest = Vec::new();
        let _ = reader.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{head}: {}", String::from_utf8_lossy(&rest));
    }
    assert!(service.is_running());
}

#[test]
fn a_chunked_upload_works() {
    let world = World::new();
    let form = format!(
        "--b\r\nContent-Disposition: form-data; name=folder\r\n\r\n{}\r\n--b\r\nContent-Disposition: form-data; name=data; filename=x\r\n\r\n{}\r\n--b--\r\n",
        world.folder,
        "D".repeat(100_000)
    );
    let mut stream = world.service.connect();
    write!(stream, "POST /upload/m.bin HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    for chunk in form.as_bytes().chunks(7001) {
        write!(stream, "{:x}\r\n", chunk.len()).unwrap();
        stream.write_all(chunk).unwrap();
        stream.write_all(b"\r\n").unwrap();
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    let reply = raw::read_reply(&mut BufReader::new(stream), "POST").unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    world.loads("m.bin", "D".repeat(100_000).as_bytes());
}

#[test]
fn expect_100_continue_is_answered_when_the_body_is_wanted_and_only_then() {
    let world = World::with(|builder| builder.env("MAX_UPLOAD_BYTES", "200000"));
    let form = format!(
        "--b\r\nContent-Disposition: form-data; name=folder\r\n\r\n{}\r\n--b\r\nContent-Disposition: form-data; name=data; filename=x\r\n\r\nDATA\r\n--b--\r\n",
        world.folder
    );
    let head = |length: usize| {
        format!(
            "POST /upload/m.bin HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let mut reader = BufReader::new(world.service.connect());
    reader.get_mut().write_all(head(form.len()).as_bytes()).unwrap();
    let mut interim = [0; 25];
    reader.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    reader.get_mut().write_all(form.as_bytes()).unwrap();
    assert_eq!(raw::read_reply(&mut reader, "POST").unwrap().status, 200);

    let mut reader = BufReader::new(world.service.connect());
    reader.get_mut().write_all(head(10_000_000).as_bytes()).unwrap();
    let mut answer = String::new();
    reader.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

/// Loads `m.bin`, of `size` bytes, and expects the connection to end at once before all of them have come.
fn fails_half_way(mut stream: Stream, folder: &str, size: usize) {
    stream.set_timeout(Duration::from_secs(20)).unwrap();
    let body = format!(r#"{{"filename":"m.bin","folder":"{folder}"}}"#);
    write!(
        stream,
        "POST /load/m.bin HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let started = Instant::now();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    let head_end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    assert!(answer.starts_with(b"HTTP/1.1 200 ") && answer.len() - head_end < size);
}

/// Damages a byte of the second chunk, in the first download and in every repair.
fn damage_half_way(proxy: &crate::world::s3_proxy::S3Proxy) {
    use crate::world::s3_fault::{Fault, Purpose};
    proxy.fault_on(Purpose::Whole, ".big", Fault::CorruptByteAt(1_500_000), None);
    proxy.fault_on(Purpose::Rest, ".big", Fault::CorruptByteAt(100), None);
}

#[test]
fn a_load_that_fails_half_way_is_noticed_by_the_client_at_once() {
    let (world, proxy) = World::behind_proxy();
    let bytes = pattern(3_000_000, 1);
    world.upload("m.bin", &bytes);
    world.forget("m.bin");
    damage_half_way(&proxy);
    fails_half_way(world.service.connect(), &world.folder, bytes.len());
}

#[test]
fn a_load_that_fails_half_way_ends_the_connection_on_a_unix_socket_too() {
    let s3 = S3::start();
    let api = ResourceApi::start();
    let proxy = crate::world::s3_proxy::S3Proxy::before(&s3);
    api.put_file("", "cdn.yaml", s3.cdn_yaml_at(&proxy.url()));
    let folder = s3.new_bucket("models");
    let service = Service::builder().api(&api).unix().start();
    assert_eq!(service.login().status, 200);
    assert_eq!(service.upload(&folder, "m.bin", &pattern(3_000_000, 1)).status, 200);
    let big = service.cache_file(&folder, "m.bin");
    std::fs::remove_file(&big).unwrap();
    damage_half_way(&proxy);
    fails_half_way(Stream::connect(service.address()).unwrap(), &folder, 3_000_000);
    assert_eq!(service.get("/health").status, 200);
}

#[test]
fn http_1_0_clients_get_their_length_and_their_end() {
    let world = World::new();
    let bytes = pattern(200_000, 1);
    world.upload("m.bin", &bytes);
    let body = format!(r#"{{"filename":"m.bin","folder":"{}"}}"#, world.folder);
    let mut stream = world.service.connect();
    write!(
        stream,
        "POST /load/m.bin HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.ends_with(&bytes) && String::from_utf8_lossy(&answer[..400]).contains("Content-Length: 200000\r\n"));
}

fn chunked(body: &str, trailers: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for chunk in body.as_bytes().chunks(7001) {
        write!(bytes, "{:x};extension=1\r\n", chunk.len()).unwrap();
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    write!(bytes, "0\r\n{trailers}\r\n").unwrap();
    bytes
}

#[test]
fn chunked_uploads_work_with_trailers_and_end_at_the_limit() {
    let world = World::with(|builder| builder.env("MAX_UPLOAD_BYTES", "200000"));
    let form = |size: usize| {
        let field = format!("--b\r\nContent-Disposition: form-data; name=folder\r\n\r\n{}\r\n", world.folder);
        format!("{field}{}\r\n--b--\r\n", FILE.replace("DATA", &"D".repeat(size)))
    };
    let trailers = "X-Checksum: 1\r\nGET /status HTTP/1.1\r\n";
    for (size, trailers, status) in [(100_000, "", 200), (100_000, trailers, 200), (200_001, trailers, 413)] {
        let mut stream = world.service.connect();
        write!(stream, "{}Transfer-Encoding: chunked\r\n\r\n", UPLOAD.replace("stalled", "chunked")).unwrap();
        stream.write_all(&chunked(&form(size), trailers)).unwrap();
        let mut reader = BufReader::new(stream);
        let reply = raw::read_reply(&mut reader, "POST").unwrap();
        assert_eq!(reply.status, status, "{}", reply.text());
        // Trailers are not requests.
        let mut rest = Vec::new();
        let _ = reader.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    }
    world.loads("chunked.bin", &[b'D'; 100_000]);
}

/// What a person sees who runs the README's `curl` lines.
#[test]
fn curl_fails_at_once_when_a_transfer_breaks_off() {
    if Command::new("curl").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "curl is not installed");
        let _ = writeln!(std::io::stderr(), "SKIPPED: transfers that break off need curl");
        return;
    }
    let (world, proxy) = World::behind_proxy();
    world.upload("m.bin", &pattern(3_000_000, 1));
    let curl = |version: &str| {
        world.forget("m.bin");
        let started = Instant::now();
        let output = Command::new("curl")
            .args(["--silent", "--noproxy", "*", "--max-time", "60", version, "-H", "Content-Type: application/json"])
            .args(["-o", "/dev/null", "-w", "%{http_code} %{size_download}"])
            .args(["-d", &format!(r#"{{"folder":"{}"}}"#, world.folder), &world.service.url("/load/m.bin")])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code().unwrap(), said, started.elapsed())
    };
    for version in ["--http1.1", "--http1.0"] {
        proxy.clear_faults();
        assert_eq!((curl(version).0, curl(version).1.as_str()), (0, "200 3000000"));
        // Damages a byte of the second chunk, in the first download and in every repair.
        proxy.fault_on(Purpose::Whole, ".big", Fault::CorruptByteAt(1_500_000), None);
        proxy.fault_on(Purpose::Rest, ".big", Fault::CorruptByteAt(100), None);
        let (status, said, took) = curl(version);
        // 18: the transfer ended early; 56: it was reset.
        assert!(matches!(status, 18 | 56) && said.starts_with("200 "), "{status}: {said}");
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
}
