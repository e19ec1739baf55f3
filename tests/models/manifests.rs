//! Manifests against a CDN that alters what it has.
//!
//! What is altered comes from a seed, which a failing test prints; `MANIFESTS_SEED` repeats it.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::thread;

use serde_json::{Value, json};

use crate::world::raw::exchange;
use crate::world::service::Service;
use crate::world::{Dice, World, pattern, sha256_hex};

const MIB: usize = 1 << 20;

/// Four chunks, the last one short.
pub(super) const SIZE: usize = 3 * MIB + 200_000;

/// The keys of the objects of a version.
pub(super) struct Keys {
    pub(super) generation: String,
    pub(super) manifest: String,
}

impl World {
    pub(super) fn keys_of(&self, folder: &str, name: &str) -> Keys {
        let small = sha256_hex(&self.api.file(folder, &format!("{name}.small")).unwrap());
        Keys {
            generation: format!("{name}.{}.big", &small[..16]),
            manifest: format!("{name}.{}.manifest", &small[..16]),
        }
    }

    pub(super) fn object(&self, key: &str) -> Vec<u8> {
        self.s3.get(&self.folder, key).unwrap_or_else(|| panic!("no {key}"))
    }
}

/// A load or a range: the status, and as much of the body or the error as arrived.
fn load(service: &Service, folder: &str, name: &str, range: Option<(usize, usize)>) -> (u16, Vec<u8>) {
    let body = json!({"filename": name, "folder": folder}).to_string();
    let range = range.map_or(String::new(), |(first, end)| format!("Range: bytes={first}-{}\r\n", end - 1));
    let head = format!(
        "POST /load/{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n{range}\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = exchange(service.connect(), head.as_bytes());
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
    (status, answer[end + 4..].to_vec())
}

/// Empties the cache of a model, but keeps the record that it was verified once.
fn forget(service: &Service, folder: &str, name: &str) {
    for kind in ["", ".json", ".part", ".part.json", ".part.source.json"] {
        let _ = fs::remove_file(format!("{}{kind}", service.cache_file(folder, name).display()));
    }
}

/// The original objects in the CDN, and others to exchange them with.
struct Cdn<'a> {
    world: &'a World,
    keys: Keys,
    generation: Vec<u8>,
    manifest: Vec<u8>,
    /// Manifest and generation of the previous version, of another model, and of the model of the same name in another folder.
    others: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Cdn<'_> {
    fn put(&self, key: &str, bytes: &[u8]) {
        self.world.s3.put(&self.world.folder, key, bytes, &[]);
    }

    fn restore(&self) {
        self.put(&self.keys.generation, &self.generation);
        self.put(&self.keys.manifest, &self.manifest);
    }

    /// Alters something and says what.
    fn alter(&self, dice: &mut Dice) -> String {
        let Keys { generation, manifest } = &self.keys;
        let mut bytes = self.generation.clone();
        match dice.below(9) {
            0 => {
                let at = dice.below(bytes.len());
                bytes[at] ^= 1 << dice.below(8);
                self.put(generation, &bytes);
                format!("flipped a bit of byte {at}")
            }
            1 => {
                bytes.truncate(dice.below(bytes.len()));
                self.put(generation, &bytes);
                format!("cut after {} bytes", bytes.len())
            }
            2 => {
                let (a, b) = (dice.below(3), dice.below(3));
                let (from, to) = (self.generation[a * MIB..(a + 1) * MIB].to_vec(), b * MIB);
                bytes[to..to + MIB].copy_from_slice(&from);
                bytes[a * MIB..(a + 1) * MIB].copy_from_slice(&self.generation[to..to + MIB]);
                self.put(generation, &bytes);
                format!("exchanged chunks {a} and {b}")
            }
            3 => {
                bytes.extend_from_slice(&[7; 16]);
                self.put(generation, &bytes);
                "appended a block".into()
            }
            4 => {
                self.world.s3.delete(&self.world.folder, manifest);
                let at = dice.below(bytes.len());
                bytes[at] ^= 1;
                // Made to look like an old upload, with matching metadata or without.
                let small = sha256_hex(&self.world.api.file(&self.world.folder, "m.bin.small").unwrap());
                let metadata = [("small-sha256", small.as_str()), ("sha256", &sha256_hex(&bytes))];
                self.world.s3.put(&self.world.folder, "m.bin.big", &bytes, &metadata[..dice.below(3)]);
                format!("took the manifest away and changed byte {at}")
            }
            5 => {
                let mut text = self.manifest.clone();
                let at = dice.below(text.len());
                text[at] = text[at].wrapping_add(1 + dice.below(255) as u8);
                self.put(manifest, &text);
                format!("changed byte {at} of the manifest")
            }
            6 => {
                let (other, _) = &self.others[dice.below(self.others.len())];
                self.put(manifest, other);
                "put another manifest there".into()
            }
            7 => {
                let (_, other) = &self.others[dice.below(self.others.len())];
                self.put(generation, other);
                "put another big part there".into()
            }
            _ => {
                let (other_manifest, other) = &self.others[dice.below(self.others.len())];
                self.put(manifest, other_manifest);
                self.put(generation, other);
                "put another version there".into()
            }
        }
    }
}

