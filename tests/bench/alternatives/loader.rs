//! The loader's own row.

use std::fs;
use std::time::{Duration, Instant};

use super::pipeline::Consumer;
use super::traces::Traces;
use super::{Measured, Models, ROUNDS, change_a_byte, verdict};
use crate::commands;
use crate::http;
use crate::world::resource_api::ResourceApi;
use crate::world::service::Service;

const NAME: &str = "main.bin";
const DAMAGED: &str = "damaged.bin";

/// Measures the loader.
pub fn measure(models: &Models) -> Measured {
    let Models { weed, bucket, main, damaged } = models;
    let api = ResourceApi::start();
    api.put_file("", "cdn.yaml", weed.s3.cdn_yaml());
    // This loader encrypts the plaintexts; it is not measured, and goes with them.
    let uploader = Service::builder().api(&api).timeout(Duration::from_secs(600)).start();
    assert_eq!(uploader.login().status, 200);
    for (name, bytes) in [(NAME, *main), (DAMAGED, *damaged)] {
        let reply = uploader.upload_reader(bucket, name, bytes, Models::plain(bytes));
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    drop(uploader);

    let loader = Service::builder().api(&api).timeout(Duration::from_secs(600)).start();
    assert_eq!(loader.login().status, 200);
    let name = format!("`loader`: {}", env!("CARGO_PKG_VERSION"));
    println!("  {name}");
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    loader.reset_hwm();
    for _ in 0..ROUNDS {
        forget(&loader, bucket);
        commands::settle();
        cold.push(http::load(loader.address(), bucket, NAME, *main).total);
        loader.cached(bucket, NAME);
        commands::settle();
        warm.push(http::load(loader.address(), bucket, NAME, *main).total);
    }
    let peak_kib = loader.vm_hwm_kib();
    let traces = Traces::of(*main, main / 2).in_files(loader.dir());

    // First with the right copy in the cache, then without.
    assert_eq!(load(&loader, models), "right bytes");
    change_a_byte(&loader.cached(bucket, DAMAGED));
    let in_the_cache = load(&loader, models);
    change_objects(models);
    forget(&loader, bucket);
    let in_the_cdn = load(&loader, models);
    let damaged = format!("in the cache: {in_the_cache}; in the CDN: {in_the_cdn}");
    Measured { name, cold, warm, peak_kib, traces, damaged }
}

/// Loads the damaged model, and says what a program got.
fn load(loader: &Service, models: &Models) -> String {
    let mut consumer = Consumer::comparing(Models::plain(models.damaged));
    let started = Instant::now();
    let download = loader.load_to(&models.bucket, DAMAGED, &mut consumer);
    let result = match (download.status, download.error) {
        (200, None) => Ok(()),
        (200, Some(error)) => Err(error),
        (status, _) => {
            consumer = Consumer::counting();
            Err(format!("status {status}"))
        }
    };
    println!("  {:.1} s: {result:?}", started.elapsed().as_secs_f64());
    verdict(&result, &consumer, models.damaged, loader.dir())
}

fn forget(loader: &Service, bucket: &str) {
    let _ = fs::remove_dir_all(loader.cache_dir().join(bucket));
}

/// Changes a byte in every copy of the model that the CDN has.
fn change_objects(models: &Models) {
    let s3 = &models.weed.s3;
    let mut changed = 0;
    for key in s3.list(&models.bucket).into_iter().filter(|key| key.starts_with(DAMAGED)) {
        let mut bytes = s3.get(&models.bucket, &key).expect("it was listed");
        if bytes.len() as u64 > models.damaged / 2 {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
            let metadata = s3.head_metadata(&models.bucket, &key).expect("it was listed");
            let metadata: Vec<_> = metadata.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            s3.put(&models.bucket, &key, &bytes, &metadata);
            changed += 1;
        }
    }
    assert!(changed > 0, "the CDN has no object of the model");
}
