//! A form as a client sends it. The pieces in which it arrives must make no difference.
#![no_main]

use std::io::{self, Read};

use libfuzzer_sys::fuzz_target;
use loader::http::{Multipart, boundary};

/// Returns at most this many bytes at once.
struct Pieces<'a>(&'a [u8], usize);

impl Read for Pieces<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let limit = out.len().min(self.1);
        self.0.read(&mut out[..limit])
    }
}

/// The parts' contents and how it ended.
fn parts(body: &[u8], piece: usize) -> (Vec<(String, Vec<u8>)>, Option<String>) {
    let mut form = Multipart::new(Pieces(body, piece), "b");
    let mut parts = Vec::new();
    loop {
        match form.next_part() {
            Ok(Some(head)) => {
                let mut content = Vec::new();
                let read = form.read_to_end(&mut content);
                parts.push((format!("{head:?}"), content));
                if let Err(error) = read {
                    return (parts, Some(error.to_string()));
                }
            }
            Ok(None) => return (parts, None),
            Err(error) => return (parts, Some(error.to_string())),
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let whole = parts(data, usize::MAX);
    assert_eq!(whole, parts(data, 1));
    assert_eq!(whole, parts(data, 7));
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = boundary(text);
    }
});
