//! A real S3 server for the tests: `s3s-fs` in this process, or the one that `TEST_S3_URL` names (SeaweedFS in CI).
//!
//! The client here signs each request itself and sends it through ureq, so it behaves the same with both.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use s3::Region;
use s3::serde_types::ListBucketResult;
use s3::signing;
use time::OffsetDateTime;
use url::Url;

use super::client::agent;
use super::raw::Reply;
use super::s3_server::S3Server;
use super::{hex, sha256_hex};

/// The region that all requests name.
pub const REGION: &str = "us-east-1";

/// Only a hang takes longer.
const HANG: Duration = Duration::from_secs(300);

/// An access key with its secret.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Access key id.
    pub access: String,
    /// Secret.
    pub secret: String,
}

/// An S3 endpoint with two identities: the downloader may only read, the uploader may do everything.
pub struct S3 {
    endpoint: String,
    downloader: Keys,
    uploader: Keys,
    agent: ureq::Agent,
    server: Option<S3Server>,
}

impl Keys {
    /// An access key id and its secret.
    pub fn new(access: impl Into<String>, secret: impl Into<String>) -> Self {
        Self { access: access.into(), secret: secret.into() }
    }

    /// Keys from `{prefix}_KEY` and `{prefix}_SECRET`.
    fn from_env(prefix: &str) -> Self {
        let get = |name: String| std::env::var(&name).unwrap_or_else(|_| panic!("TEST_S3_URL is set, {name} is not"));
        Self::new(get(format!("{prefix}_KEY")), get(format!("{prefix}_SECRET")))
    }
}

impl S3 {
    /// The server of `TEST_S3_URL`, or one in this process that ends when dropped.
    pub fn start() -> Self {
        let agent = agent(HANG);
        if let Ok(url) = std::env::var("TEST_S3_URL") {
            let (downloader, uploader) = (Keys::from_env("TEST_S3_DOWNLOADER"), Keys::from_env("TEST_S3_UPLOADER"));
            return Self { endpoint: url.trim_end_matches('/').to_owned(), downloader, uploader, agent, server: None };
        }
        let downloader = Keys::new("downloader-key", "downloader-secret-0123456789");
        let uploader = Keys::new("uploader-key", "uploader-secret-0123456789");
        let server = S3Server::start(&downloader, &uploader);
        let endpoint = format!("http://{}", server.address());
        Self { endpoint, downloader, uploader, agent, server: Some(server) }
    }

    /// A client of a server that runs already.
    pub fn at(endpoint: &str, downloader: Keys, uploader: Keys) -> Self {
        Self { endpoint: endpoint.to_owned(), downloader, uploader, agent: agent(HANG), server: None }
    }

    /// URL of the server.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// `host:port` of the server, for a proxy in front of it.
    pub fn host_port(&self) -> &str {
        self.endpoint.split("://").last().unwrap_or_default()
    }

    /// Whether it is the server in this process, whose behaviour is known in detail.
    pub fn is_built_in(&self) -> bool {
        self.server.is_some()
    }

    /// Keys that may only read.
    pub fn downloader(&self) -> &Keys {
        &self.downloader
    }

    /// Keys that may do everything.
    pub fn uploader(&self) -> &Keys {
        &self.uploader
    }

    /// The CDN configuration (section 5).
    pub fn cdn_yaml(&self) -> String {
        self.cdn_yaml_at(&self.endpoint)
    }

    /// The CDN configuration with another endpoint, for a proxy in front of the server.
    pub fn cdn_yaml_at(&self, endpoint: &str) -> String {
        let Self { downloader, uploader, .. } = self;
        format!(
            "host: {endpoint}\n\
             downloader_access_key: {}\ndownloader_access_secret: {}\n\
             uploader_access_key: {}\nuploader_access_secret: {}\n\
             region: {REGION}\n",
            downloader.access, downloader.secret, uploader.access, uploader.secret
        )
    }

