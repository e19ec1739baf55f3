//! Every row of the specification's table of endpoints, over HTTP, errors included.

use serde_json::json;

use crate::world::World;
use crate::world::raw::Reply;
use crate::world::resource_api::{EMAIL, Fault, PASSWORD, ResourceApi};
use crate::world::service::Service;

pub(super) fn detail_of(reply: &Reply, status: u16) -> String {
    assert_eq!(reply.status, status, "{}", reply.text());
    assert_eq!(reply.header("content-type"), Some("application/json"));
    let json = reply.json();
    let object = json.as_object().unwrap();
    assert_eq!(object.keys().collect::<Vec<_>>(), ["detail"]);
    let detail = object["detail"].as_str().unwrap().to_owned();
    assert!(!detail.is_empty());
    detail
}

/// A loader whose Resource API is there, with nobody logged in.
pub(super) fn alone() -> (Service, ResourceApi) {
    let api = ResourceApi::start();
    (Service::builder().api(&api).start(), api)
}

#[test]
fn health_is_healthy() {
    let (service, _api) = alone();
    let reply = service.get("/health");
    assert_eq!((reply.status, reply.json()), (200, json!({"status": "healthy"})));
}

#[test]
fn status_shows_who_is_logged_in_and_what_is_cached() {
    let world = World::new();
    let status = || {
        let mut status = world.service.get("/status").json();
        let uptime = status.as_object_mut().unwrap().remove("uptimeSeconds").unwrap();
        assert!(uptime.as_u64().is_some_and(|seconds| seconds < 3600), "{uptime}");
        for model in status["cache"]["models"].as_array_mut().unwrap() {
            let last_used = model.as_object_mut().unwrap().remove("lastUsed").unwrap();
            assert!(last_used.as_u64().is_some_and(|seconds| seconds > 1_700_000_000), "{last_used}");
        }
        status
    };
    let cached = |name: &str, size: usize| {
        let bytes = big_length(size);
        json!({"folder": world.folder, "name": name, "bytes": bytes, "plainBytes": size, "kept": false})
    };
    let expected = |user: serde_json::Value, models: &[serde_json::Value]| {
        let bytes: u64 = models.iter().map(|model| model["bytes"].as_u64().unwrap()).sum();
        json!({
            "status": "healthy", "authenticated": !user.is_null(),
            "modelCacheDir": world.service.cache_dir().to_str().unwrap(),
            "version": env!("CARGO_PKG_VERSION"), "user": user,
            "cache": {"bytes": bytes, "files": models.len(), "models": models},
        })
    };
    let user = json!({"email": EMAIL, "role": "Operator"});
    assert_eq!(status(), expected(user.clone(), &[]));
    world.upload("b.bin", &[1; 50_000]);
    world.upload("a.bin", &[1; 20_000]);
    let both = [cached("a.bin", 20_000), cached("b.bin", 50_000)];
    assert_eq!(status(), expected(user.clone(), &both));
    // After a restart the service finds what is in its cache.
    world.service.restart();
    assert_eq!(status(), expected(json!(null), &both));
    world.login();
    // The next load notices a file that somebody has deleted or replaced.
    world.forget("a.bin");
    for key in world.keys().iter().filter(|key| key.starts_with("a.bin")) {
        world.s3.delete(&world.folder, key);
    }
    assert_eq!(world.service.load(&world.folder, "a.bin").status, 500);
    assert_eq!(status(), expected(user.clone(), &both[1..]));
    world.forget("b.bin");
    world.loads("b.bin", &[1; 50_000]);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while status() != expected(user.clone(), &both[1..]) {
        assert!(std::time::Instant::now() < deadline, "{}", status());
    }
    // A file that has rotted is repaired.
    let file = world.cached("b.bin");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[100] ^= 1;
    let times = std::fs::FileTimes::new().set_modified(std::fs::metadata(&file).unwrap().modified().unwrap());
    std::fs::write(&file, bytes).unwrap();
    std::fs::File::options().write(true).open(&file).unwrap().set_times(times).unwrap();
    world.loads("b.bin", &[1; 50_000]);
    assert_eq!(status(), expected(user, &both[1..]));
}

