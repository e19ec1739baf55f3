//! Log lines: one for each event, in `key=value` form, which no client can forge.

use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::world::eventually;
use crate::world::process::write_program;
use crate::world::raw::{Reply, exchange, read_reply};
use crate::world::resource_api::{EMAIL, PASSWORD};
use crate::world::s3_fault::{Fault, Purpose};
use crate::world::service::Service;
use crate::world::{World, protocol};

/// Only a hang takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// The pairs of a line, parsed by the rules of the form; panics if the line breaks them.
fn pairs(line: &str) -> Vec<(String, String)> {
    let (mut pairs, mut rest) = (Vec::new(), line);
    while !rest.is_empty() {
        let (key, value) = rest.split_once('=').unwrap_or_else(|| panic!("{line}"));
        assert!(!key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase()), "{line}");
        let end = if let Some(quoted) = value.strip_prefix('"') {
            let mut escaped = false;
            let closes = |c: char| {
                let closes = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                closes
            };
            quoted.find(closes).unwrap_or_else(|| panic!("{line}")) + 2
        } else {
            let end = value.find(' ').unwrap_or(value.len());
            assert!(!value[..end].contains(['"', '=', '\\']) && !value[..end].contains(char::is_control), "{line}");
            end
        };
        pairs.push((key.to_owned(), value[..end].to_owned()));
        rest = &value[end..];
        rest = rest.strip_prefix(' ').unwrap_or(rest);
    }
    pairs
}

fn get<'a>(pairs: &'a [(String, String)], key: &str) -> Option<&'a str> {
    pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
}

/// All lines of the log file.
fn lines(service: &Service) -> Vec<Vec<(String, String)>> {
    let files = std::fs::read_dir(service.log_dir()).unwrap();
    let text: String = files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect();
    text.lines().map(pairs).collect()
}

