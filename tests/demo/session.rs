//! Everything that runs during the demo: two servers in this process, and the loader as a child.

use std::sync::Arc;
use std::time::Duration;

use crate::model::Model;
use crate::table::counted;
use crate::world::resource_api::ResourceApi;
use crate::world::s3::S3;
use crate::world::service::Service;

/// Everything that a demo has started. The loader ends first.
pub struct Session {
    service: Arc<Service>,
    /// Accounts, keys and small parts.
    pub api: ResourceApi,
    /// The CDN.
    pub s3: S3,
    /// The model's folder, which is also the CDN's bucket.
    pub folder: String,
    /// The model that is uploaded.
    pub model: Model,
    /// SHA-256 of it, once it was uploaded.
    pub sha256: String,
    /// How long one call may take.
    pub timeout: Duration,
}

impl Session {
    /// Starts all three.
    pub fn start(model: Model) -> Result<Self, String> {
        let s3 = S3::start();
        // In a store that is not the demo's own, nothing is overwritten.
        let folder = if s3.is_built_in() { "models".to_owned() } else { s3.bucket("models") };
        s3.create_bucket(&folder);
        let api = ResourceApi::start();
        api.put_file("", "cdn.yaml", s3.cdn_yaml());
        // Time for 1 MB/s, which nothing here falls below for long.
        let timeout = Duration::from_secs(60 + model.size / 1_000_000);
        let service = Service::builder().api(&api).timeout(timeout).try_start()?;
        Ok(Self { service: Arc::new(service), api, s3, folder, model, sha256: String::new(), timeout })
    }

    /// The loader.
    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// What is about to happen, for a newcomer.
    pub fn introduction(&self) -> String {
        let (api, s3, loader) = (self.api.url(), self.s3.endpoint(), self.service.url(""));
        let width = [&api, s3, &loader].map(str::len).into_iter().max().unwrap_or_default();
        let Model { name, size, .. } = &self.model;
        format!(
            "Running now, on this machine only:\n\
             \x20 Resource API  {api:<width$}  accounts, keys, small parts (reference server)\n\
             \x20 CDN           {s3:<width$}  an S3 store for big parts\n\
             \x20 loader        {loader:<width$}  the program itself, process {}\n\
             \n\
             The demo logs in and uploads a model: the loader encrypts it and splits it in two,\n\
             a small part for the Resource API and a big part for the CDN. Then it loads the\n\
             model: the loader fetches both parts, joins and decrypts them. Cold, the big part\n\
             comes from the CDN; warm, from the loader's own cache.\n\
             \n\
             Model: {}, {}, as {}/{name}\n",
            self.service.pid(),
            self.model.description(),
            counted(*size),
            self.folder,
        )
    }

    /// What the demo has shown.
    pub fn conclusion(&self) -> String {
        let peak = self.service.vm_hwm_kib() as f64 * 1024.0 / 1e6;
        let build = if cfg!(debug_assertions) { "; a debug build, so try --release" } else { "" };
        format!(
            "Speed:   both servers, the loader and the demo share this machine{build}\n\
             Memory:  the loader never used more than {peak:.1} MB\n\
             SHA-256: {}\n\
             All bytes matched: both loads gave the {} uploaded.",
            self.sha256,
            counted(self.model.size)
        )
    }
}
