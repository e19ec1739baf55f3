//! What most tests start from: a Resource API, an S3 server with a bucket, and a loader that is logged in.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use super::resource_api::ResourceApi;
use super::s3::S3;
use super::s3_proxy::S3Proxy;
use super::service::{Service, ServiceBuilder};

/// A site with one box.
pub struct World {
    pub api: ResourceApi,
    pub s3: S3,
    /// This test's bucket, and so its folder.
    pub folder: String,
    pub service: Service,
}

impl World {
    /// Starts everything, and logs the loader in.
    pub fn new() -> Self {
        Self::with(|builder| builder)
    }

    /// The same, with more configuration for the loader.
    pub fn with(configure: impl FnOnce(ServiceBuilder) -> ServiceBuilder) -> Self {
        let s3 = S3::start();
        let yaml = s3.cdn_yaml();
        Self::at(s3, &yaml, configure)
    }

    /// The same with a proxy between the loader and the S3 server.
    pub fn behind_proxy() -> (Self, S3Proxy) {
        Self::behind_proxy_with(|builder| builder)
    }

    /// The same, with more configuration for the loader.
    pub fn behind_proxy_with(configure: impl FnOnce(ServiceBuilder) -> ServiceBuilder) -> (Self, S3Proxy) {
        let s3 = S3::start();
        let proxy = S3Proxy::before(&s3);
        let yaml = s3.cdn_yaml_at(&proxy.url());
        (Self::at(s3, &yaml, configure), proxy)
    }

    /// The same with an S3 server that exists already, at the address in the CDN configuration.
    pub fn at(s3: S3, cdn_yaml: &str, configure: impl FnOnce(ServiceBuilder) -> ServiceBuilder) -> Self {
        let api = ResourceApi::start();
        api.put_file("", "cdn.yaml", cdn_yaml);
        let folder = s3.new_bucket("models");
        let service = configure(Service::builder().api(&api)).start();
        let world = Self { api, s3, folder, service };
        world.login();
        world
    }

    /// A second box of the same installation.
    pub fn another_box(&self) -> Service {
        let service = Service::builder().api(&self.api).start();
        let reply = service.login();
        assert_eq!(reply.status, 200, "{}", reply.text());
        service
    }

    pub fn login(&self) {
        let reply = self.service.login();
        assert_eq!(reply.status, 200, "{}", reply.text());
    }

    pub fn upload(&self, name: &str, bytes: &[u8]) {
        let reply = self.service.upload(&self.folder, name, bytes);
        assert_eq!((reply.status, reply.text().as_str()), (200, r#"{"status":"ok"}"#));
    }

    /// Loads a model, and compares its bytes.
    pub fn loads(&self, name: &str, expected: &[u8]) {
        let reply = self.service.load(&self.folder, name);
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.header("content-length"), Some(expected.len().to_string().as_str()));
        assert_eq!(reply.header("content-type"), Some("application/octet-stream"));
        assert!(reply.body == expected, "wrong bytes were loaded");
    }

    /// The cached file of a model that was loaded or uploaded.
    pub fn cached(&self, name: &str) -> PathBuf {
        self.service.cached(&self.folder, name)
    }

    /// Removes the model from the cache, and the record that this box ever had a verified version of it.
    pub fn forget(&self, name: &str) {
        // A client has the last bytes of its load before the file is in place, and a version that is still in memory is not fetched
        // again. Some tests call this on purpose while a load runs.
        let deadline = Instant::now() + Duration::from_secs(10);
        let works = || {
            let metrics =
                self.service.call("GET", "/metrics", &[], b"").map_or_else(|_| String::new(), |reply| reply.text());
            let idle = metrics.is_empty() || metrics.contains("\nloader_handler_threads_busy 0\n");
            !idle || self.service.has_thread("download")
        };
        while works() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        let big = self.service.cache_file(&self.folder, name);
        for suffix in ["", ".json", ".part", ".part.json", ".part.source.json", ".proven"] {
            let mut path = big.clone().into_os_string();
            path.push(suffix);
            let _ = std::fs::remove_file(path);
        }
    }

    /// The keys in the test's bucket.
    pub fn keys(&self) -> Vec<String> {
        self.s3.list(&self.folder)
    }
}