/// The lines of the request that got this answer. The last one is written when the client has the answer.
fn lines_of(service: &Service, reply: &Reply) -> Vec<Vec<(String, String)>> {
    let id = reply.header("x-request-id").expect("every answer has an id");
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let mine: Vec<_> = lines(service).into_iter().filter(|line| get(line, "request") == Some(id)).collect();
        if mine.iter().any(|line| get(line, "message") == Some("\"answered\"")) {
            return mine;
        }
        assert!(Instant::now() < deadline, "no line says that {id} was answered: {mine:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn every_answer_has_a_line_with_its_id_endpoint_status_bytes_and_milliseconds() {
    let world = World::new();
    let upload = world.service.upload(&world.folder, "m.bin", &[7; 1000]);
    let load = world.service.load(&world.folder, "m.bin");
    let missing = world.service.load(&world.folder, "missing.bin");
    let unknown = world.service.get("/no/such?password=hunter2");
    for (reply, method, endpoint, path, status, bytes) in [
        (&upload, "POST", "/upload/{filename}", "/upload/m.bin", "200", upload.body.len()),
        (&load, "POST", "/load/{filename}", "/load/m.bin", "200", 1000),
        (&missing, "POST", "/load/{filename}", "/load/missing.bin", "500", missing.body.len()),
        (&unknown, "GET", "other", "/no/such", "404", unknown.body.len()),
    ] {
        let lines = lines_of(&world.service, reply);
        let line = lines.last().unwrap();
        for (key, expected) in [
            ("level", "info"),
            ("message", "\"answered\""),
            ("method", method),
            ("endpoint", endpoint),
            ("path", path),
            ("status", status),
            ("bytes", &bytes.to_string()),
        ] {
            assert_eq!(get(line, key), Some(expected), "{key} in {line:?}");
        }
        let _: u64 = get(line, "ms").unwrap().parse().unwrap();
        assert!(get(line, "time").unwrap().ends_with('Z'), "{line:?}");
    }
    // Lines logged before the answer have its id, so the reason can be found.
    let reasons = lines_of(&world.service, &missing);
    assert!(reasons.iter().any(|line| get(line, "level") == Some("warn")), "{reasons:?}");
    let ids: Vec<_> = [&upload, &load, &missing, &unknown].iter().map(|reply| reply.header("x-request-id")).collect();
    assert!(ids.iter().enumerate().all(|(i, id)| !ids[..i].contains(id)), "{ids:?}");
    assert!(!world.service.log_text().contains("hunter2"), "a query is not logged");
}

#[test]
fn no_client_can_forge_a_line_or_choose_an_id() {
    let service = Service::builder().start();
    let fake = "x%0atime=2026-01-01T00:00:00Z level=error message=\"root logged in\"";
    for target in ["/a\"b=c\\", "/load/a\u{1b}[2Jb", "/load/status=200", "/load/%0a%22x", "/%ff"] {
        let request = format!(
            "POST {target} HTTP/1.1\r\nHost: x\r\nX-Request-Id: mine\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        let answer = String::from_utf8_lossy(&exchange(service.connect(), request.as_bytes())).into_owned();
        assert!(!answer.contains("mine"), "{answer}");
    }
    let reply = service.post_json("/login", json!({"email": format!("{EMAIL}\n{fake}"), "password": fake}));
    assert_eq!(reply.status, 401);
    // Valid names may hold quotes and spaces.
    let reply = service.load("models", "a\" level=error b=\"c");
    let line = lines_of(&service, &reply).pop().unwrap();
    assert_eq!(get(&line, "level"), Some("info"));
    // The parser accepts every line, and none of them was made up by a client.
    for line in lines(&service) {
        assert_ne!(get(&line, "level"), Some("error"), "{line:?}");
        assert_eq!(line.iter().filter(|(key, _)| key == "level").count(), 1, "{line:?}");
        assert_eq!(
            (line[0].0.as_str(), line[1].0.as_str(), line[2].0.as_str()),
            ("time", "level", "message"),
            "{line:?}"
        );
    }
}

/// One client repeats a request: its lines are counted, in the file and on stderr, and none is lost.
#[test]
fn a_flood_is_written_as_one_line_a_second_with_the_number_left_out() {
    const REQUESTS: u64 = 500;
    let service = Service::builder().start();
    let started = Instant::now();
    let mut stream = std::io::BufReader::new(service.connect());
    for _ in 0..REQUESTS {
        let request = "POST /load/m.bin HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
        stream.get_mut().write_all(request.as_bytes()).unwrap();
        assert_eq!(read_reply(&mut stream, "POST").unwrap().status, 500);
    }
    // A line from another place in the program is not part of the flood.
    assert_eq!(service.post_json("/unlock", json!({"email": "a", "password": "b"})).status, 404);
    service.terminate();
    let seconds = started.elapsed().as_secs() + 2;
    let lines = lines(&service);
    for message in ["\"answered\"", "\"models/m.bin was not loaded: "] {
        let of_it = lines.iter().filter(|line| get(line, "message").unwrap().starts_with(message));
        let (counts, single): (Vec<_>, Vec<_>) = of_it.partition(|line| line.iter().any(|(key, _)| key == "omitted"));
        let single = single.iter().filter(|line| get(line, "endpoint") != Some("/unlock")).count() as u64;
        let omitted: u64 = counts.iter().map(|line| get(line, "omitted").unwrap().parse::<u64>().unwrap()).sum();
        let others =
            u64::from(message == "\"answered\"" && !lines.iter().any(|line| get(line, "path") == Some("/unlock")));
        assert_eq!(single + omitted, REQUESTS + others, "{message}: {counts:?}");
        let written = single + counts.len() as u64;
        assert!(written <= 11 * seconds, "{message}: {written} lines in {seconds} s");
    }
    // Standard output and standard error have the same lines as the file.
    eventually(Duration::from_secs(10), "stderr has the same lines", || {
        service.log_text().matches("omitted=").count()
            == 2 * lines.iter().flatten().filter(|(key, _)| key == "omitted").count()
    });
}

#[test]
fn a_board_whose_clock_starts_in_1970_keeps_todays_lines() {
    let directory = tempfile::tempdir().unwrap();
    let logs = directory.path().join("logs");
    std::fs::create_dir(&logs).unwrap();
    // These days are all in the future, whenever this test runs.
    for day in 1..=9 {
        std::fs::write(logs.join(format!("loader-9999-01-0{day}.log")), "").unwrap();
    }
    let service = Service::builder().env("LOG_DIR", &logs).start();
    service.terminate();
    let names: Vec<_> = std::fs::read_dir(&logs).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let today: Vec<_> = names.iter().filter(|name| !name.to_string_lossy().contains("9999")).collect();
    assert!(names.len() == 7 && today.len() == 1, "{names:?}");
    let text = std::fs::read_to_string(logs.join(today[0])).unwrap();
    assert!(text.contains("listens on") && text.contains("stopped"), "{text}");
}

#[test]
fn probes_are_logged_at_level_debug_only() {
    let service = Service::builder().start();
    service.get("/status");
    assert!(!service.log_text().contains("endpoint=/status") && !service.log_text().contains("endpoint=/health"));
    let service = Service::builder().env("LOG_LEVEL", "debug").start();
    service.get("/status");
    // The line is written after the answer.
    let deadline = Instant::now() + Duration::from_secs(5);
    while !service.log_text().contains("endpoint=/status") {
        assert!(Instant::now() < deadline, "{}", service.log_text());
        thread::sleep(Duration::from_millis(10));
    }
}

/// A transfer that takes longer than ten seconds, in each of the three directions at once.
#[test]
fn a_long_transfer_logs_its_progress_every_ten_seconds() {
    const LONG: Duration = Duration::from_millis(10_500);
    let directory = tempfile::tempdir().unwrap();
    let docker = directory.path().join("docker");
    // This `docker load` reads some, pauses, and reads the rest.
    let script = "#!/bin/sh\ncase $1 in\nload) head -c 1000000 >/dev/null; sleep 10.5; cat >/dev/null;;\n*) echo sha256:1;;\nesac\n";
    write_program(&docker, script);
    let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());
    let world = World::with(|builder| builder.env("PATH", path));
    let fragment = b"of the progress test";
    world.api.set_key_fragment(fragment);
    let archive = crate::world::docker::saved_images(&["progress:1"], 4_000_000, false);
    std::fs::write(world.service.images_path(), protocol::encrypt(&archive, fragment)).unwrap();
    let model = vec![7; 30_000_000];
    world.upload("large.bin", &model);

    let (service, folder) = (&world.service, &world.folder);
    let started = Instant::now();
    let unlock = service.post_json("/unlock", json!({"email": EMAIL, "password": PASSWORD}));
    assert_eq!(unlock.status, 200);
    let (load, upload) = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut stream = service.connect();
            let body = json!({"folder": folder}).to_string();
            let length = body.len();
            write!(stream, "POST /load/large.bin HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
            // Meanwhile only the socket buffers fill.
            std::thread::sleep(LONG);
            let reply = read_reply(&mut std::io::BufReader::new(stream), "POST").unwrap();
            assert!(reply.status == 200 && reply.body == model);
            reply
        });
        let upload = scope.spawn(|| {
            let mut stream = service.connect();
            let head = "--b\r\nContent-Disposition: form-data; name=data; filename=x\r\n\r\n";
            let tail = format!("\r\n--b\r\nContent-Disposition: form-data; name=folder\r\n\r\n{folder}\r\n--b--\r\n");
            let length = head.len() + 500_000 + tail.len();
            write!(stream, "POST /upload/slow.bin HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: {length}\r\n\r\n{head}").unwrap();
            stream.write_all(&[1; 250_000]).unwrap();
            std::thread::sleep(LONG);
            stream.write_all(&[1; 250_000]).unwrap();
            stream.write_all(tail.as_bytes()).unwrap();
            let reply = read_reply(&mut std::io::BufReader::new(stream), "POST").unwrap();
            assert_eq!(reply.status, 200);
            reply
        });
        (load.join().unwrap(), upload.join().unwrap())
    });
    let deadline = Instant::now() + Duration::from_secs(30);
    while service.get("/unlock/status").json()["state"] != "ready" {
        assert!(Instant::now() < deadline, "{}", service.get("/unlock/status").text());
        std::thread::sleep(Duration::from_millis(50));
    }
    for (reply, stage) in [(&load, "send"), (&upload, "receive"), (&unlock, "unlock")] {
        let lines = lines_of(service, reply);
        let progress: Vec<_> = lines.iter().filter(|line| get(line, "stage") == Some(stage)).collect();
        // On a busy machine the transfers take longer and log more lines.
        let most = started.elapsed().as_secs() as usize / 10;
        assert!((1..=most).contains(&progress.len()), "{stage}: {lines:?}");
        let number = |key: &str| -> u64 { get(progress[0], key).unwrap().parse().unwrap() };
        assert!(number("done") > 0 && number("done") <= number("total"), "{progress:?}");
        assert_eq!(number("percent"), number("done") * 100 / number("total"), "{progress:?}");
    }
}

