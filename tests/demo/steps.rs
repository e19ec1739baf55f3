//! The steps of the demo, a row of the table each.

use std::fs;
use std::io::ErrorKind;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::model::HashReader;
use crate::session::Session;
use crate::table::Done;
use crate::world::client::{self, Start};
use crate::world::docker;
use crate::world::protocol;
use crate::world::raw::Reply;
use crate::world::resource_api::{EMAIL, PASSWORD};

/// How long the loader may take to put a finished download in its place in the cache.
const CACHED_WITHIN: Duration = Duration::from_secs(30);

/// One step.
pub struct Step {
    /// Its row's first column.
    pub title: &'static str,
    /// Does it; the error is a sentence.
    pub run: fn(&mut Session) -> Result<Done, String>,
}

/// All steps, in order.
pub fn all() -> Vec<Step> {
    let mut steps = vec![
        Step { title: "log in", run: log_in },
        Step { title: "upload (encrypt, split, store both parts)", run: upload },
        Step { title: "load, cold (big part from the CDN)", run: load_cold },
        Step { title: "load, warm (big part from the cache)", run: load_warm },
    ];
    if docker::answering().is_some() {
        steps.push(Step { title: "unlock (decrypt images into docker load)", run: unlock });
    }
    steps
}

/// Unlocks an archive with a small image, which is removed again.
fn unlock(session: &mut Session) -> Result<Done, String> {
    const FRAGMENT: &[u8] = b"the key fragment of the demo";
    let engine = docker::answering().ok_or("the Docker engine went away")?;
    let tag = format!("loader-demo-{}:1.0", std::process::id());
    let archive = docker::saved_images(&[&tag], 8 << 20, false);
    session.api.set_key_fragment(FRAGMENT);
    fs::write(session.service().images_path(), protocol::encrypt(&archive, FRAGMENT))
        .map_err(|error| format!("the archive cannot be written: {error}"))?;
    let start = Instant::now();
    let body = json!({ "email": EMAIL, "password": PASSWORD }).to_string();
    let json = [("Content-Type", "application/json")];
    accepted(&session.service().call("POST", "/unlock", &json, body.as_bytes())?)?;
    let status = loop {
        let status = session.service().call("GET", "/unlock/status", &[], b"")?.json();
        if status["state"] == "ready" || status["state"] == "error" || start.elapsed() > session.timeout {
            break status;
        }
        thread::sleep(Duration::from_millis(10));
    };
    let time = start.elapsed();
    let there = engine.has(&tag);
    engine.remove(&tag);
    if status["state"] != "ready" || !there {
        return Err(format!("the unlock ended as {status}"));
    }
    Ok(Done { bytes: Some(archive.len() as u64), time, ..Done::default() })
}

fn log_in(session: &mut Session) -> Result<Done, String> {
    let start = Instant::now();
    let body = json!({ "email": EMAIL, "password": PASSWORD }).to_string();
    let json = [("Content-Type", "application/json")];
    accepted(&session.service().call("POST", "/login", &json, body.as_bytes())?)?;
    Ok(Done { time: start.elapsed(), ..Done::default() })
}

fn upload(session: &mut Session) -> Result<Done, String> {
    let model = &session.model;
    let file = model.open().map_err(|error| format!("the model cannot be read: {error}"))?;
    let mut file = HashReader::new(file);
    let start = Instant::now();
    let reply = session.service().try_upload_reader(&session.folder, &model.name, model.size, &mut file)?;
    let time = start.elapsed();
    accepted(&reply)?;
    let (bytes, sha256) = file.finish();
    let parts = stored_parts(session)?;
    session.sha256 = sha256;
    Ok(Done { bytes: Some(bytes), time, parts })
}

/// Looks at what the two servers have stored.
fn stored_parts(session: &Session) -> Result<Vec<(&'static str, u64)>, String> {
    let Session { api, s3, folder, model, .. } = session;
    let small = api.file(folder, &format!("{}.small", model.name)).ok_or("the Resource API has no small part")?;
    let big = s3.request(s3.downloader(), "HEAD", folder, &format!("{}.big", model.name), &[], &[], b"");
    let big = big.header("content-length").filter(|_| big.status == 200).and_then(|length| length.parse().ok());
    let big = big.ok_or("the CDN has no big part")?;
    Ok(vec![("small part, now in the Resource API", small.len() as u64), ("big part, now in the CDN", big)])
}

fn load_cold(session: &mut Session) -> Result<Done, String> {
    // The upload has left the model in the cache.
    let cache = session.service().cache_dir().join(&session.folder);
    match fs::remove_dir_all(&cache) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(format!("the cache cannot be emptied: {error}")),
        _ => load(session),
    }
}

fn load_warm(session: &mut Session) -> Result<Done, String> {
    // The end of a download reaches the client before it is durable, and counts as cached, on the loader's disk.
    let mut record = session.service().cache_file(&session.folder, &session.model.name).into_os_string();
    record.push(".json");
    let deadline = Instant::now() + CACHED_WITHIN;
    while fs::metadata(&record).is_err() {
        if Instant::now() > deadline {
            return Err("the cold load was not kept in the cache".to_owned());
        }
        thread::sleep(Duration::from_millis(10));
    }
    load(session)
}

fn load(session: &Session) -> Result<Done, String> {
    let Session { folder, model, sha256, timeout, .. } = session;
    let path = format!("/load/{}", client::segment(&model.name));
    let body = json!({ "filename": model.name, "folder": folder }).to_string();
    let mut answer = Start::default();
    let download = client::download(session.service().address(), *timeout, &path, body.as_bytes(), &mut answer)?;
    if download.status != 200 {
        accepted(&Reply { status: download.status, headers: Vec::new(), body: answer.0 })?;
    }
    if let Some(why) = download.error {
        return Err(format!("the answer broke off: {why}"));
    }
    if (download.received, &download.sha256) != (model.size, sha256) {
        return Err(format!("other bytes came back than were uploaded ({} of {})", download.received, model.size));
    }
    Ok(Done { bytes: Some(download.received), time: download.total, parts: Vec::new() })
}

fn accepted(reply: &Reply) -> Result<(), String> {
    match reply.status {
        200 => Ok(()),
        status => Err(format!("the loader answered {status}: {}", reply.detail())),
    }
}
