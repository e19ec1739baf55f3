//! `Range` on `/load`: the right bytes, from the right blocks, and never a complete range that is wrong.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

use crate::models::pairs::flip_byte;
use crate::world::raw::Reply;
use crate::world::s3_fault::Fault;
use crate::world::service::Service;
use crate::world::{PatternReader, World, pattern};

const MIB: usize = 1 << 20;

fn ask(service: &Service, folder: &str, name: &str, headers: &[(&str, &str)]) -> Result<Reply, String> {
    let body = format!(r#"{{"filename":"{name}","folder":"{folder}"}}"#);
    let headers = [&[("Content-Type", "application/json")], headers].concat();
    service.call("POST", &format!("/load/{name}"), &headers, body.as_bytes())
}

impl World {
    fn range(&self, name: &str, range: &str) -> Reply {
        ask(&self.service, &self.folder, name, &[("Range", range)]).unwrap()
    }

    /// Asks for a range that must be these bytes of the whole.
    fn gives(&self, name: &str, range: &str, whole: &[u8], first: usize, end: usize) {
        let reply = self.range(name, range);
        assert_eq!(reply.status, 206, "{range} of {}: {}", whole.len(), reply.text());
        let expected = format!("bytes {first}-{}/{}", end - 1, whole.len());
        assert_eq!(reply.header("content-range"), Some(expected.as_str()));
        assert_eq!(reply.header("content-length"), Some((end - first).to_string().as_str()));
        assert_eq!(reply.header("accept-ranges"), Some("bytes"));
        assert!(reply.body == whole[first..end], "{range} of {}: other bytes", whole.len());
    }

    /// Bytes that the service has read so far, from files and sockets.
    fn bytes_read(&self) -> u64 {
        let io = fs::read_to_string(format!("/proc/{}/io", self.service.pid())).unwrap();
        io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
    }
}

#[test]
fn ranges_are_the_bytes_of_the_whole_at_every_border() {
    let world = World::new();
    // Around cipher blocks, the end of the small part, and the checkpoints of the hash.
    for size in [1, 15, 16, 17, 33, 10_191, 10_224, 100_000, 8 * MIB + 3072 - 16, 17 * MIB] {
        let (name, whole) = (format!("m-{size}.bin"), pattern(size, size as u64));
        world.upload(&name, &whole);
        let mut ends =
            vec![0, 1, 15, 16, 17, 32, 3055, 3056, 3057, 3072, 3088, size / 2, size - size.min(16), size - 1];
        ends.extend([8 * MIB, 8 * MIB + 3056, 16 * MIB + 3055].map(|end| end.min(size - 1)));
        ends.retain(|end| *end < size);
        ends.sort_unstable();
        ends.dedup();
        // The first ranges are from chunks that this process has not verified yet, the rest from chunks that it has.
        for (index, first) in ends.iter().enumerate() {
            let last = ends[(index + 1).min(ends.len() - 1)];
            world.gives(&name, &format!("bytes={first}-{last}"), &whole, *first, last + 1);
            world.gives(&name, &format!("bytes={first}-{first}"), &whole, *first, first + 1);
        }
        let middle = size / 2;
        world.gives(&name, &format!("bytes={middle}-"), &whole, middle, size);
        world.gives(&name, "bytes=0-", &whole, 0, size);
        world.gives(&name, "bytes=-1", &whole, size - 1, size);
        world.gives(&name, &format!("bytes=-{}", size + 5), &whole, 0, size);
        world.loads(&name, &whole);
    }
}

#[test]
fn a_cold_range_is_right_and_fills_the_cache() {
    let (world, proxy) = World::behind_proxy();
    let whole = pattern(3 * MIB, 1);
    world.upload("m.bin", &whole);
    for (range, first, end) in
        [("bytes=0-0", 0, 1), ("bytes=2000000-2000009", 2_000_000, 2_000_010), ("bytes=-20", 3 * MIB - 20, 3 * MIB)]
    {
        world.forget("m.bin");
        world.gives("m.bin", range, &whole, first, end);
        proxy.clear_requests();
        world.gives("m.bin", range, &whole, first, end);
        assert_eq!(proxy.count("GET", ".big"), 0, "{range}: it was downloaded again");
        // Loading the whole then downloads only the missing chunks, each once.
        world.loads("m.bin", &whole);
        assert!(proxy.bytes_sent("GET", ".big") <= 3 * MIB as u64, "{range}: {:?}", proxy.requests());
        proxy.clear_requests();
        world.loads("m.bin", &whole);
        assert!(proxy.requests().is_empty(), "{range}: it was downloaded again");
    }
    // From a CDN that does not serve ranges.
    world.forget("m.bin");
    proxy.fault("GET", "m.bin", Fault::IgnoreRange, None);
    world.gives("m.bin", "bytes=100-", &whole, 100, 3 * MIB);
}

#[test]
fn anything_but_one_range_is_the_whole_and_a_range_past_the_end_is_416() {
    let world = World::new();
    let whole = pattern(1000, 1);
    world.upload("m.bin", &whole);
    world.upload("empty.bin", b"");
    for range in ["bytes=0-1,5-6", "bytes=5-2", "bytes=x-", "items=0-5", "bytes=", "0-5"] {
        let reply = world.range("m.bin", range);
        assert_eq!((reply.status, reply.header("content-range")), (200, None), "{range}");
        assert!(reply.body == whole, "{range}");
    }
    for (name, range, length) in [
        ("m.bin", "bytes=1000-", 1000),
        ("m.bin", "bytes=5000-6000", 1000),
        ("m.bin", "bytes=-0", 1000),
        ("empty.bin", "bytes=0-", 0),
    ] {
        let reply = world.range(name, range);
        assert_eq!(reply.status, 416, "{name} {range}");
        assert_eq!(reply.header("content-range"), Some(format!("bytes */{length}").as_str()));
        assert!(reply.detail().contains(&length.to_string()), "{}", reply.detail());
    }
    // HEAD works where GET does, which this endpoint does not have.
    let head = world.service.call("HEAD", "/load/m.bin", &[("Range", "bytes=0-1")], b"").unwrap();
    assert_eq!((head.status, head.header("allow")), (405, Some("POST, OPTIONS")));
    let head = world.service.call("HEAD", "/health", &[("Range", "bytes=0-1")], b"").unwrap();
    assert_eq!((head.status, head.header("accept-ranges")), (200, None));
}

#[test]
fn the_entity_tag_names_the_version() {
    let world = World::new();
    let whole = pattern(5000, 1);
    world.upload("m.bin", &whole);
    let tag = world.service.load(&world.folder, "m.bin").header("etag").unwrap().to_owned();
    assert!(tag.len() == 34 && tag.starts_with('"') && tag.ends_with('"'), "{tag}");
    assert_eq!(world.range("m.bin", "bytes=9-").header("etag"), Some(tag.as_str()));
    let small = world.api.file(&world.folder, "m.bin.small").unwrap();
    assert!(!crate::world::sha256_hex(&small).contains(tag.trim_matches('"')), "the tag contains the object's name");
    let conditional = |tag: &str| {
        ask(&world.service, &world.folder, "m.bin", &[("Range", "bytes=10-19"), ("If-Range", tag)]).unwrap()
    };
    let reply = conditional(&tag);
    assert!(reply.status == 206 && reply.body == whole[10..20]);
    for other in [format!("W/{tag}"), "\"else\"".into(), "Sun, 06 Nov 1994 08:49:37 GMT".into()] {
        let reply = conditional(&other);
        assert!(reply.status == 200 && reply.body == whole, "{other}");
    }
    // The same bytes uploaded again are a new version: half a file of the old one must not be completed with it.
    world.upload("m.bin", &whole);
    let reply = conditional(&tag);
    assert!(reply.status == 200 && reply.header("etag") != Some(tag.as_str()));
}

#[test]
fn a_warm_range_reads_its_chunks_and_no_more() {
    let world = World::new();
    let size = 64 * MIB;
    let reply = world.service.upload_reader(&world.folder, "m.bin", size as u64, PatternReader::new(size as u64, 1));
    assert_eq!(reply.status, 200, "{}", reply.text());
    let whole = pattern(size, 1);
    let ask = |range: &str, first: usize, end: usize| {
        let before = world.bytes_read();
        world.gives("m.bin", range, &whole, first, end);
        world.bytes_read() - before
    };
    for (range, first, end) in [
        ("bytes=40000000-40000099", 40_000_000, 40_000_100),
        ("bytes=0-99", 0, 100),
        ("bytes=-1000000", size - 1_000_000, size),
    ] {
        let read = ask(range, first, end);
        assert!(read < 3 << 20, "{range}: {read} bytes were read");
    }
}

#[test]
fn a_damaged_byte_never_makes_a_complete_range() {
    let (world, proxy) = World::behind_proxy();
    let whole = pattern(20 * MIB, 1);
    world.upload("m.bin", &whole);
    for (range, first, end, damaged) in [
        ("bytes=9000000-9000099", 9_000_000, 9_000_100, 9_000_000),
        ("bytes=9000000-9000099", 9_000_000, 9_000_100, 8_950_000),
        ("bytes=9000000-9000099", 9_000_000, 9_000_100, 12_000_000),
        ("bytes=-5", 20 * MIB - 5, 20 * MIB, 17 * MIB as u64),
        ("bytes=0-17000000", 0, 17_000_001, 4_000_000),
    ] {
        world.loads("m.bin", &whole);
        world.gives("m.bin", range, &whole, first, end);
        flip_byte(&world.cached("m.bin"), damaged);
        // The range is right whether it covers the damaged byte or not.
        world.gives("m.bin", range, &whole, first, end);
    }
    // Without the CDN a range breaks off only if it covers the damaged byte.
    world.loads("m.bin", &whole);
    flip_byte(&world.cached("m.bin"), 15_000_000);
    proxy.down();
    world.gives("m.bin", "bytes=0-5", &whole, 0, 6);
    let reply = ask(&world.service, &world.folder, "m.bin", &[("Range", "bytes=15000000-15000009")]);
    assert!(reply.as_ref().map_or(true, |reply| reply.status == 500), "a range was complete with a damaged byte");
    proxy.up();
    world.gives("m.bin", "bytes=15000000-15000009", &whole, 15_000_000, 15_000_010);
}

#[test]
fn curl_resumes_a_transfer_that_broke() {
    let world = World::new();
    let whole = pattern(6 * MIB, 1);
    world.upload("m.bin", &whole);
    let out = world.service.dir().join("out.bin");
    let curl = |more: &[&str]| {
        // curl does not resume a request with a body.
        let mut command = Command::new("curl");
        command.args(["-sS", "-X", "POST"]).args(more);
        command.arg(world.service.url(&format!("/load/m.bin?folder={}", world.folder)));
        command
    };
    // The client dies in the middle.
    let mut broken = curl(&[]).stdout(Stdio::piped()).spawn().unwrap();
    let mut beginning = vec![0; 2_000_003];
    broken.stdout.take().unwrap().read_exact(&mut beginning).unwrap();
    broken.kill().unwrap();
    broken.wait().unwrap();
    fs::write(&out, &beginning).unwrap();
    let resume = ["-C", "-", "-w", "%{http_code} %{size_download}", "-o", out.to_str().unwrap()];
    let resumed = curl(&resume).output().unwrap();
    assert!(resumed.status.success(), "{resumed:?}");
    assert_eq!(String::from_utf8_lossy(&resumed.stdout), format!("206 {}", whole.len() - beginning.len()));
    assert!(fs::read(&out).unwrap() == whole);
    // A file that is complete is left alone.
    let again = curl(&resume).output().unwrap();
    assert!(String::from_utf8_lossy(&again.stdout).starts_with("416 "), "{again:?}");
    assert!(fs::read(&out).unwrap() == whole);
}
