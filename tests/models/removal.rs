//! `DELETE /models/{folder}/{filename}`.

use std::fs;
use std::io::{Read, Write};
use std::time::Duration;

use crate::world::s3_fault::Fault;
use crate::world::service::Service;
use crate::world::{World, eventually, pattern};

const MIB: usize = 1 << 20;

fn delete(service: &Service, folder: &str, name: &str) -> (u16, String) {
    let reply = service.call("DELETE", &format!("/models/{folder}/{name}"), &[], b"").unwrap();
    (reply.status, reply.text())
}

fn ok() -> (u16, String) {
    (200, r#"{"status":"ok"}"#.into())
}

fn files(world: &World) -> Vec<String> {
    let directory = fs::read_dir(world.service.cache_dir().join(&world.folder)).unwrap();
    let mut files: Vec<_> = directory.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    files
}

#[test]
fn a_model_goes_with_all_its_files_and_loads_again() {
    let world = World::with(|builder| builder.env("OFFLINE_HOURS", "1"));
    let bytes = pattern(2 * MIB, 1);
    world.upload("a b.bin", &bytes);
    world.loads("a b.bin", &bytes);
    assert_eq!(
        files(&world),
        ["big", "big.json", "big.proven", "big.small.json"].map(|kind| format!("a b.bin.{kind}"))
    );
    assert_eq!(delete(&world.service, &world.folder, "a%20b.bin"), ok());
    assert_eq!(files(&world), ["a b.bin.big.proven"]);
    let status = world.service.get("/status").json();
    assert_eq!((&status["cache"]["files"], &status["cache"]["bytes"]), (&0.into(), &0.into()));
    let (code, detail) = delete(&world.service, &world.folder, "a%20b.bin");
    assert_eq!((code, detail.as_str()), (404, r#"{"detail":"the model is not in the cache"}"#));
    world.loads("a b.bin", &bytes);

    for (folder, name, code) in
        [("models", "..%2Fa", 422), ("No", "a", 422), ("models", "", 422), ("models", "a/b", 404)]
    {
        assert_eq!(delete(&world.service, folder, name).0, code, "{folder}/{name}");
    }
    let reply = world.service.get(&format!("/models/{}/a", world.folder));
    assert_eq!((reply.status, reply.header("allow")), (405, Some("DELETE, OPTIONS")));
}

#[test]
fn an_unfinished_download_can_be_removed_while_a_client_reads_it() {
    let (world, proxy) = World::behind_proxy();
    let bytes = pattern(4 * MIB, 1);
    world.upload("m.bin", &bytes);
    world.forget("m.bin");
    proxy.fault("GET", "m.bin", Fault::Trickle(200_000), None);
    let mut client = world.service.connect();
    let body = format!(r#"{{"folder":"{}"}}"#, world.folder);
    let length = body.len();
    write!(
        client,
        "POST /load/m.bin HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let part = format!("{}.part", world.service.cache_file(&world.folder, "m.bin").display());
    eventually(Duration::from_secs(10), "the download has begun", || fs::exists(&part).unwrap());
    let mut answer = vec![0; 1_500_000];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(delete(&world.service, &world.folder, "m.bin"), ok());
    // Another load starts again, while the first continues.
    proxy.clear_faults();
    world.loads("m.bin", &bytes);
    client.read_to_end(&mut answer).unwrap();
    assert!(answer.ends_with(&bytes));
    eventually(Duration::from_secs(10), "the model is in place", || {
        files(&world) == ["m.bin.big", "m.bin.big.json", "m.bin.big.proven"]
    });
    proxy.down();
    world.loads("m.bin", &bytes);
}