#[test]
fn a_mistyped_model_name_is_named_in_the_error() {
    let world = World::new();
    let missing = crate::world::resource_api::Fault::Status(404, String::new());
    world.api.fault("/resources/get/", missing, None);
    let reply = world.service.load(&world.folder, "modle.bin");
    assert_eq!(reply.status, 500);
    assert!(reply.detail().contains("no model of this name in this folder; check both"), "{}", reply.detail());
}

/// Length of the big part of a model.
fn big_length(size: usize) -> usize {
    let encrypted = 16 + (size / 16 + 1) * 16;
    encrypted - 3072.min(encrypted * 3 / 10)
}

#[test]
fn the_cache_directory_is_models_by_default() {
    let service = Service::builder().env("MODEL_CACHE_DIR", "models").start();
    assert_eq!(service.get("/status").json()["modelCacheDir"], "models");
}

#[test]
fn unknown_paths_are_404_and_wrong_methods_405_with_allow() {
    let (service, _api) = alone();
    for path in ["/nope", "//", "/health/", "/load", "/load/a/b", "/unlock/status/x"] {
        let reply = service.get(path);
        assert_eq!((reply.status, reply.json()), (404, json!({"detail": "Not Found"})), "{path}");
    }
    for (method, path, allow) in [
        ("POST", "/health", "GET, HEAD, OPTIONS"),
        ("DELETE", "/status", "GET, HEAD, OPTIONS"),
        ("PUT", "/unlock/status", "GET, HEAD, OPTIONS"),
        ("GET", "/login", "POST, OPTIONS"),
        ("GET", "/load/m", "POST, OPTIONS"),
        ("PUT", "/upload/m", "POST, OPTIONS"),
        ("PATCH", "/unlock", "POST, OPTIONS"),
    ] {
        let reply = service.call(method, path, &[], b"").unwrap();
        detail_of(&reply, 405);
        assert_eq!(reply.header("allow"), Some(allow), "{method} {path}");
    }
}

#[test]
fn head_works_where_get_does() {
    let (service, _api) = alone();
    for path in ["/", "/docs", "/openapi.json", "/health", "/status", "/unlock/status"] {
        let (get, head) = (service.get(path), service.call("HEAD", path, &[], b"").unwrap());
        assert_eq!((head.status, head.body.len()), (200, 0), "{path}");
        assert_eq!(head.header("content-length"), get.header("content-length"), "{path}");
    }
}