#[test]
fn a_client_that_has_read_enough_of_a_range_is_no_warning_and_one_that_leaves_a_whole_model_is() {
    let (world, proxy) = World::behind_proxy();
    // More than the socket buffers hold.
    world.upload("m.bin", &vec![7; 64 << 20]);
    let count = |status: u16| {
        let labels = format!(r#"endpoint="/load/{{filename}}",status="{status}""#);
        world.service.metric(&format!("loader_http_requests_total{{{labels}}}"))
    };
    let leaves = |range: &str, status: u16| {
        let before = count(status);
        let mut client = world.service.connect();
        let target = format!("/load/m.bin?folder={}", world.folder);
        write!(client, "POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n{range}\r\n").unwrap();
        // Nearly the first chunk.
        client.read_exact(&mut vec![0; 1_000_000]).unwrap();
        drop(client);
        eventually(PATIENCE, "the load is given up", || count(status) > before);
    };
    // The answer breaks off in a write, and then in a wait for bytes.
    for hangs in [false, true] {
        if hangs {
            world.forget("m.bin");
            proxy.fault_on(Purpose::Whole, ".big", Fault::HangAt(1_500_000), None);
        }
        leaves("Range: bytes=0-\r\n", 206);
        leaves("", 200);
    }
    let is_warning = |line: &Vec<(String, String)>| {
        get(line, "message") == Some("\"the answer broke off\"") && get(line, "level") == Some("warn")
    };
    let statuses = || -> Vec<String> {
        let lines = lines(&world.service);
        lines.iter().filter(|line| is_warning(line)).map(|line| get(line, "status").unwrap().to_owned()).collect()
    };
    eventually(PATIENCE, "both whole models have a warning", || statuses().len() >= 2);
    assert_eq!(statuses(), ["200", "200"]);
}
