//! Uploads, loads, ranges and versions on S3 servers by others, each of which reads the protocol in its own way.

use std::thread;
use std::time::Duration;

use crate::world::s3::S3;
use crate::world::s3_servers::OtherServer;
use crate::world::weed::Weed;
use crate::world::{World, pattern, skip};

const MIB: usize = 1 << 20;

/// Uploads three versions of two models, one stored in one piece and one in parts, and loads each cold, warm and in a range.
fn works_on(name: &str, s3: S3) {
    let yaml = s3.cdn_yaml();
    let world = World::at(s3, &yaml, |builder| builder);
    for version in 1..=3 {
        // Some have times in whole seconds only, and the order of two generations of one second is unknown.
        thread::sleep(Duration::from_millis(1100));
        for (model, size) in [("short.bin", 300_000), ("long model.bin", 20 * MIB + 5)] {
            let bytes = pattern(size, version);
            world.upload(model, &bytes);
            world.forget(model);
            let range = [("Range", "bytes=200000-250000")];
            let path = format!("/load/{}?folder={}", model.replace(' ', "%20"), world.folder);
            let reply = world.service.call("POST", &path, &range, b"").unwrap();
            assert_eq!(reply.status, 206, "{name}, version {version} of {model}: {}", reply.text());
            assert!(reply.body == bytes[200_000..=250_000], "{name}: another range of {model} was loaded");
            world.forget(model);
            world.loads(model, &bytes);
            world.loads(model, &bytes);
            // What old readers get.
            let small = world.api.file(&world.folder, &format!("{model}.small")).unwrap();
            let big = world.s3.get(&world.folder, &format!("{model}.big")).unwrap();
            let joined = crate::world::protocol::join(&small, &big, &Default::default());
            assert!(joined.is_ok_and(|joined| joined == bytes), "{name}: the plain key of {model} is another version");
        }
    }
    // Both models: two generations with their manifests, and the plain key.
    let keys = world.keys();
    let of = |end: &str| keys.iter().filter(|key| key.ends_with(end)).count();
    assert_eq!((of(".big"), of(".manifest")), (6, 4), "{name}: {keys:?}");
}

fn works_on_other(name: &str) {
    match OtherServer::start(name) {
        Ok(server) => works_on(name, server.s3()),
        Err(why) => skip(&format!("uploads and loads on {name}"), &why),
    }
}

#[test]
fn the_store_of_these_tests() {
    works_on("s3s-fs", S3::start());
}

#[test]
fn seaweedfs() {
    match Weed::start() {
        Ok(weed) => {
            let Weed { s3, .. } = &weed;
            works_on("SeaweedFS", S3::at(s3.endpoint(), s3.downloader().clone(), s3.uploader().clone()));
        }
        Err(why) => skip("uploads and loads on SeaweedFS", &why),
    }
}

#[test]
fn moto() {
    works_on_other("moto");
}

#[test]
fn s3rver() {
    works_on_other("s3rver");
}

/// Its gateway has MinIO's front end. It is left out where it is not installed, even in CI.
#[test]
fn juicefs() {
    match OtherServer::start("juicefs") {
        Ok(server) => works_on("juicefs", server.s3()),
        Err(why) => {
            let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("no JuiceFS: {why}\n"));
        }
    }
}
