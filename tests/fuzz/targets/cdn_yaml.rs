//! The CDN's configuration, which the Resource API or a file gives.
#![no_main]

use libfuzzer_sys::fuzz_target;
use loader::cdn_manager::CdnConfig;

fuzz_target!(|data: &[u8]| {
    match CdnConfig::from_yaml(data) {
        Ok(config) => {
            let debug = format!("{config:?}");
            for key in [&config.downloader, &config.uploader] {
                let secret = key.secret.expose();
                // A short one is found anywhere.
                assert!(secret.len() < 16 || !debug.contains(secret));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
