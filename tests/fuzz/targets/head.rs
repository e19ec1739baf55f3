//! A request head as any client sends it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    loader::http::fuzz_head(data);
});
