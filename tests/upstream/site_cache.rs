//! A site of boxes behind one uplink: nginx as `.dist/README.md` configures it, between them and the CDN.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use crate::readme::site_cache;
use crate::world::client::call;
use crate::world::s3_proxy::S3Proxy;
use crate::world::service::Service;
use crate::world::tcp::free_port;
use crate::world::{World, eventually, pattern, skip};

const BOXES: usize = 5;

/// nginx with the configuration in `.dist/README.md`; it ends when dropped.
struct SiteCache {
    process: Child,
    _dir: TempDir,
    url: String,
}

impl SiteCache {
    /// Starts it in front of a CDN. The error says why it did not start.
    fn before(cdn: &str) -> Result<Self, String> {
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let at = |name: &str| dir.path().join(name).display().to_string();
        let replaced = |text: String, from: &str, to: &str| {
            assert!(text.contains(from), "the configuration has no {from}");
            text.replace(from, to)
        };
        let site = replaced(site_cache(), "https://cdn.example.com", cdn);
        let site = replaced(site, "/var/cache/nginx/models", &at("cache"));
        let site = replaced(site, "listen 8333", &format!("listen 127.0.0.1:{port}"));
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {};\n", at(kind)))
            .concat();
        let log = at("error.log");
        let whole = format!(
            "daemon off;\npid {};\nerror_log {log};\nevents {{}}\nhttp {{\naccess_log off;\n{temporary}{site}}}\n",
            at("pid")
        );
        std::fs::write(dir.path().join("nginx.conf"), whole).unwrap();
        let program = ["/usr/sbin/nginx", "/usr/bin/nginx"].into_iter().find(|path| Path::new(path).exists());
        let process = Command::new(program.ok_or("nginx is not installed")?)
            .args(["-p", &at(""), "-e", &log, "-c", &at("nginx.conf")])
            // By default its workers run as nobody, who may not enter the directory.
            .args(["-g", if Path::new("/root").metadata().is_ok() && is_root() { "user root;" } else { "" }])
            .stdin(Stdio::null())
            .spawn()
            .map_err(|error| format!("nginx: {error}"))?;
        let cache = Self { process, _dir: dir, url: format!("http://127.0.0.1:{port}") };
        let address = format!("127.0.0.1:{port}");
        eventually(Duration::from_secs(30), "nginx serves", || {
            call(&address, Duration::from_secs(2), "GET", "/", &[], b"").is_ok()
        });
        Ok(cache)
    }
}

fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| status.contains("\nUid:\t0\t"))
}

impl Drop for SiteCache {
    fn drop(&mut self) {
        // With SIGTERM it also ends its workers.
        crate::world::process::signal(self.process.id(), libc::SIGTERM);
        let _ = self.process.wait();
    }
}

#[test]
fn five_boxes_behind_nginx_load_a_model_through_the_uplink_once() {
    let (world, uplink) = World::behind_proxy();
    let cache = match SiteCache::before(&uplink.url()) {
        Ok(cache) => cache,
        Err(why) => return skip("five boxes behind nginx", &why),
    };
    let yaml = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&yaml, world.s3.cdn_yaml_at(&cache.url)).unwrap();
    let a_box = || {
        let service = Service::builder().api(&world.api).env("CDN_CONFIG_PATH", yaml.path()).start();
        assert_eq!(service.login().status, 200);
        service
    };
    let boxes: Vec<_> = (0..BOXES).map(|_| a_box()).collect();
    let size = if std::env::var_os("CI").is_some() { 256 << 20 } else { 48 << 20 };
    for version in 1..=2 {
        let bytes = pattern(size, version);
        // A box of the site uploads the second version, through the cache.
        let uploader = if version == 1 { &world.service } else { &boxes[0] };
        assert_eq!(uploader.upload(&world.folder, "m.bin", &bytes).status, 200, "version {version}");
        let _ = std::fs::remove_dir_all(boxes[0].cache_dir().join(&world.folder));
        uplink.clear_requests();
        thread::scope(|scope| {
            for service in &boxes {
                let bytes = &bytes;
                let folder = &world.folder;
                scope.spawn(move || {
                    let reply = service.load(folder, "m.bin");
                    assert_eq!(reply.status, 200, "{}", reply.text());
                    assert!(reply.body == *bytes, "version {version}: wrong bytes were loaded");
                });
            }
        });
        assert_uplink(&uplink, size as u64, version);
        // A range that only one box has asked for is cached as well.
        let _ = std::fs::remove_dir_all(boxes[1].cache_dir().join(&world.folder));
        uplink.clear_requests();
        let path = format!("/load/m.bin?folder={}", world.folder);
        let reply = boxes[1].call("POST", &path, &[("Range", "bytes=5000000-5999999")], b"").unwrap();
        assert_eq!(reply.status, 206, "{}", reply.text());
        assert!(reply.body == bytes[5_000_000..6_000_000]);
        assert_eq!(uplink.bytes_sent("GET", "m.bin"), 0);
    }
}

fn assert_uplink(uplink: &S3Proxy, size: u64, version: u64) {
    let crossed = uplink.bytes_sent("GET", "");
    println!("version {version}: {crossed} bytes of a model of {size} crossed the uplink");
    assert!(crossed >= size, "version {version}: {crossed} bytes cannot be the model");
    assert!(crossed <= size + size / 10, "version {version}: {crossed} bytes crossed the uplink");
}
