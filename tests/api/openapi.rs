//! `GET /openapi.json` and `GET /docs`: that what they say is what the service answers.

use serde_json::{Value, json};

use crate::world::raw::{Reply, exchange, read_reply};
use crate::world::resource_api::{EMAIL, Fault, PASSWORD, ResourceApi};
use crate::world::service::Service;
use crate::world::{World, eventually};

/// The document that the service serves.
struct Document(Value);

impl Document {
    fn of(service: &Service) -> Self {
        let reply = service.get("/openapi.json");
        assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
        Self(reply.json())
    }

    fn resolved<'a>(&'a self, value: &'a Value) -> &'a Value {
        value["$ref"].as_str().map_or(value, |to| self.0.pointer(&to[1..]).unwrap())
    }

    /// The answer to a call must be among those of its operation: status, type, headers and the form of a JSON body.
    fn has(&self, method: &str, path: &str, reply: &Reply) {
        let what = format!("{method} {path}: {}", reply.status);
        let response = self.resolved(&self.0["paths"][path][method]["responses"][reply.status.to_string()]);
        assert!(response["description"].is_string(), "{what} is not documented");
        let kind = reply.header("content-type").unwrap().split(';').next().unwrap();
        let content = &response["content"][kind];
        assert!(content.is_object(), "{what} is {kind}, which is not documented");
        for (name, header) in response["headers"].as_object().into_iter().flatten().filter(|_| path != "/login") {
            let value = reply.header(name).unwrap_or_else(|| panic!("{what} has no {name}"));
            self.fits(&header["schema"], &json!(value), &what);
        }
        if kind == "application/json" {
            self.fits(&content["schema"], &reply.json(), &what);
        }
        assert!(reply.header("x-request-id").is_some(), "{what}");
    }

    /// The part of JSON Schema that the document uses; any other keyword fails the test.
    fn fits(&self, schema: &Value, value: &Value, what: &str) {
        let schema = self.resolved(schema);
        for (word, rule) in schema.as_object().unwrap() {
            match word.as_str() {
                "const" => assert_eq!(value, rule, "{what}"),
                "enum" => assert!(rule.as_array().unwrap().contains(value), "{what}: {value}"),
                "type" => {
                    let kind = match value {
                        Value::Null => "null",
                        Value::Bool(_) => "boolean",
                        Value::Number(_) => "integer",
                        Value::String(_) => "string",
                        Value::Array(_) => "array",
                        Value::Object(_) => "object",
                    };
                    let allowed = rule.as_array().map_or_else(|| vec![rule.clone()], Clone::clone);
                    assert!(allowed.contains(&json!(kind)), "{what}: {value} is not {rule}");
                }
                "required" if value.is_object() => {
                    let missing =
                        rule.as_array().unwrap().iter().find(|name| value.get(name.as_str().unwrap()).is_none());
                    assert_eq!(missing, None, "{what}: {value}");
                }
                "properties" if value.is_object() => {
                    for (name, value) in value.as_object().unwrap() {
                        assert!(rule[name].is_object(), "{what}: {name} is not documented");
                        self.fits(&rule[name], value, what);
                    }
                }
                "items" => value.as_array().unwrap().iter().for_each(|item| self.fits(rule, item, what)),
                "maxItems" => assert!(value.as_array().unwrap().len() as u64 <= rule.as_u64().unwrap(), "{what}"),
                "description" | "additionalProperties" | "required" | "properties" => {}
                other => panic!("{other} is not checked"),
            }
        }
    }
}

