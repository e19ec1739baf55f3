//! Uploads that are sent to the CDN while they are received, and those that must not be.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::world::client::segment;
use crate::world::multipart::Form;
use crate::world::raw::{Reply, Stream, request_from};
use crate::world::resource_api::Fault as ApiFault;
use crate::world::s3_fault::Fault;
use crate::world::s3_proxy::S3Proxy;
use crate::world::{PatternReader, World, eventually, pattern, sha256_hex};

const MIB: u64 = 1 << 20;
/// The size of a part in the CDN.
const PART: u64 = 16 * MIB;
const LONG: u64 = 5 * PART;

/// A body that runs a check once when `at` bytes of it have been read.
struct Watched<R, F> {
    from: R,
    at: u64,
    look: Option<F>,
}

impl<R: Read, F: FnOnce()> Read for Watched<R, F> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(out)?;
        match self.at.checked_sub(count as u64) {
            Some(left) => self.at = left,
            None => {
                if let Some(look) = self.look.take() {
                    look();
                }
            }
        }
        Ok(count)
    }
}

/// `POST /upload` with the folder in the query, a header or the form.
fn upload(
    world: &World,
    query: &str,
    before: &[(&str, &str)],
    after: &[(&str, &str)],
    length: u64,
    from: impl Read + Send,
) -> io::Result<Reply> {
    let form = Form::new("long.bin", before, after);
    let headers = [("Content-Type", form.content_type.as_str())];
    let stream = Stream::connect(world.service.address())?;
    let path = format!("/upload/{}{query}", segment("long.bin"));
    request_from(stream, "POST", &path, &headers, form.length(length), form.around(from))
}

fn spooled_bytes(world: &World) -> u64 {
    let files = std::fs::read_dir(world.service.cache_dir().join(".spool")).into_iter().flatten().flatten();
    files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
}

fn parts(proxy: &S3Proxy) -> usize {
    proxy
        .requests()
        .iter()
        .filter(|request| request.path.contains("partNumber=") && request.status == Some(200))
        .count()
}

#[test]
fn parts_are_stored_while_the_rest_is_received_and_few_of_them_wait() {
    let (world, proxy) = World::behind_proxy();
    let folder = world.folder.clone();
    let query = format!("?folder={folder}");
    for (version, in_query) in [(1, false), (2, true)] {
        proxy.clear_requests();
        let (stored, most) = (AtomicU64::new(0), AtomicU64::new(0));
        let watched = Watched {
            from: PatternReader::new(LONG, version),
            at: LONG - MIB,
            look: Some(|| {
                // Sends nothing more until the earlier parts are stored.
                eventually(Duration::from_secs(30), "parts are stored", || parts(&proxy) >= 4);
                stored.store(parts(&proxy) as u64, Ordering::SeqCst);
            }),
        };
        let ended = AtomicBool::new(false);
        let reply = thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::SeqCst) {
                    most.fetch_max(spooled_bytes(&world), Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(2));
                }
            });
            let folder = [("folder", folder.as_str())];
            let reply = if in_query {
                upload(&world, &query, &[], &[], LONG, watched)
            } else {
                upload(&world, "", &folder, &[], LONG, watched)
            };
            ended.store(true, Ordering::SeqCst);
            reply.unwrap()
        });
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(stored.into_inner(), 4);
        let most = most.into_inner();
        assert!(most <= 4 * PART, "{most} bytes waited in local storage");
        assert_eq!(world.service.spooled(), 0);
        world.forget("long.bin");
        world.loads("long.bin", &pattern(LONG as usize, version));
    }
}

/// The usual form: the folder comes last.
#[test]
fn a_folder_that_comes_last_is_spooled_and_one_that_contradicts_is_refused() {
    let (world, proxy) = World::behind_proxy();
    let length = 2 * PART;
    let watched = Watched {
        from: PatternReader::new(length, 1),
        at: length - MIB,
        look: Some(|| assert_eq!(proxy.count("", "long.bin"), 0)),
    };
    let reply = upload(&world, "", &[], &[("folder", &world.folder)], length, watched).unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    world.loads("long.bin", &pattern(length as usize, 1));
    let keys = world.keys();

    let query = format!("?folder={}", world.folder);
    let reply = upload(&world, &query, &[], &[("folder", "another")], length, PatternReader::new(length, 2)).unwrap();
    assert_eq!(reply.status, 422);
    assert!(reply.detail().contains("name different folders"), "{}", reply.detail());
    let reply = upload(&world, "?folder=no/name", &[], &[], 4, &b"data"[..]).unwrap();
    assert_eq!(reply.status, 422);
    eventually(Duration::from_secs(20), "the parts are aborted", || proxy.count("DELETE", "uploadId=") == 1);
    assert_eq!((world.keys(), world.service.spooled()), (keys, 0));
}

