//! The CDN configuration: a small YAML document from a file or from the Resource API.

use std::fmt;

use serde::Deserialize;
use url::Url;

use crate::secret::Secret;

/// Where the CDN is and with which keys it is used.
#[derive(Clone, Debug)]
pub struct CdnConfig {
    /// The endpoint: scheme, host and port.
    pub endpoint: Url,
    /// The region that goes into signatures.
    pub region: String,
    /// May read.
    pub downloader: AccessKey,
    /// May read and write.
    pub uploader: AccessKey,
}

/// An S3 access key and its secret.
#[derive(Clone, Debug)]
pub struct AccessKey {
    /// The key's public name.
    pub id: String,
    /// Signs requests.
    pub secret: Secret,
}

impl AccessKey {
    /// Whether both are the same.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.id == other.id && self.secret.expose() == other.secret.expose()
    }
}

/// Why a document is not a CDN configuration. The text repeats no value of the document.
#[derive(Debug)]
pub struct CdnConfigError(String);

impl fmt::Display for CdnConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the CDN configuration is unusable: {}", self.0)
    }
}

impl std::error::Error for CdnConfigError {}

#[derive(Deserialize)]
struct Document {
    host: String,
    downloader_access_key: Secret,
    downloader_access_secret: Secret,
    uploader_access_key: Secret,
    uploader_access_secret: Secret,
    region: Option<String>,
}

impl CdnConfig {
    /// Whether requests go over a network in plain: neither TLS nor loopback.
    #[must_use]
    pub fn is_open_to_listeners(&self) -> bool {
        let is_loopback = match self.endpoint.host() {
            Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        self.endpoint.scheme() == "http" && !is_loopback
    }

    /// Reads a YAML document with the keys of SPEC section 5. Other keys are ignored.
    ///
    /// # Errors
    /// A sentence that names the key that is missing or unusable.
    pub fn from_yaml(yaml: &[u8]) -> Result<Self, CdnConfigError> {
        let document: Document =
            serde_yaml::from_slice(yaml).map_err(|error| CdnConfigError(without_values(&error)))?;
        let endpoint = Url::parse(&document.host)
            .ok()
            .filter(|url| {
                matches!(url.scheme(), "http" | "https")
                    && url.host_str().is_some_and(|host| !host.is_empty())
                    && url.path() == "/"
                    && url.query().is_none()
                    && url.username().is_empty()
                    && url.password().is_none()
            })
            .ok_or_else(|| CdnConfigError("host is not an endpoint URL such as https://cdn.example.com".into()))?;
        let key = |name: &str, id: &Secret, secret: &Secret| {
            // They travel in header lines.
            let usable =
                |text: &Secret| !text.expose().is_empty() && text.expose().bytes().all(|b| b.is_ascii_graphic());
            if usable(id) && usable(secret) {
                Ok(AccessKey { id: id.expose().to_owned(), secret: secret.clone() })
            } else {
                Err(CdnConfigError(format!("{name}_access_key or {name}_access_secret is empty or no plain text")))
            }
        };
        let region = document.region.unwrap_or_else(|| "us-east-1".into());
        if region.is_empty() || !region.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
            return Err(CdnConfigError("region is not a region name such as us-east-1".into()));
        }
        Ok(Self {
            endpoint,
            region,
            downloader: key("downloader", &document.downloader_access_key, &document.downloader_access_secret)?,
            uploader: key("uploader", &document.uploader_access_key, &document.uploader_access_secret)?,
        })
    }
}

/// serde quotes what it found where it expected something else, and that could be a secret. What it says about a missing
/// field, or where the YAML breaks, is safe and useful.
fn without_values(error: &serde_yaml::Error) -> String {
    let text = error.to_string();
    if text.starts_with("missing field") {
        return text;
    }
    match error.location() {
        Some(place) => {
            format!("it is no YAML mapping of text values (line {}, column {})", place.line(), place.column())
        }
        None => "it is no YAML mapping of text values".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ("hush1", "[hush1, hush3]", "no YAML mapping"),
            ("hush1", "''", "downloader_access_secret is empty"),
            ("extra: 1", "region: 'a b'", "region is not"),
            ("host:", "\thost: {hush", "no YAML mapping"),
        ] {
            let error = CdnConfig::from_yaml(GOOD.replace(from, to).as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{to:?}: {error}");
            assert!(!error.contains("hush"), "{error}");
        }
        assert!(CdnConfig::from_yaml(b"").is_err() && CdnConfig::from_yaml(&[0xff, 0xfe]).is_err());
    }
}
