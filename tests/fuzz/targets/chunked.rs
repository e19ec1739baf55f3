//! A chunked body with its trailers as any client sends it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    loader::http::fuzz_chunked(data);
});
