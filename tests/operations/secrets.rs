//! No log, answer or file contains a secret, and only the service's user can read what it writes.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::world::multipart::Form;
use crate::world::process::write_program;
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

/// A `docker` command that reads everything, and records its environment.
fn docker_stub(directory: &Path) {
    let stub = directory.join("docker");
    let script = format!(
        "#!/bin/sh\nenv > {}/environment\ncase $1 in\n  load) cat > /dev/null;;\n  image) echo sha256:0123;;\n  *) echo 20.10;;\nesac\n",
        directory.display()
    );
    write_program(&stub, &script);
}

/// A loader whose every secret is known, and everything that it has answered.
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
        // The salts of the reference API.
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
        // A loaded model is what was asked for, so only other answers count.
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

    /// An archive with nothing but a manifest.
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

    // Everything that can fail, and then what succeeds.
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

/// Without padding, and cut so that the last bits do not depend on what follows.
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
    // A download that stays unfinished, and an upload that is being received.
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