#[test]
fn every_answer_is_one_that_the_document_has() {
    let world = World::with(|builder| builder.env("MAX_UPLOAD_BYTES", "1000"));
    let (service, folder) = (&world.service, &world.folder);
    let document = Document::of(service);
    let form = [("Content-Type", "multipart/form-data; boundary=b")];
    let credentials = |password: &str| json!({"email": EMAIL, "password": password});

    world.upload("m.bin", b"model");
    for path in ["/", "/docs", "/openapi.json", "/health", "/status", "/metrics", "/unlock/status"] {
        document.has("get", path, &service.get(path));
    }
    document.has("post", "/login", &service.login());
    document.has("post", "/login", &service.login_as(EMAIL, "wrong-horse"));
    document.has("post", "/login", &service.post_json("/login", json!({"email": 7})));
    document.has("post", "/login", &service.post_json("/login", json!({"email": "x".repeat(70_000)})));
    document.has("post", "/load/{filename}", &service.load(folder, "m.bin"));
    document.has("post", "/load/{filename}", &service.load(folder, "missing.bin"));
    document.has("post", "/load/{filename}", &service.load("No Folder", "m.bin"));
    document.has("post", "/upload/{filename}", &service.upload(folder, "m.bin", b"model"));
    document.has("post", "/upload/{filename}", &service.upload(folder, "m.bin", &[0; 2000]));
    document.has("post", "/upload/{filename}", &service.upload("no-such-bucket-here", "m.bin", b"model"));
    document.has("post", "/upload/{filename}", &service.call("POST", "/upload/m", &form, b"--b--").unwrap());
    let model = "/models/{folder}/{filename}";
    for file in ["m.bin", "m.bin", "%20%2F"] {
        let reply = service.call("DELETE", &format!("/models/{folder}/{file}"), &[], b"").unwrap();
        document.has("delete", model, &reply);
    }
    document.has("post", "/unlock", &service.post_json("/unlock", credentials(PASSWORD)));
    document.has("post", "/unlock", &service.post_json("/unlock", json!({})));
    std::fs::write(service.images_path(), [0; 100]).unwrap();
    document.has("post", "/unlock", &service.post_json("/unlock", credentials("wrong-horse")));

    for (path, operations) in document.0["paths"].as_object().unwrap() {
        let method = operations.as_object().unwrap().keys().next().unwrap();
        let target = path.replace("{filename}", "m.bin").replace("{folder}", folder);
        document.has(method, path, &service.call("PATCH", &target, &[], b"").unwrap());
        // The gate refuses these.
        let method_name = method.to_uppercase();
        let long = "x".repeat(20_000);
        for (request, status) in [
            (
                format!("{method_name} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 1\r\n\r\n"),
                400,
            ),
            (format!("{method_name} {target}?{long}"), 414),
            (format!("{method_name} {target} HTTP/1.1\r\nHost: x\r\nExpect: a-lot\r\n\r\n"), 417),
            (format!("{method_name} {target} HTTP/1.1\r\nHost: x\r\nX: {long}"), 431),
            (format!("BREW {target} HTTP/1.1\r\nHost: x\r\n\r\n"), 501),
            (format!("{method_name} {target} HTTP/2.0\r\nHost: x\r\n\r\n"), 505),
        ] {
            let answer = exchange(service.connect(), request.as_bytes());
            let reply = read_reply(&mut &answer[..], "POST").unwrap();
            assert_eq!(reply.status, status);
            document.has(method, path, &reply);
            let sample = format!("loader_http_requests_total{{endpoint=\"other\",status=\"{status}\"}}");
            assert!(service.get("/metrics").text().contains(&sample), "{sample}");
        }
    }
}

#[test]
fn what_needs_the_client_token_is_what_the_document_says() {
    let service = Service::builder().env("CLIENT_TOKEN", "open-sesame").start();
    let document = Document::of(&service);
    for (path, operations) in document.0["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let reply = service.call(&method.to_uppercase(), &path.replace("{filename}", "m"), &[], b"").unwrap();
            assert_eq!(reply.status == 401, !operation["security"].is_array(), "{path}: {}", reply.status);
            document.has(method, path, &reply);
        }
    }
}

#[test]
fn busy_handlers_answer_as_the_document_says() {
    let api = ResourceApi::start();
    let service = Service::builder().api(&api).env("HANDLER_THREADS", "1").start();
    let document = Document::of(&service);
    api.fault("/login", Fault::Hang, None);
    std::thread::scope(|scope| {
        // More than one handler and its queue of sixteen can take.
        let calls: Vec<_> = (0..24).map(|_| scope.spawn(|| service.login())).collect();
        eventually(std::time::Duration::from_secs(20), "some are refused", || {
            !service.get("/metrics").text().contains("\nloader_queue_full_total 0\n")
        });
        api.clear_faults();
        api.cut();
        let replies: Vec<Reply> = calls.into_iter().map(|call| call.join().unwrap()).collect();
        let refused = replies.iter().find(|reply| reply.status == 503).expect("they were counted");
        document.has("post", "/login", refused);
    });
}

#[test]
fn the_docs_are_a_page_without_scripts() {
    let service = Service::builder().start();
    let reply = service.get("/docs");
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = reply.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("script-src"), "{policy}");
    assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(reply.header("referrer-policy"), Some("no-referrer"));
    for path in Document::of(&service).0["paths"].as_object().unwrap().keys() {
        assert!(reply.text().contains(&format!(" {path}</code></h2>")), "{path}");
    }
}