#[test]
fn a_client_that_goes_away_leaves_nothing_in_the_cdn() {
    let (world, proxy) = World::behind_proxy();
    let form = Form::new("long.bin", &[("folder", &world.folder)], &[]);
    let mut stream = Stream::connect(world.service.address()).unwrap();
    let head = format!(
        "POST /upload/long.bin HTTP/1.1\r\nHost: localhost\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n",
        form.content_type,
        form.length(LONG)
    );
    stream.write_all(head.as_bytes()).unwrap();
    io::copy(&mut form.around(PatternReader::new(LONG, 1)).take(3 * PART), &mut stream).unwrap();
    eventually(Duration::from_secs(30), "a part is stored", || parts(&proxy) > 0);
    drop(stream);
    eventually(Duration::from_secs(30), "the parts are aborted", || {
        proxy.requests().iter().any(|request| request.method == "DELETE" && request.status == Some(204))
    });
    eventually(Duration::from_secs(10), "local storage is free", || world.service.spooled() == 0);
    assert!(world.keys().is_empty(), "{:?}", world.keys());
}

/// If the service gave up, the whole transfer would be lost, and not every client can send it again.
#[test]
fn an_outage_in_the_second_part_costs_time_only() {
    let (world, proxy) = World::behind_proxy();
    proxy.fault("PUT", "partNumber=2", Fault::Reset, Some(2));
    proxy.fault("POST", "uploadId=", Fault::Status(503), Some(3));
    let watched = Watched {
        from: PatternReader::new(LONG, 1),
        at: LONG / 2,
        look: Some(|| {
            proxy.down();
            thread::sleep(Duration::from_millis(700));
            proxy.up();
        }),
    };
    let reply = upload(&world, "", &[("folder", &world.folder)], &[], LONG, watched).unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    world.loads("long.bin", &pattern(LONG as usize, 1));
}

#[test]
fn a_generation_whose_commit_was_refused_is_deleted() {
    let world = World::new();
    let refusal = r#"{"ErrorCode":30,"Message":"quota"}"#.to_owned();
    for (version, length) in [(1, 400_000), (2, 2 * PART)] {
        let path = format!("/resources/{}", world.folder);
        world.api.fault(&path, ApiFault::Status(409, refusal.clone()), None);
        let reply =
            upload(&world, "", &[("folder", &world.folder)], &[], length, PatternReader::new(length, version)).unwrap();
        assert!(reply.status == 500 && reply.detail().contains("quota"), "{}", reply.text());
        assert!(world.keys().is_empty(), "{:?}", world.keys());
        world.api.clear_faults();
    }
    world.upload("m.bin", b"model");
    world.loads("m.bin", b"model");
}

/// An uncommitted generation may belong to another box that is about to commit it, so it is removed with the upload after the next.
#[test]
fn the_generation_in_use_outlives_a_failed_upload_before_the_next_one() {
    for old_readers in ["true", "false"] {
        let world = World::with(|builder| builder.env("OLD_READERS", old_readers));
        let generation = |small: &[u8]| format!("m.bin.{}.big", &sha256_hex(small)[..16]);
        world.upload("m.bin", &pattern(100_000, 1));
        let in_force = generation(&world.api.file(&world.folder, "m.bin.small").unwrap());
        thread::sleep(Duration::from_millis(20));
        let failed = sha256_hex(b"a small part that was never stored");
        let key = format!("m.bin.{}.big", &failed[..16]);
        world.s3.put(&world.folder, &key, b"x", &[("small-sha256", &failed)]);
        thread::sleep(Duration::from_millis(20));
        world.upload("m.bin", &pattern(100_000, 2));
        let keys = world.keys();
        assert!(keys.contains(&in_force), "OLD_READERS={old_readers}: {keys:?}");
        assert!(keys.contains(&key), "OLD_READERS={old_readers}: {keys:?}");
        assert_eq!(keys.contains(&"m.bin.big".to_owned()), old_readers == "true", "{keys:?}");
        world.forget("m.bin");
        world.loads("m.bin", &pattern(100_000, 2));
        thread::sleep(Duration::from_millis(20));
        world.upload("m.bin", &pattern(100_000, 3));
        let keys = world.keys();
        assert!(!keys.contains(&key) && !keys.contains(&in_force), "OLD_READERS={old_readers}: {keys:?}");
    }
}

/// Another box has deleted the generation as unused. With old readers, the failing copy to the plain key would show that.
#[test]
fn without_old_readers_a_generation_that_was_deleted_before_its_commit_is_stored_again() {
    let world = World::with(|builder| builder.env("OLD_READERS", "false"));
    world.api.fault(&format!("/resources/{}", world.folder), ApiFault::Delay(Duration::from_millis(500)), Some(1));
    thread::scope(|scope| {
        scope.spawn(|| world.upload("m.bin", &pattern(100_000, 1)));
        while world.api.awaits_a_request() {
            thread::sleep(Duration::from_millis(5));
        }
        for key in world.keys() {
            world.s3.delete(&world.folder, &key);
        }
    });
    world.forget("m.bin");
    world.loads("m.bin", &pattern(100_000, 1));
}
