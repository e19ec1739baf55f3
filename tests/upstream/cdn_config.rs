//! The CDN's configuration and its `Content-Range` are parsed strictly.

use loader::cdn_manager::{CdnConfig, ContentRange};

const GOOD: &str = "host: https://cdn.example.com\ndownloader_access_key: d\ndownloader_access_secret: hush1\n\
                    uploader_access_key: u\nuploader_access_secret: hush2\nextra: 1\n";

#[test]
fn reads_the_documented_keys() {
    let config = CdnConfig::from_yaml(GOOD.as_bytes()).unwrap();
    assert_eq!(config.endpoint.as_str(), "https://cdn.example.com/");
    assert_eq!((config.region.as_str(), config.uploader.id.as_str()), ("us-east-1", "u"));
    assert!(!format!("{config:?}").contains("hush"));
}

#[test]
fn plain_http_is_for_loopback_only() {
    for (host, expected) in [
        ("https://cdn.example.com", false),
        ("http://cdn.example.com", true),
        ("http://10.0.0.7:8333", true),
        ("http://127.8.9.1:8333", false),
        ("http://[::1]:8333", false),
        ("http://localhost:8333", false),
    ] {
        let config = CdnConfig::from_yaml(GOOD.replace("https://cdn.example.com", host).as_bytes()).unwrap();
        assert_eq!(config.is_open_to_listeners(), expected, "{host}");
    }
}

#[test]
fn says_what_is_wrong_and_repeats_no_value() {
    for (from, to, expected) in [
        ("host: https://cdn.example.com\n", "", "missing field `host`"),
        ("uploader_access_secret: hush2\n", "", "missing field `uploader_access_secret`"),
        ("https://cdn.example.com", "cdn.example.com", "host is not an endpoint URL"),
        ("https://cdn.example.com", "https://hush@cdn", "host is not an endpoint URL"),
        ("hush1", "[hush1, hush3]", "not a YAML mapping"),
        ("hush1", "''", "downloader_access_secret is empty"),
        ("extra: 1", "region: 'a b'", "region is not"),
        ("host:", "\thost: {hush", "not a YAML mapping"),
    ] {
        let error = CdnConfig::from_yaml(GOOD.replace(from, to).as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{to:?}: {error}");
        assert!(!error.contains("hush"), "{error}");
    }
    assert!(CdnConfig::from_yaml(b"").is_err() && CdnConfig::from_yaml(&[0xff, 0xfe]).is_err());
}

#[test]
fn content_range_is_read_strictly() {
    let range = |start, end, length| Some(ContentRange { start, end, length });
    for (value, expected) in [
        ("bytes 0-31/32", range(0, 32, Some(32))),
        ("bytes 5-9/*", range(5, 10, None)),
        ("bytes 5-9/10 ", range(5, 10, Some(10))),
        ("bytes 9-5/10", None),
        ("bytes 5-10/10", None),
        ("bytes */10", None),
        ("bytes 5-/10", None),
        ("bytes +5-9/10", None),
        ("items 5-9/10", None),
        ("5-9/10", None),
        ("", None),
        ("bytes 0-18446744073709551615/*", None),
        ("bytes 0-99999999999999999999/*", None),
    ] {
        assert_eq!(ContentRange::parse(value), expected, "{value:?}");
    }
}
