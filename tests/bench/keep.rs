//! The start of a box with a model in `KEEP`: until `/ready` is answered with 200, with the model in the cache and without.
//!
//! A client logs in as soon as `/health` answers. The login with `CREDENTIALS_PATH` would come at a random moment of the first 28
//! seconds, so that a fleet does not log in at once.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use crate::commands;
use crate::figure::{Better, Figure};
use crate::http;
use crate::plan::{Plan, size};
use crate::report::Report;
use crate::start::Started;
use crate::world::resource_api::{EMAIL, PASSWORD, ResourceApi};
use crate::world::service::Service;
use crate::world::weed::Weed;
use crate::world::{PatternReader, eventually};

const NAME: &str = "kept.bin";

/// Measures both.
pub fn measure(plan: &Plan, weed: &Weed, report: &mut Report) {
    report.says("start with KEEP");
    let bucket = weed.s3.new_bucket("bench");
    let api = ResourceApi::start();
    api.put_file("", "cdn.yaml", weed.s3.cdn_yaml());
    let uploader = Service::builder().api(&api).start();
    assert_eq!(uploader.login().status, 200);
    let reply = uploader.upload_reader(&bucket, NAME, plan.kept, PatternReader::new(plan.kept, 23));
    assert_eq!(reply.status, 200, "{}", reply.text());
    drop(uploader);

    let of = |what: &str| format!("start, login and /ready, {} in KEEP {what}", size(plan.kept));
    let mut kept = Figure::new(of("and in the cache"), "ms", Better::Low);
    let mut fetched = Figure::new(of("to be fetched"), "s", Better::Low).limited_by("curl of the object");
    let env = [("RESOURCE_API_URL", api.url()), ("KEEP", format!("{bucket}/{NAME}"))];
    let env = env.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    for _ in 0..plan.rounds {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cached = dir.path().join("models").join(&bucket).join(format!("{NAME}.big"));
        commands::settle();
        fetched.loader.push(until_ready(&dir, &env, &cached) / 1000.0);
        let address = weed.presigned_get(weed.s3.endpoint(), &bucket, &format!("{NAME}.big"));
        fetched.limit.push(commands::curl(&[&address]).0);
        let in_cache = fs::metadata(&cached).and_then(|file| file.modified()).expect("the model is in the cache");
        commands::settle();
        kept.loader.push(until_ready(&dir, &env, &cached));
        let now = fs::metadata(&cached).and_then(|file| file.modified()).expect("the model is in the cache");
        assert_eq!(now, in_cache, "the model was fetched again");
    }
    report.add(kept);
    report.add(fetched);
    weed.delete_bucket(&bucket);
}

/// Milliseconds from the start until `/ready` is answered with 200.
fn until_ready(dir: &TempDir, env: &[(OsString, OsString)], cached: &Path) -> f64 {
    let loader = Started::in_dir(dir.path(), env);
    loader.until("/health");
    http::post(loader.address(), "/login", &json!({ "email": EMAIL, "password": PASSWORD }));
    let took = loader.until("/ready");
    // The end of a download is seen a moment before its file has its name.
    eventually(Duration::from_secs(60), "the model is cached", || cached.exists());
    took
}