    /// A new bucket name with this prefix, which no other test uses. The bucket is not created.
    pub fn bucket(&self, name: &str) -> String {
        let mut unique = [0; 6];
        getrandom::fill(&mut unique).expect("the kernel has randomness");
        format!("{name}-{}", hex(&unique))
    }

    /// [`bucket`](Self::bucket), created.
    pub fn new_bucket(&self, name: &str) -> String {
        let bucket = self.bucket(name);
        self.create_bucket(&bucket);
        bucket
    }

    /// Creates a bucket.
    pub fn create_bucket(&self, name: &str) {
        self.expect("PUT", name, "", &[], &[], b"");
    }

    /// Stores an object; names of metadata are without `x-amz-meta-`.
    pub fn put(&self, bucket: &str, key: &str, bytes: &[u8], metadata: &[(&str, &str)]) {
        let headers: Vec<_> = metadata.iter().map(|(name, value)| (format!("x-amz-meta-{name}"), *value)).collect();
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        self.expect("PUT", bucket, key, &[], &headers, bytes);
    }

    /// An object's bytes.
    pub fn get(&self, bucket: &str, key: &str) -> Option<Vec<u8>> {
        self.unless_missing(self.request(&self.uploader, "GET", bucket, key, &[], &[], b"")).map(|reply| reply.body)
    }

    /// An object's metadata, with names without `x-amz-meta-`.
    pub fn head_metadata(&self, bucket: &str, key: &str) -> Option<HashMap<String, String>> {
        let reply = self.unless_missing(self.request(&self.uploader, "HEAD", bucket, key, &[], &[], b""))?;
        let metadata = reply.headers.into_iter().filter_map(|(name, value)| {
            Some((name.to_ascii_lowercase().strip_prefix("x-amz-meta-")?.to_owned(), value))
        });
        Some(metadata.collect())
    }

    /// All keys of a bucket, sorted; empty if there is no such bucket.
    pub fn list(&self, bucket: &str) -> Vec<String> {
        let mut keys = Vec::new();
        let mut token = None;
        loop {
            let mut query = vec![("list-type", "2")];
            query.extend(token.as_deref().map(|token| ("continuation-token", token)));
            let reply = self.request(&self.uploader, "GET", bucket, "", &query, &[], b"");
            let Some(reply) = self.unless_missing(reply) else { return keys };
            let page: ListBucketResult =
                quick_xml::de::from_str(&reply.text()).unwrap_or_else(|error| panic!("{error}: {}", reply.text()));
            keys.extend(page.contents.into_iter().map(|object| object.key));
            token = page.next_continuation_token.filter(|_| page.is_truncated);
            if token.is_none() {
                keys.sort();
                return keys;
            }
        }
    }

    /// Removes an object, if it is there.
    pub fn delete(&self, bucket: &str, key: &str) {
        self.unless_missing(self.request(&self.uploader, "DELETE", bucket, key, &[], &[], b""));
    }

