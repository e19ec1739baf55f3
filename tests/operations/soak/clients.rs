//! The clients of the soak, good and hostile. Each takes one turn.

use std::io::{BufReader, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use super::{COLD, Dice, MODELS, Soak};
use crate::world::raw::{self, Stream};
use crate::world::resource_api::{EMAIL, PASSWORD};
use crate::world::tcp::reset_on_close;
use crate::world::{pattern, sha256_hex};

pub(super) fn hash_of((_, size, seed): (&str, usize, u64)) -> String {
    sha256_hex(&pattern(size, seed))
}

pub(super) fn load_warm(soak: &Soak, dice: &mut Dice) -> Result<(), String> {
    let model = MODELS[dice.below(4)];
    thread::sleep(dice.millis(0, 50));
    soak.load(model.0, &[hash_of(model)]).map(drop)
}

pub(super) fn load_cold(soak: &Soak, dice: &mut Dice) -> Result<(), String> {
    soak.world.forget(COLD.0);
    thread::sleep(dice.millis(0, 100));
    if soak.load(COLD.0, &[hash_of(COLD)])? {
        soak.count("cold load right");
    }
    Ok(())
}

/// Uploads versions of one name, and loads after each: the result is the last accepted version, or one whose upload
/// failed, because that may have been carried out nevertheless, even late.
pub(super) fn upload(soak: &Soak, dice: &mut Dice) -> Result<(), String> {
    let name = format!("upload-{}.bin", dice.below(1_000_000));
    let (mut accepted, mut failed) = (None, Vec::new());
    for _ in 0..3 {
        let version = pattern(1 + dice.below(1_500_000), dice.below(usize::MAX) as u64);
        let hash = sha256_hex(&version);
        let length = version.len() as u64;
        match soak.world.service.try_upload_reader(&soak.world.folder, &name, length, &version[..]) {
            Ok(reply) if reply.status == 200 => {
                soak.count("upload right");
                accepted = Some(hash);
            }
            Ok(reply) if !matches!(reply.status, 500 | 503) => {
                return Err(format!("{} {}", reply.status, reply.text()));
            }
            _ => {
                soak.count("upload failed");
                failed.push(hash);
            }
        }
        let admissible: Vec<_> = accepted.iter().chain(&failed).cloned().collect();
        soak.load(&name, &admissible)?;
    }
    // A long soak should not fill the disk with old versions.
    soak.world.forget(&name);
    for key in soak.world.keys().into_iter().filter(|key| key.starts_with(&name)) {
        soak.world.s3.delete(&soak.world.folder, &key);
    }
    soak.world.api.remove_file(&soak.world.folder, &format!("{name}.small"));
    Ok(())
}

pub(super) fn log_in(soak: &Soak, dice: &mut Dice) -> Result<(), String> {
    thread::sleep(dice.millis(100, 500));
    let body = format!(r#"{{"email":"{EMAIL}","password":"{PASSWORD}"}}"#);
    let json = [("Content-Type", "application/json")];
    match soak.world.service.call("POST", "/login", &json, body.as_bytes()) {
        Ok(reply) if matches!(reply.status, 200 | 401 | 503) => {
            soak.count(&format!("login {}", reply.status));
            Ok(())
        }
        other => Err(format!("{other:?}")),
    }
}

/// Endpoints that are answered from memory always answer.
pub(super) fn poll(soak: &Soak, dice: &mut Dice) -> Result<(), String> {
    thread::sleep(dice.millis(0, 60));
    let path = ["/health", "/status", "/unlock/status"][dice.below(3)];
    let started = Instant::now();
    match soak.world.service.call("GET", path, &[], b"") {
        Ok(reply) if reply.status == 200 => {
            soak.count("poll 200");
            Ok(())
        }
        other => Err(format!("{path} after {:?}: {other:?}", started.elapsed())),
    }
}

pub(super) const UPLOAD_HEAD: &str =
    "POST /upload/never.bin HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n";
pub(super) const FILE: &str = "--b\r\nContent-Disposition: form-data; name=data; filename=x\r\n\r\nDATA";

pub(super) fn load_request(soak: &Soak, name: &str) -> String {
    let body = format!(r#"{{"folder":"{}"}}"#, soak.world.folder);
    let head = format!("POST /load/{name} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n");
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// Sends something, and keeps the connection open for a while.
pub(super) fn say_and_hold(soak: &Soak, what: &[u8], hold: Duration) {
    if let Some(mut stream) = soak.connect() {
        let _ = stream.write_all(what);
        soak.hold(hold);
    }
}

pub(super) fn declare_a_length(soak: &Soak, dice: &mut Dice) -> Result<(), String> {
    let path = ["/login", "/upload/never.bin", "/load/tiny.bin", "/nope", "/health"][dice.below(5)];
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000000000000\r\n\r\n"
    );
    if let Some(mut stream) = soak.connect() {
        let _ = stream.write_all(head.as_bytes());
        let _ = raw::read_reply(&mut BufReader::new(stream), "POST");
    }
    thread::sleep(dice.millis(0, 30));
    Ok(())
}

pub(super) fn stall_a_body(soak: &Soak, dice: &mut Dice) -> Result<(), String> {
    let framing = ["Content-Length: 1000000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\nffff\r\n"];
    let request = format!("{UPLOAD_HEAD}{}{FILE}", framing[dice.below(2)]);
    say_and_hold(soak, request.as_bytes(), dice.millis(0, 3000));
    Ok(())
}

pub(super) fn leave_answers_unread(soak: &Soak, dice: &mut Dice) -> Result<(), String> {
    say_and_hold(soak, load_request(soak, "huge.bin").as_bytes(), dice.millis(0, 3000));
    Ok(())
}

pub(super) fn reset(soak: &Soak, dice: &mut Dice) -> Result<(), String> {
    if let Some(mut stream) = soak.connect() {
        if dice.below(2) == 0 {
            let _ = write!(stream, "{UPLOAD_HEAD}Content-Length: 1000000\r\n\r\n{FILE}");
            thread::sleep(dice.millis(0, 50));
        } else {
            let _ = stream.write_all(load_request(soak, "large.bin").as_bytes());
            let _ = stream.read_exact(&mut vec![0; dice.below(100_000)]);
        }
        if let Stream::Tcp(stream) = &stream {
            reset_on_close(stream);
        }
    }
    Ok(())
}

pub(super) fn send_a_head_byte_by_byte(soak: &Soak, dice: &mut Dice) -> Result<(), String> {
    let Some(mut stream) = soak.connect() else { return Ok(()) };
    let head = format!("GET /health HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(dice.below(2000)));
    for byte in head.as_bytes() {
        if !soak.goes_on() || stream.write_all(&[*byte]).is_err() {
            break;
        }
        thread::sleep(Duration::from_millis(3));
    }
    Ok(())
}

pub(super) fn send_header_lines_without_end(soak: &Soak, dice: &mut Dice) -> Result<(), String> {
    let Some(mut stream) = soak.connect() else { return Ok(()) };
    let lines = if dice.below(2) == 0 { "v".repeat(32 * 1024) } else { "a: b\r\n".repeat(5_000) };
    let _ = stream.write_all(b"GET /health HTTP/1.1\r\nX: ");
    while soak.goes_on() && stream.write_all(lines.as_bytes()).is_ok() {}
    thread::sleep(dice.millis(0, 200));
    Ok(())
}

pub(super) fn send_garbage(soak: &Soak, dice: &mut Dice) -> Result<(), String> {
    let bytes = pattern(dice.below(5000), dice.below(usize::MAX) as u64);
    let beginning =
        ["", "GET ", "GET /health HTTP/1.1\r\n", "POST /login HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"];
    let beginning = beginning[dice.below(4)].as_bytes();
    say_and_hold(soak, &[beginning, &bytes, b"\r\n\r\n"].concat(), dice.millis(0, 100));
    Ok(())
}

pub(super) fn pipeline(soak: &Soak, dice: &mut Dice) -> Result<(), String> {
    let mut requests = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1 + dice.below(60));
    requests.insert_str(0, &load_request(soak, "tiny.bin"));
    say_and_hold(soak, requests.as_bytes(), dice.millis(0, 300));
    Ok(())
}

pub(super) fn open_idle_connections(soak: &Soak, dice: &mut Dice) -> Result<(), String> {
    let mut open = Vec::new();
    for number in 0..dice.below(300) {
        let Some(mut stream) = soak.connect() else { break };
        let beginning = ["", "GET /health HTTP/1.1\r\nHost: x\r\n\r\n", "GET /hea"][number % 3];
        let _ = stream.write_all(beginning.as_bytes());
        open.push(stream);
    }
    soak.hold(dice.millis(0, 3000));
    Ok(())
}
