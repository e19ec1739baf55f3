//! The CDN configuration: a small YAML document from a file or from the Resource API.

use std::fmt;

use serde::Deserialize;
use url::Url;

use crate::secret::Secret;

/// The address of the CDN and the access keys for it.
#[derive(Clone, Debug)]
pub struct CdnConfig {
    /// The endpoint: scheme, host and port.
    pub endpoint: Url,
    /// The region, which is part of each signature.
    pub region: String,
    /// Permits reading.
    pub downloader: AccessKey,
    /// Permits reading and writing.
    pub uploader: AccessKey,
}

/// An S3 access key and its secret.
#[derive(Clone, Debug)]
pub struct AccessKey {
    /// The access key's id, which is not secret.
    pub id: String,
    /// The secret that signs requests.
    pub secret: Secret,
}

impl AccessKey {
    /// Whether both are the same.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.id == other.id && self.secret.expose() == other.secret.expose()
    }
}

/// Why a document is not a CDN configuration. The text quotes no value from the document.
#[derive(Debug)]
pub struct CdnConfigError(String);

impl fmt::Display for CdnConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the CDN configuration is unusable: {}", self.0)
    }
}

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
    /// Whether requests cross a network unencrypted: by plain HTTP and not over loopback.
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
            // They are sent in header lines.
            let usable =
                |text: &Secret| !text.expose().is_empty() && text.expose().bytes().all(|b| b.is_ascii_graphic());
            if usable(id) && usable(secret) {
                Ok(AccessKey { id: id.expose().to_owned(), secret: secret.clone() })
            } else {
                Err(CdnConfigError(format!(
                    "{name}_access_key or {name}_access_secret is empty or not printable ASCII"
                )))
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

/// serde quotes a value of the wrong type, which could be a secret. The name of a missing field, and the place where the YAML
/// is malformed, are safe and useful.
fn without_values(error: &serde_yaml::Error) -> String {
    let text = error.to_string();
    if text.starts_with("missing field") {
        return text;
    }
    match error.location() {
        Some(place) => {
            format!("it is not a YAML mapping of text values (line {}, column {})", place.line(), place.column())
        }
        None => "it is not a YAML mapping of text values".into(),
    }
}