    /// Any request, signed with the given keys. An empty key means the bucket itself.
    #[allow(clippy::too_many_arguments)]
    pub fn request(
        &self,
        keys: &Keys,
        method: &str,
        bucket: &str,
        key: &str,
        query: &[(&str, &str)],
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Reply {
        let path = if key.is_empty() {
            format!("/{bucket}")
        } else {
            format!("/{bucket}/{}", signing::uri_encode(key, false))
        };
        let mut url = Url::parse(&format!("{}{path}", self.endpoint)).expect("an endpoint is a URL");
        if !query.is_empty() {
            let query: Vec<_> =
                query.iter().map(|(name, value)| format!("{name}={}", signing::uri_encode(value, true))).collect();
            url.set_query(Some(&query.join("&")));
        }
        let headers = signed(keys, method, &url, headers, body);
        let mut request = http::Request::builder().method(method).uri(url.as_str());
        request.headers_mut().expect("a valid request so far").extend(headers);
        let failed = |error: &dyn fmt::Display| -> ! { panic!("{method} {url}: {error}") };
        let response = if matches!(method, "GET" | "HEAD" | "DELETE") {
            self.agent.run(request.body(()).expect("a valid request"))
        } else {
            self.agent.run(request.body(body).expect("a valid request"))
        };
        let (parts, body) = response.unwrap_or_else(|error| failed(&error)).into_parts();
        let body = body.into_with_config().limit(u64::MAX).read_to_vec().unwrap_or_else(|error| failed(&error));
        let headers = parts.headers.iter();
        let headers =
            headers.map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
        Reply { status: parts.status.as_u16(), headers: headers.collect(), body }
    }

    fn expect(
        &self,
        method: &str,
        bucket: &str,
        key: &str,
        query: &[(&str, &str)],
        headers: &[(&str, &str)],
        body: &[u8],
    ) {
        let reply = self.request(&self.uploader, method, bucket, key, query, headers, body);
        assert_eq!(reply.status / 100, 2, "{method} {bucket}/{key}: status {}: {}", reply.status, reply.text());
    }

    fn unless_missing(&self, reply: Reply) -> Option<Reply> {
        match reply.status {
            404 => None,
            200..300 => Some(reply),
            status => panic!("status {status}: {}", reply.text()),
        }
    }
}

/// The headers given, and those of AWS signature version 4 over all of them.
pub fn signed(keys: &Keys, method: &str, url: &Url, headers: &[(&str, &str)], body: &[u8]) -> HeaderMap {
    let now = OffsetDateTime::now_utc();
    let region = Region::Custom { region: REGION.to_owned(), endpoint: String::new() };
    // The body is not hashed, which S3 allows: in a debug build hashing would take longer than everything else.
    let hash = if body.is_empty() { sha256_hex(body) } else { "UNSIGNED-PAYLOAD".to_owned() };
    let date = now.format(&time::macros::format_description!("[year][month][day]T[hour][minute][second]Z"));
    let authority = url.authority().to_owned();
    let mut map = HeaderMap::new();
    let own = [("host", authority), ("x-amz-date", date.expect("a date")), ("x-amz-content-sha256", hash.clone())];
    let all = own.into_iter().chain(headers.iter().map(|(name, value)| (*name, (*value).to_owned())));
    for (name, value) in all {
        let name: HeaderName = name.parse().expect("a header name");
        map.insert(name, HeaderValue::from_str(&value).expect("a header value"));
    }
    let sign = || -> Result<String, s3::error::S3Error> {
        // Not `canonical_request`, which sorts whole lines: a name that begins another one (`x-amz-copy-source` and
        // `x-amz-copy-source-range`) is then in another order than in `SignedHeaders`, and every server refuses the
        // request.
        let mut lines: Vec<_> =
            map.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap_or_default())).collect();
        lines.sort_unstable();
        let lines: String = lines.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
        let (path, query) = (signing::canonical_uri_string(url), signing::canonical_query_string(url));
        let names = signing::signed_header_string(&map);
        let canonical = format!("{method}\n{path}\n{query}\n{lines}\n{names}\n{hash}");
        let text = signing::string_to_sign(&now, &region, &canonical)?;
        let key = signing::signing_key(&now, &keys.secret, &region, "s3")?;
        let signature = hex(&hmac_sha256(&key, text.as_bytes()));
        signing::authorization_header(&keys.access, &now, &region, &names, &signature)
    };
    let authorization = sign().expect("a request can be signed");
    map.insert("authorization", authorization.parse().expect("a header value"));
    map
}

/// HMAC (RFC 2104), because `rust-s3` does not export the last step of signing.
fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    use sha2::{Digest, Sha256};
    let mut block = [0; 64];
    assert!(key.len() <= block.len(), "a signing key is a hash");
    block[..key.len()].copy_from_slice(key);
    let inner = Sha256::new().chain_update(block.map(|byte| byte ^ 0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(block.map(|byte| byte ^ 0x5c)).chain_update(inner).finalize().into()
}
