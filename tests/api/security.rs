//! Those who should not get in, and what must not get out.

use std::fs;
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::world::multipart::Form;
use crate::world::raw::{self, Reply};
use crate::world::resource_api::{self, EMAIL, PASSWORD, ResourceApi};
use crate::world::s3::S3;
use crate::world::s3_fault;
use crate::world::service::Service;
use crate::world::{World, hex, protocol};

fn has(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// All files below a directory, and all directories.
fn tree(path: &Path, found: &mut Vec<std::path::PathBuf>) {
    found.push(path.to_owned());
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        tree(&entry.path(), found);
    }
}

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
        // A name that was pointed at this machine after the page had come from elsewhere.
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

    // The service's own page may, programs may under any name, and what is only looked at is for everybody to ask.
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
    // Without this header a browser keeps the answer from the page.
    assert_eq!(reply.header("access-control-allow-origin"), None);
}

/// Its requests are of the same origin, so over http nothing but `Host` tells them from a program's.
#[test]
fn a_page_whose_name_was_pointed_here_reads_nothing() {
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
fn a_client_token_is_stronger_than_a_name() {
    let service = Service::builder().env("CLIENT_TOKEN", "open-sesame").start();
    let headers = [("Origin", "http://box.example"), ("Host", "box.example"), ("Content-Type", "application/json")];
    let call = |more: &[(&str, &str)]| {
        raw::request(service.connect(), "POST", "/login", &[&headers, more].concat(), b"{}").unwrap().status
    };
    assert_eq!((call(&[]), call(&[("Authorization", "Bearer open-sesame")])), (401, 422));
}

#[test]
fn a_refused_upload_is_not_asked_for_its_body() {
    let service = Service::builder().env("CLIENT_TOKEN", "open-sesame").start();
    let token = "Authorization: Bearer open-sesame\r\n";
    for (headers, status) in [
        ("Content-Type: multipart/form-data; boundary=b\r\n".to_owned(), "401"),
        (format!("{token}Origin: http://evil.example\r\n"), "403"),
        (format!("{token}Content-Type: text/plain\r\n"), "422"),
        (format!("{token}Content-Type: multipart/form-data; boundary=b\r\nTransfer-Encoding: gzip\r\n"), "400"),
    ] {
        let length = if headers.contains("gzip") { "" } else { "Content-Length: 1000000\r\n" };
        let mut stream = service.connect();
        stream.set_timeout(Duration::from_secs(10)).unwrap();
        write!(stream, "POST /upload/m HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n{length}{headers}\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
}

#[test]
fn json_bombs_are_refused() {
    let service = Service::builder().start();
    let deep = "[".repeat(30_000);
    let json = [("Content-Type", "application/json")];
    let closed = "]".repeat(30_000);
    for (body, status) in [
        (format!(r#"{{"email":"a","password":"b","x":{deep}"#), 422),
        (format!(r#"{{"email":{deep}{closed},"password":"b"}}"#), 422),
        (format!("{}1{}", r#"{"a":"#.repeat(9_000), "}".repeat(9_000)), 422),
        // A field that nobody asked for is skipped, however deep it is: this login fails for want of an API.
        (format!(r#"{{"email":"a","password":"b","x":{deep}{closed}}}"#), 401),
    ] {
        let reply = service.call("POST", "/login", &json, body.as_bytes()).unwrap();
        assert_eq!(reply.status, status, "{}", reply.text());
    }
    // Too large, with its length and without; one byte less is read and judged.
    let body = |size: usize| format!(r#"{{"email":"{}"}}"#, "a".repeat(size - 12));
    for (size, status) in [(65_537, 413), (65_536, 422)] {
        assert_eq!(service.call("POST", "/login", &json, body(size).as_bytes()).unwrap().status, status);
        let mut reader = BufReader::new(service.connect());
        let stream = reader.get_mut();
        write!(stream, "POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n").unwrap();
        write!(stream, "Transfer-Encoding: chunked\r\n\r\n{size:x}\r\n{}\r\n0\r\n\r\n", body(size)).unwrap();
        assert_eq!(raw::read_reply(&mut reader, "POST").unwrap().status, status);
    }
    assert!(service.is_running());
}

/// A name that passed its check goes to the Resource API, the CDN and the disk as it is, and means nothing there.
#[test]
fn names_inject_nothing_anywhere() {
    let world = World::new();
    let names = [
        "a\"; filename=\"b",
        "a'; name=folder",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "%0d%0aX-Injected: 1",
        "a?versionId=1&b#c",
        "a+b c",
        "..hidden..",
        "модель;=,",
        "{\"a\":1}",
        "-rf *",
    ];
    for name in names {
        world.upload(name, name.as_bytes());
        world.loads(name, name.as_bytes());
        world.forget(name);
        world.loads(name, name.as_bytes());
        assert!(world.api.file(&world.folder, &format!("{name}.small")).is_some(), "{name}");
        assert!(world.keys().contains(&format!("{name}.big")), "{name}: {:?}", world.keys());
        // It gets its name when the load has been answered.
        let deadline = Instant::now() + Duration::from_secs(5);
        while !world.service.cache_file(&world.folder, name).is_file() {
            assert!(Instant::now() < deadline, "{name}");
            thread::sleep(Duration::from_millis(5));
        }
    }
    let expected: Vec<_> = names.iter().map(|name| format!("{name}.small")).collect();
    let stored = world.api.files().into_iter().filter(|(folder, _)| !folder.is_empty());
    for (folder, name) in stored {
        assert!(folder == world.folder && expected.contains(&name), "{folder}/{name}");
    }
    assert!(!world.api.requests().iter().any(|request| request.headers.iter().any(|(name, _)| name == "X-Injected")));

    // What would end a header line, or leave the folder, is no name; encoded twice it is text, as above.
    let known = (world.api.files(), world.keys());
    for path in ["a%0d%0aX:%201", "a%0a", "%00", "..%2f..%2fetc%2fpasswd", "%2e%2e", "..%5c", "a%2fb", "%c0%ae%c0%ae"] {
        let form = Form::new("x", &[("folder", &world.folder)], &[]);
        let body = [&form.before[..], b"DATA", &form.after].concat();
        let headers = [("Content-Type", form.content_type.as_str())];
        let reply = world.service.call("POST", &format!("/upload/{path}"), &headers, &body).unwrap();
        assert_eq!(reply.status, 422, "{path}: {}", reply.text());
        let reply = world.service.post_json(&format!("/load/{path}"), json!({"folder": world.folder}));
        assert_eq!(reply.status, 422, "{path}: {}", reply.text());
        assert!(!reply.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("x")), "{path}");
    }
    assert_eq!((world.api.files(), world.keys()), known);
    // A path is not tidied up either: `..` is no way to another endpoint.
    for path in ["/load/../status", "/load/%2e%2e/status", "//status", "/./status", "/status/../../etc/passwd"] {
        let reply = raw::request(world.service.connect(), "GET", path, &[], b"").unwrap();
        assert_eq!(reply.status, 404, "{path}");
    }
    // The log quotes what it was sent: one line stays one.
    assert!(!world.service.log_text().lines().any(|line| line.starts_with('X')));
}

/// A `docker` command that takes everything, and keeps its environment.
fn docker_stub(directory: &Path) {
    let stub = directory.join("docker");
    let script = format!(
        "#!/bin/sh\nenv > {}/environment\ncase $1 in\n  load) cat > /dev/null;;\n  image) echo sha256:0123;;\n  *) echo 20.10;;\nesac\n",
        directory.display()
    );
    fs::write(&stub, script).unwrap();
    fs::set_permissions(&stub, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A loader whose every secret is known, and all that it has answered.
struct Guarded {
    api: ResourceApi,
    s3: S3,
    folder: String,
    service: Service,
    outside: tempfile::TempDir,
    answers: Vec<u8>,
}

impl Guarded {
    const TOKEN: &str = "client-token-3f9a61";
    const FRAGMENT: &str = "the key fragment 5b2e8f";
    const SALTS: [(&str, &str); 3] = [
        // What the reference API computes with.
        ("HARDWARE_SALT", "dev-hardware-salt"),
        ("API_KEY_SALT", "dev-api-key-salt"),
        ("RESOURCE_KEY_SALT", "resource-salt-90d2ab"),
    ];

    fn new() -> Self {
        let (api, s3, outside) = (ResourceApi::start(), S3::start(), tempfile::tempdir().unwrap());
        api.set_key_fragment(Self::FRAGMENT.as_bytes());
        api.put_file("", "cdn.yaml", s3.cdn_yaml());
        docker_stub(outside.path());
        let path = format!("{}:{}", outside.path().display(), std::env::var("PATH").unwrap());
        let mut builder = Service::builder().api(&api).env("LOG_LEVEL", "trace").env("PATH", path);
        for (name, value) in Self::SALTS.into_iter().chain([("CLIENT_TOKEN", Self::TOKEN)]) {
            builder = builder.env(name, value);
        }
        Self { folder: s3.new_bucket("models"), service: builder.start(), api, s3, outside, answers: Vec::new() }
    }

    fn call(&mut self, method: &str, path: &str, token: &str, content_type: &str, body: &[u8]) -> Reply {
        let bearer = format!("Bearer {token}");
        let headers = [("Authorization", bearer.as_str()), ("Content-Type", content_type)];
        let reply = raw::request(self.service.connect(), method, path, &headers, body).unwrap();
        for (name, value) in &reply.headers {
            self.answers.extend_from_slice(format!("{name}: {value}\n").as_bytes());
        }
        // A model that was loaded is what was asked for.
        if reply.header("content-type") == Some("application/json") {
            self.answers.extend_from_slice(&reply.body);
        }
        reply
    }

    fn post(&mut self, path: &str, body: &serde_json::Value) -> Reply {
        self.call("POST", path, Self::TOKEN, "application/json", body.to_string().as_bytes())
    }

    fn upload(&mut self, name: &str, bytes: &[u8]) -> u16 {
        let form = Form::new(name, &[("folder", &self.folder)], &[]);
        let body = [&form.before[..], bytes, &form.after].concat();
        self.call("POST", &format!("/upload/{name}"), Self::TOKEN, &form.content_type, &body).status
    }

    fn unlock(&mut self, password: &str) -> String {
        let credentials = json!({"email": EMAIL, "password": password});
        assert_eq!(self.post("/unlock", &credentials).status, 200);
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let status = self.call("GET", "/unlock/status", Self::TOKEN, "", b"").json();
            let state = status["state"].as_str().unwrap().to_owned();
            if matches!(state.as_str(), "ready" | "error") {
                return state;
            }
            assert!(Instant::now() < deadline, "{status}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// An archive of nothing but a manifest.
    fn archive(&self) {
        let mut tar = tar::Builder::new(Vec::new());
        let manifest = br#"[{"Config":"c.json","RepoTags":["app:1"],"Layers":[]}]"#;
        let mut header = tar::Header::new_gnu();
        header.set_size(manifest.len() as u64);
        header.set_cksum();
        tar.append_data(&mut header, "manifest.json", &manifest[..]).unwrap();
        let encrypted = protocol::encrypt(&tar.into_inner().unwrap(), Self::FRAGMENT.as_bytes());
        fs::write(self.service.images_path(), encrypted).unwrap();
    }
}

#[test]
fn no_secret_is_in_any_log_answer_or_file() {
    const WRONG: &str = "wrong-password-77c1d0";
    const MARKER: &str = "the plaintext of a model c41f77";
    let mut guarded = Guarded::new();
    let load = json!({"folder": guarded.folder, "filename": "m.bin"});
    let credentials = |password: &str| json!({"email": EMAIL, "password": password});

    // Everything that can fail, and then works.
    for token in ["wrong-token-11", "client-token-3f9a6", ""] {
        assert_eq!(guarded.call("POST", "/login", token, "application/json", b"{}").status, 401);
    }
    assert_eq!(guarded.post("/login", &credentials(WRONG)).status, 401);
    for body in [
        json!({"password": WRONG}),
        json!({"email": 1, "password": WRONG}),
        json!({"email": EMAIL, "password": [WRONG]}),
    ] {
        assert_eq!(guarded.post("/login", &body).status, 422);
    }
    let broken = format!("{{\"email\":\"{EMAIL}\",\"password\":\"{PASSWORD}\"");
    assert_eq!(guarded.call("POST", "/login", Guarded::TOKEN, "application/json", broken.as_bytes()).status, 422);
    let echo = format!(r#"{{"ErrorCode":9,"Message":"no {PASSWORD}"}}"#);
    for (path, fault) in [
        ("/login", resource_api::Fault::Status(409, echo.clone())),
        ("/login", resource_api::Fault::Status(500, echo.clone())),
        ("/login", resource_api::Fault::Garbage),
        ("/login", resource_api::Fault::Redirect("http://127.0.0.1:9/".into())),
        ("/resources/get", resource_api::Fault::Status(409, echo)),
    ] {
        guarded.api.fault(path, fault, None);
        assert_eq!(guarded.post("/login", &credentials(PASSWORD)).status, 401, "{path}");
        guarded.api.clear_faults();
    }
    let wrong_keys = guarded.s3.cdn_yaml().replace("secret-0123456789", "secret-9876543210");
    for (yaml, status) in [(wrong_keys.clone(), 200), (format!("- {wrong_keys}"), 401), (guarded.s3.cdn_yaml(), 200)] {
        guarded.api.put_file("", "cdn.yaml", yaml);
        assert_eq!(guarded.post("/login", &credentials(PASSWORD)).status, status);
        if status == 200 {
            guarded.upload("m.bin", MARKER.repeat(1000).as_bytes());
        }
    }
    assert_eq!(guarded.post("/load/m.bin", &load).body, MARKER.repeat(1000).as_bytes());
    guarded.api.revoke_tokens();
    fs::remove_file(guarded.service.cache_file(&guarded.folder, "m.bin")).unwrap();
    assert_eq!(guarded.post("/load/m.bin", &load).status, 200);
    assert_eq!(guarded.post("/load/m.bin", &json!({"folder": guarded.folder, "filename": "missing"})).status, 500);
    guarded.archive();
    assert_eq!(guarded.unlock(WRONG), "error");
    guarded.api.set_key_fragment(b"another fragment 6d");
    assert_eq!(guarded.unlock(PASSWORD), "error");
    guarded.api.set_key_fragment(Guarded::FRAGMENT.as_bytes());
    assert_eq!(guarded.unlock(PASSWORD), "ready");
    let _ = guarded.service.run(&["fingerprint"]);

    let mut secrets: Vec<Vec<u8>> = [PASSWORD, WRONG, Guarded::TOKEN, Guarded::FRAGMENT, "another fragment 6d", MARKER]
        .into_iter()
        .chain(["secret-0123456789", "secret-9876543210", "downloader-key", "uploader-key"])
        .chain(Guarded::SALTS.map(|(_, value)| value))
        .map(|text| text.as_bytes().to_vec())
        .collect();
    let tokens: Vec<_> = guarded.api.requests().iter().flat_map(|request| request.headers.clone()).collect();
    let tokens = tokens.iter().filter_map(|(_, value)| Some(value.strip_prefix("Bearer ")?.as_bytes().to_vec()));
    secrets.extend(tokens);
    let hardware = String::from_utf8(guarded.service.run(&["fingerprint"]).stdout).unwrap();
    let salts = protocol::Salts { resource_key: Guarded::SALTS[2].1.to_owned(), ..protocol::Salts::default() };
    let api_key = protocol::api_key(EMAIL, PASSWORD, hardware.trim(), &salts);
    let hardware_hash = protocol::hardware_hash(hardware.trim(), "dev-hardware-salt");
    for key in [api_key, hardware_hash, protocol::resource_key(&salts)] {
        secrets.extend([protocol::aes_key(key.as_bytes()).to_vec(), key.into_bytes()]);
    }
    secrets.push(protocol::aes_key(Guarded::FRAGMENT.as_bytes()).to_vec());
    assert!(secrets.len() > 20, "{}", secrets.len());

    let mut places = vec![
        ("an answer".to_owned(), std::mem::take(&mut guarded.answers)),
        ("the output".to_owned(), guarded.service.log_text().into_bytes()),
        ("docker's environment".to_owned(), fs::read(guarded.outside.path().join("environment")).unwrap()),
    ];
    let mut files = Vec::new();
    tree(guarded.service.dir(), &mut files);
    let files = files.into_iter().filter(|path| path.is_file());
    places.extend(files.map(|path| (path.display().to_string(), fs::read(&path).unwrap())));
    assert!(places.len() >= 6, "{:?}", places.iter().map(|(name, _)| name).collect::<Vec<_>>());
    assert!(has(&places[1].1, b"/unlock/status"), "the log is that of LOG_LEVEL=trace");
    for (place, bytes) in &places {
        for secret in &secrets {
            for form in [secret.clone(), hex(secret).into_bytes(), base64(secret)] {
                let shown = String::from_utf8_lossy(&form);
                assert!(!has(bytes, &form), "{shown} is in {place}");
            }
        }
    }
}

/// Without padding, and so that the last bits do not depend on what follows.
fn base64(bytes: &[u8]) -> Vec<u8> {
    use jwt_simple::reexports::ct_codecs::{Base64NoPadding, Encoder};
    Base64NoPadding::encode_to_string(&bytes[..bytes.len() / 3 * 3]).unwrap().into_bytes()
}

#[test]
fn only_the_services_user_can_read_what_it_writes() {
    let (world, proxy) = World::behind_proxy();
    world.upload("whole.bin", &crate::world::pattern(100_000, 1));
    world.upload("part.bin", &crate::world::pattern(3_000_000, 2));
    world.forget("part.bin");
    // A download that stays half way, and an upload that is being received.
    proxy.fault("GET", "part.bin", s3_fault::Fault::HangAt(1_500_000), None);
    let body = json!({"folder": world.folder}).to_string();
    let mut load = world.service.connect();
    write!(load, "POST /load/part.bin HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n").unwrap();
    write!(load, "Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut upload = world.service.connect();
    write!(upload, "POST /upload/m HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n").unwrap();
    write!(upload, "Content-Length: 1000000\r\n\r\n--b\r\nContent-Disposition: form-data; name=data\r\n\r\nDATA")
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let names = loop {
        let mut files = Vec::new();
        tree(&world.service.cache_dir(), &mut files);
        tree(&world.service.log_dir(), &mut files);
        let names: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
        let all = [".part", ".spool/", "whole.bin.big", ".json", ".log"];
        if all.iter().all(|part| names.iter().any(|name| name.contains(part))) {
            break files;
        }
        assert!(Instant::now() < deadline, "{names:?}");
        thread::sleep(Duration::from_millis(20));
    };
    for path in names {
        // It may have been renamed meanwhile.
        let Ok(metadata) = fs::metadata(&path) else { continue };
        let expected = if metadata.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(metadata.permissions().mode() & 0o777, expected, "{}", path.display());
    }

    let mut guarded = Guarded::new();
    guarded.archive();
    assert_eq!(guarded.unlock(PASSWORD), "ready");
    let record = fs::metadata(guarded.service.cache_dir().join(".unlock.json")).unwrap();
    assert_eq!(record.permissions().mode() & 0o777, 0o600);
}
