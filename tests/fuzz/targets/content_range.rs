//! The `Content-Range` of a CDN's answer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use loader::cdn_manager::ContentRange;

fuzz_target!(|text: &str| {
    let Some(range) = ContentRange::parse(text) else { return };
    assert!(range.start < range.end && range.length.is_none_or(|length| range.end <= length));
    let length = range.length.map_or("*".to_owned(), |length| length.to_string());
    let again = format!("bytes {}-{}/{length}", range.start, range.end - 1);
    assert_eq!(ContentRange::parse(&again), Some(range));
});