/// The paths of the private and the public key that `loader keygen` makes.
pub(super) fn keygen(directory: &Path) -> (String, String) {
    let output = Service::builder().run(&["keygen", directory.to_str().unwrap()], b"");
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    let (private, public) = said.trim_end().split_once('\n').unwrap();
    (private.to_owned(), public.to_owned())
}

#[test]
fn an_altering_cdn_never_causes_a_wrong_byte() {
    let keys = tempfile::tempdir().unwrap();
    let (private, public) = keygen(&keys.path().join("keys"));
    let world = World::with(|builder| builder.env("SIGNING_KEY_PATH", &private));
    let boxes = [
        ("default settings, loaded before", Service::builder().api(&world.api).start()),
        ("REQUIRE_MANIFEST", Service::builder().api(&world.api).env("REQUIRE_MANIFEST", "true").start()),
        ("TRUSTED_KEYS_PATH", Service::builder().api(&world.api).env("TRUSTED_KEYS_PATH", &public).start()),
    ];
    let elsewhere = world.s3.new_bucket("elsewhere");
    // All have the same length, so that only the bytes differ.
    let (before, whole) = (pattern(SIZE, 1), pattern(SIZE, 2));
    let mut others = Vec::new();
    let mut remember = |folder: &str, name: &str, seed: u64| {
        let bytes = pattern(SIZE, seed);
        assert_eq!(world.service.upload(folder, name, &bytes).status, 200);
        let keys = world.keys_of(folder, name);
        let get = |key: &str| world.s3.get(folder, key).unwrap();
        others.push((get(&keys.manifest), get(&keys.generation)));
    };
    remember(&world.folder, "m.bin", 1);
    remember(&world.folder, "n.bin", 3);
    remember(&elsewhere, "m.bin", 4);
    world.upload("m.bin", &whole);
    let keys = world.keys_of(&world.folder, "m.bin");
    let (generation, manifest) = (world.object(&keys.generation), world.object(&keys.manifest));
    let cdn = Cdn { world: &world, keys, generation, manifest, others };
    for (_, service) in &boxes {
        assert_eq!(service.login().status, 200);
    }
    let first = load(&boxes[0].1, &world.folder, "m.bin", None);
    assert!(first.0 == 200 && first.1 == whole);

    let mut dice = Dice::new("MANIFESTS_SEED");
    let (mut right, mut refused, mut broken) = (0, 0, 0);
    for round in 0..if std::env::var_os("CI").is_some() { 340 } else { 40 } {
        let what = cdn.alter(&mut dice);
        for (kind, service) in &boxes {
            let range = (dice.below(3) > 0).then(|| {
                let first = dice.below(SIZE);
                (first, first + 1 + dice.below((SIZE - first).min(MIB)))
            });
            if dice.below(4) > 0 {
                forget(service, &world.folder, "m.bin");
            }
            let (status, body) = load(service, &world.folder, "m.bin", range);
            let (start, end) = range.unwrap_or((0, SIZE));
            let at = format!("round {round}, {kind}: {what}, {range:?}");
            if status == 500 {
                let detail: Value = serde_json::from_slice(&body).unwrap();
                let detail = detail["detail"].as_str().unwrap();
                let says_what_to_do = ["upload", "check", "add the key", "load it again"];
                assert!(says_what_to_do.iter().any(|what| detail.contains(what)), "{at}: {detail}");
                refused += 1;
                continue;
            }
            assert!(status == 200 || status == 206, "{at}: {status}");
            assert!(body.len() <= end - start && body == whole[start..start + body.len()], "{at}: a wrong byte");
            assert!(body != before[start..start + body.len()] || body.is_empty(), "{at}: the version before");
            if body.len() == end - start {
                right += 1;
            } else {
                broken += 1;
            }
        }
        cdn.restore();
    }
    println!("{right} right, {refused} refused, {broken} broken off");
    assert!(right > 0 && refused > 0, "{right} right, {refused} refused, {broken} broken off");
    for (kind, service) in &boxes {
        let (status, body) = load(service, &world.folder, "m.bin", None);
        assert!(status == 200 && body == whole, "{kind}: {status}");
    }
}

/// The keys of the CDN were replaced: the configuration is fetched again, nobody has to log in.
#[test]
fn replaced_cdn_keys_are_found_without_a_new_login() {
    let world = World::new();
    let bytes = pattern(SIZE, 1);
    world.upload("m.bin", &bytes);
    world.upload("n.bin", &bytes);
    let yaml = world.api.file("", "cdn.yaml").unwrap();
    let wrong = String::from_utf8(yaml.clone())
        .unwrap()
        .replace("downloader_access_secret: ", "downloader_access_secret: old-");
    world.api.put_file("", "cdn.yaml", wrong);
    world.login();
    world.forget("m.bin");
    assert_eq!(world.service.load(&world.folder, "m.bin").status, 500);
    world.api.put_file("", "cdn.yaml", yaml);
    world.loads("m.bin", &bytes);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| world.loads("n.bin", &bytes));
        }
    });
    let _ = std::io::stdout().flush();
}
