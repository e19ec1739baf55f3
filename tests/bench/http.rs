//! A client that costs little: what it spends, the service on the other core cannot.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::world::client::{call, segment};
use crate::world::multipart::Form;
use crate::world::raw::{Framing, Head, Stream, request_from};

/// A single call may take long: the peer at 1 GiB does.
const PATIENCE: Duration = Duration::from_secs(600);

/// When the bytes of an answer arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// The first byte of the body, in seconds from the request.
    pub first_byte: f64,
    /// The last byte, in the same way.
    pub total: f64,
}

/// `/load` of a model of which only the length is looked at.
pub fn load(address: &str, folder: &str, name: &str, length: u64) -> Arrival {
    receive(address, folder, name, "", 200, length)
}

/// The same for a range.
pub fn load_range(address: &str, folder: &str, name: &str, range: Range<u64>) -> Arrival {
    let header = format!("Range: bytes={}-{}\r\n", range.start, range.end - 1);
    receive(address, folder, name, &header, 206, range.end - range.start)
}

fn receive(address: &str, folder: &str, name: &str, header: &str, status: u16, length: u64) -> Arrival {
    let body = json!({ "filename": name, "folder": folder }).to_string();
    let started = Instant::now();
    let mut stream = connect(address);
    let head = format!(
        "POST /load/{} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n{header}\
         Content-Length: {}\r\n\r\n{body}",
        segment(name),
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("the service takes a request");
    let mut reader = BufReader::with_capacity(256 * 1024, stream);
    let head = Head::read(&mut reader).expect("an answer").expect("an answer");
    let framing = head.framing().expect("an answer");
    if head.status().expect("a status") != status {
        let mut text = vec![0; 4096];
        let count = std::io::Read::read(&mut reader, &mut text).unwrap_or_default();
        panic!("{}: {}", head.start, String::from_utf8_lossy(&text[..count]));
    }
    assert_eq!(framing, Framing::Length(length));
    let (mut received, mut first_byte) = (0, None);
    while received < length {
        let count = reader.fill_buf().expect("a body").len();
        assert!(count > 0, "the body ended after {received} of {length} bytes");
        first_byte.get_or_insert_with(|| started.elapsed().as_secs_f64());
        received += count as u64;
        reader.consume(count);
    }
    Arrival { first_byte: first_byte.unwrap_or_default(), total: started.elapsed().as_secs_f64() }
}

/// `/upload` of a file, in seconds.
pub fn upload(address: &str, folder: &str, name: &str, file: &Path) -> f64 {
    let form = Form::new(name, &[("folder", folder)], &[]);
    let headers = [("Content-Type", form.content_type.as_str())];
    let file = File::open(file).expect("the file is there");
    let length = form.length(file.metadata().expect("the file is there").len());
    let path = format!("/upload/{}", segment(name));
    let started = Instant::now();
    let reply = request_from(connect(address), "POST", &path, &headers, length, form.around(file));
    let reply = reply.unwrap_or_else(|error| panic!("{path}: {error}"));
    assert_eq!(reply.status, 200, "{}", reply.text());
    started.elapsed().as_secs_f64()
}

/// `POST` with a JSON body that must succeed.
pub fn post(address: &str, path: &str, body: &serde_json::Value) {
    let headers = [("Content-Type", "application/json")];
    let reply = call(address, PATIENCE, "POST", path, &headers, body.to_string().as_bytes());
    let reply = reply.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(reply.status, 200, "{path}: {}", reply.text());
}

fn connect(address: &str) -> Stream {
    let stream = Stream::connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    stream.set_timeout(PATIENCE).expect("a timeout");
    stream
}