#[test]
fn json_bodies_are_checked_before_anything_is_done() {
    let (service, api) = alone();
    let json = [("Content-Type", "application/json")];
    for (path, body, expected) in [
        ("/login", "", "not valid JSON"),
        ("/login", "{", "not valid JSON"),
        ("/login", "[]", "must be a JSON object"),
        ("/login", "{}", "email is missing"),
        ("/login", r#"{"email":"a"}"#, "password is missing"),
        ("/login", r#"{"email":"a","password":{"x":"hunter2"}}"#, "password must be a text"),
        ("/login", r#"{"email":null,"password":"hunter2"}"#, "email is missing"),
        ("/login", r#"{"email":"a","password":"hunter2","password":"hunter3"}"#, "appears twice"),
        ("/unlock", r#"{"password":"hunter2"}"#, "email is missing"),
        ("/load/m", r#"{"filename":7}"#, "filename must be a text"),
        ("/load/m", r#"{"folder":["models"]}"#, "must be a text"),
        ("/load/m", "\u{feff}{}", "not valid JSON"),
        ("/load/m", &"[".repeat(60_000), "not valid JSON"),
    ] {
        let detail = detail_of(&service.call("POST", path, &json, body.as_bytes()).unwrap(), 422);
        assert!(detail.contains(expected), "{path} {body:.60}: {detail}");
        assert!(!detail.contains("hunter"), "{detail}");
    }
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""] {
        let reply = service.call("POST", "/login", &[("Content-Type", content_type)], b"{}").unwrap();
        assert!(detail_of(&reply, 422).contains("Content-Type: application/json"), "{content_type}");
    }
    let reply = service.call("POST", "/login", &json, format!("{{\"email\":\"{}\"}}", "a".repeat(65_536)).as_bytes());
    detail_of(&reply.unwrap(), 413);
    assert!(api.requests().is_empty());
}

#[test]
fn unknown_json_fields_are_ignored() {
    let world = World::new();
    let body = json!({"email": EMAIL, "password": PASSWORD, "remember": true});
    assert_eq!(world.service.post_json("/login", body).status, 200);
}

#[test]
fn load_takes_the_name_of_the_body_and_else_of_the_path() {
    let world = World::new();
    world.upload("m one.bin", b"model one");
    let load = |path: &str, body| world.service.post_json(path, body);
    let folder = &world.folder;
    let reply = load("/load/anything", json!({"filename": "m one.bin", "folder": folder}));
    assert_eq!((reply.status, &reply.body[..]), (200, &b"model one"[..]));
    let reply = load("/load/m%20one.bin", json!({"folder": folder, "extra": {}}));
    assert_eq!((reply.status, &reply.body[..]), (200, &b"model one"[..]));
    let reply = load("/load/m%20one.bin", json!({"filename": null, "folder": folder}));
    assert_eq!((reply.status, &reply.body[..]), (200, &b"model one"[..]));
    // The default folder is `models`, where this model is not.
    assert!(detail_of(&load("/load/m%20one.bin", json!({})), 500).contains("small part"));
    assert!(world.api.requests().iter().any(|request| request.path == "/resources/get/models"));
}

#[test]
fn names_that_are_no_names_are_422_and_touch_nothing() {
    let world = World::new();
    world.api.clear_requests();
    let long = "n".repeat(201);
    for name in ["", ".", "..", "../x", "a/b", "a\\b", "a\u{0}b", "a\nb", "\u{1b}[2J", &long] {
        let reply = world.service.post_json("/load/x", json!({"filename": name, "folder": world.folder}));
        assert!(detail_of(&reply, 422).contains("filename must be"), "{name:?}");
    }
    for folder in ["", "..", "ab", "Models", "a/b", "a_b", "models/../x", "10.0.0.1", &"f".repeat(64)] {
        let reply = world.service.post_json("/load/x", json!({"filename": "x", "folder": folder}));
        assert!(detail_of(&reply, 422).contains("folder must be"), "{folder:?}");
        assert!(detail_of(&world.service.upload(folder, "x", b"x"), 422).contains("folder must be"), "{folder:?}");
    }
    for path in ["/load/..%2F..%2Fetc%2Fpasswd", "/load/%2e%2e", "/load/a%00b", "/load/%5c", "/load/"] {
        let reply = world.service.post_json(path, json!({"folder": world.folder}));
        assert!(detail_of(&reply, 422).contains("filename must be"), "{path}");
    }
    detail_of(&world.service.post_json("/load/%ff", json!({})), 422);
    detail_of(
        &world
            .service
            .call("POST", "/upload/..%2Fx", &[("Content-Type", "multipart/form-data; boundary=x")], b"")
            .unwrap(),
        422,
    );
    assert!(world.api.requests().is_empty(), "{:?}", world.api.requests());
    assert!(world.keys().is_empty());
}

#[test]
fn load_failures_are_500_with_their_reason() {
    let world = World::new();
    let detail = detail_of(&world.service.load(&world.folder, "missing.bin"), 500);
    assert!(detail.contains("the Resource API refused"), "{detail}");
    world.upload("m.bin", &[7; 100]);
    world.forget("m.bin");
    for key in world.keys() {
        world.s3.delete(&world.folder, &key);
    }
    let detail = detail_of(&world.service.load(&world.folder, "m.bin"), 500);
    assert!(detail.contains("the CDN has no object"), "{detail}");
}

#[test]
fn upload_failures_are_500_and_leave_the_previous_version() {
    let world = World::new();
    world.upload("m.bin", b"version 1");
    let store = format!("/resources/{}", world.folder);
    world.api.fault(&store, Fault::Status(400, String::new()), None);
    let detail = detail_of(&world.service.upload(&world.folder, "m.bin", b"version 2"), 500);
    assert!(detail.contains("the previous version remains"), "{detail}");
    world.api.clear_faults();
    world.loads("m.bin", b"version 1");
    let detail = detail_of(&world.service.upload("no-such-bucket-here", "m.bin", b"x"), 500);
    assert!(detail.contains("no-such-bucket-here"), "{detail}");
}

#[test]
fn upload_beyond_the_limit_is_413() {
    let world = World::with(|builder| builder.env("MAX_UPLOAD_BYTES", "1000"));
    world.upload("just.bin", &[1; 1000]);
    assert!(detail_of(&world.service.upload(&world.folder, "over.bin", &[1; 1001]), 413).contains("1000"));
    // The declared length is enough to refuse it.
    assert!(detail_of(&world.service.upload(&world.folder, "over.bin", &vec![1; 10_000_000]), 413).contains("1000"));
    assert!(!world.keys().iter().any(|key| key.starts_with("over")));
    world.loads("just.bin", &[1; 1000]);
}

fn form(service: &Service, name: &str, boundary: &str, body: &[u8]) -> Reply {
    service.call("POST", &format!("/upload/{name}"), &[("Content-Type", boundary)], body).unwrap()
}

#[test]
fn upload_takes_its_fields_in_either_order() {
    let world = World::new();
    let folder = &world.folder;
    let data = "--b\r\nContent-Disposition: form-data; name=\"data\"; filename=\"x\"\r\n\r\nDATA\r\n";
    let folder = format!("--b\r\nContent-Disposition: form-data; name=folder\r\n\r\n{folder}\r\n");
    let other = "--b\r\nContent-Disposition: form-data; name=token\r\n\r\nignored\r\n";
    for (name, body, content_type) in [
        ("1", format!("{folder}{data}--b--\r\n"), "multipart/form-data; boundary=b"),
        ("2", format!("{data}{folder}--b--"), "multipart/form-data; boundary=\"b\""),
        ("3", format!("{other}{data}{other}{folder}--b--trailing"), "Multipart/Form-Data; charset=utf-8; Boundary=b"),
    ] {
        let reply = form(&world.service, name, content_type, body.as_bytes());
        assert_eq!((reply.status, reply.json()), (200, json!({"status": "ok"})), "{name}");
        world.loads(name, b"DATA");
    }
}

#[test]
fn upload_goes_to_the_folder_models_by_default() {
    let (service, api) = alone();
    api.put_file("", "cdn.yaml", "host: http://127.0.0.1:1\ndownloader_access_key: a\ndownloader_access_secret: b\nuploader_access_key: c\nuploader_access_secret: d\n");
    assert_eq!(service.login().status, 200);
    let body = b"--b\r\nContent-Disposition: form-data; name=data; filename=x\r\n\r\nDATA\r\n--b--\r\n";
    let detail = detail_of(&form(&service, "m", "multipart/form-data; boundary=b", body), 500);
    // No CDN runs here. The service only tries to reach it once it has read the folder.
    assert!(detail.contains("is unreachable"), "{detail}");
}

#[test]
fn malformed_forms_are_422_with_the_reason() {
    let world = World::new();
    let data = "--b\r\nContent-Disposition: form-data; name=data; filename=x\r\n\r\nDATA\r\n";
    for (content_type, body, expected) in [
        ("application/json", "{}".to_owned(), "multipart/form-data"),
        ("multipart/form-data", data.to_owned(), "boundary"),
        ("multipart/form-data; boundary=b", String::new(), "ends before its last boundary"),
        ("multipart/form-data; boundary=b", "no form".into(), "ends before its last boundary"),
        ("multipart/form-data; boundary=b", data.into(), "boundary"),
        ("multipart/form-data; boundary=c", format!("{data}--b--"), "ends before its last boundary"),
        ("multipart/form-data; boundary=b", format!("{data}{data}--b--"), "two fields named data"),
        ("multipart/form-data; boundary=b", "--b\r\nX\r\n\r\nDATA\r\n--b--".into(), "without a colon"),
        ("multipart/form-data; boundary=b", "--b--".into(), "no file field named data"),
    ] {
        let detail = detail_of(&form(&world.service, "m", content_type, body.as_bytes()), 422);
        assert!(detail.contains(expected), "{content_type} {body:?}: {detail}");
    }
    assert!(world.keys().is_empty());
    assert_eq!(world.service.spooled(), 0);
}

#[test]
fn unlock_without_an_archive_is_404() {
    let (service, _api) = alone();
    let reply = service.post_json("/unlock", json!({"email": EMAIL, "password": PASSWORD}));
    assert_eq!((reply.status, reply.json()), (404, json!({"detail": "Encrypted archive not found"})));
    let expected = json!({"state": "idle", "error": null, "progress": {"done": 0, "total": 0}});
    assert_eq!(service.get("/unlock/status").json(), expected);
}
