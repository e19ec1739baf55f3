//! The Resource API's token.
#![no_main]

use std::time::SystemTime;

use libfuzzer_sys::fuzz_target;
use loader::api_client::TokenReader;
use loader::secret::Secret;

fuzz_target!(|text: &str| {
    match TokenReader::Trusting.read(Secret::new(text)) {
        Ok(token) => {
            let _ = token.is_stale(SystemTime::now());
            // It goes into a header line.
            assert!(token.bearer.expose().bytes().all(|byte| byte.is_ascii_graphic()));
        }
        Err(error) => assert!(text.len() < 24 || !error.contains(text)),
    }
});
