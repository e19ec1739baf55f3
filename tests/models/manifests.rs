//! Manifests against a CDN that alters what it has, and against other implementations of their signatures.
//!
//! What is altered comes from a seed, which a failing test prints; `MANIFESTS_SEED` repeats it.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use jwt_simple::reexports::ct_codecs::{Base64UrlSafeNoPadding, Decoder, Encoder};
use serde_json::{Value, json};

use crate::world::protocol::{self, Salts};
use crate::world::raw::exchange;
use crate::world::service::Service;
use crate::world::{World, pattern, process, sha256_hex, skip};

const MIB: usize = 1 << 20;

/// Four chunks, the last one short.
const SIZE: usize = 3 * MIB + 200_000;

/// Random numbers of one test.
pub struct Dice(u64);

impl Dice {
    pub fn new() -> Self {
        let given = std::env::var("MANIFESTS_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| getrandom::u64().unwrap());
        println!("MANIFESTS_SEED={seed}");
        Self(seed)
    }

    pub fn below(&mut self, end: usize) -> usize {
        let mut word = [0; 8];
        word.copy_from_slice(&pattern(8, self.0));
        self.0 = self.0.wrapping_add(1);
        (u64::from_le_bytes(word) % end as u64) as usize
    }
}

/// The keys of a version in the CDN.
struct Keys {
    generation: String,
    manifest: String,
}

impl World {
    fn keys_of(&self, folder: &str, name: &str) -> Keys {
        let small = sha256_hex(&self.api.file(folder, &format!("{name}.small")).unwrap());
        Keys {
            generation: format!("{name}.{}.big", &small[..16]),
            manifest: format!("{name}.{}.manifest", &small[..16]),
        }
    }

    fn object(&self, key: &str) -> Vec<u8> {
        self.s3.get(&self.folder, key).unwrap_or_else(|| panic!("no {key}"))
    }
}

/// A load or a range, as far as it came: the status, and the bytes of the body or of the error.
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

/// Forgets a model, but not that it was proven.
fn forget(service: &Service, folder: &str, name: &str) {
    for kind in ["", ".json", ".part", ".part.json", ".part.source.json"] {
        let _ = fs::remove_file(format!("{}{kind}", service.cache_file(folder, name).display()));
    }
}

/// What was in the CDN before it was altered, and everything there is to alter it with.
struct Cdn<'a> {
    world: &'a World,
    keys: Keys,
    generation: Vec<u8>,
    manifest: Vec<u8>,
    /// Of the version before, of another model, and of the model of the same name in another folder: manifest and generation.
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

    /// Alters something; says what.
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
                // As an old upload, with the metadata that makes it fit.
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

/// The keys of `loader keygen`, and the services that have them.
fn keygen(directory: &Path) -> (String, String) {
    let output = Service::builder().run(&["keygen", directory.to_str().unwrap()], b"");
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    let (private, public) = said.trim_end().split_once('\n').unwrap();
    (private.to_owned(), public.to_owned())
}

#[test]
fn an_altering_cdn_never_makes_a_wrong_byte() {
    let keys = tempfile::tempdir().unwrap();
    let (private, public) = keygen(&keys.path().join("keys"));
    let world = World::with(|builder| builder.env("SIGNING_KEY_PATH", &private));
    let boxes = [
        ("default settings, loaded before", Service::builder().api(&world.api).start()),
        ("REQUIRE_MANIFEST", Service::builder().api(&world.api).env("REQUIRE_MANIFEST", "true").start()),
        ("TRUSTED_KEYS_PATH", Service::builder().api(&world.api).env("TRUSTED_KEYS_PATH", &public).start()),
    ];
    let elsewhere = world.s3.new_bucket("elsewhere");
    // All of the same length, so that nothing but their bytes tells them apart.
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

    let mut dice = Dice::new();
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

/// The parts of a line: what is signed, the payload, the signature.
fn parts(line: &str) -> (String, Value, Vec<u8>) {
    let (signed, signature) = line.rsplit_once('.').unwrap();
    let payload = Base64UrlSafeNoPadding::decode_to_vec(signed.split_once('.').unwrap().1, None).unwrap();
    let signature = Base64UrlSafeNoPadding::decode_to_vec(signature, None).unwrap();
    (signed.to_owned(), serde_json::from_slice(&payload).unwrap(), signature)
}

fn run(program: &str, args: &[&str], stdin: &[u8]) -> Output {
    process::run_to_end(Command::new(program), args, stdin, Duration::from_secs(60))
}

/// The key of line one, stated a second time.
fn key_of_line_one() -> [u8; 32] {
    protocol::aes_key(format!("{}.manifest", protocol::resource_key(&Salts::default())).as_bytes())
}

#[test]
fn openssl_verifies_both_lines_and_the_payload_is_that_of_the_specification() {
    let keys = tempfile::tempdir().unwrap();
    let (private, public) = keygen(&keys.path().join("keys"));
    let world = World::with(|builder| builder.env("SIGNING_KEY_PATH", &private));
    world.upload("m.bin", &pattern(SIZE, 1));
    let Keys { generation, manifest } = world.keys_of(&world.folder, "m.bin");
    let big = world.object(&generation);
    let text = String::from_utf8(world.object(&manifest)).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2);
    let small = world.api.file(&world.folder, "m.bin.small").unwrap();
    let hashes: Vec<u8> = big.chunks(MIB).flat_map(protocol::aes_key).collect();
    let expected = json!({
        "v": 1, "folder": world.folder, "filename": "m.bin", "small_sha256": sha256_hex(&small), "big_length": big.len(),
        "plain_length": SIZE, "chunk": MIB, "sha256": Base64UrlSafeNoPadding::encode_to_string(hashes).unwrap(),
    });
    let file = |name: &str, bytes: &[u8]| {
        let path = keys.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (signed, payload, signature) = parts(lines[0]);
    assert_eq!(payload, expected);
    let key: String = key_of_line_one().iter().map(|byte| format!("{byte:02x}")).collect();
    let mac = ["dgst", "-sha256", "-mac", "HMAC", "-macopt", &format!("hexkey:{key}"), "-binary"];
    assert_eq!(run("openssl", &mac, signed.as_bytes()).stdout, signature);

    let (signed, payload, signature) = parts(lines[1]);
    assert_eq!(payload, expected);
    let (signed, signature) = (file("signed", signed.as_bytes()), file("signature", &signature));
    let verify = ["pkeyutl", "-verify", "-pubin", "-inkey", &public, "-rawin", "-in", &signed, "-sigfile", &signature];
    let output = run("openssl", &verify, b"");
    assert!(output.status.success(), "{output:?}");
    // Keys that OpenSSL makes are as good.
    let own = keys.path().join("openssl.pem");
    let made = run("openssl", &["genpkey", "-algorithm", "ed25519", "-out", own.to_str().unwrap()], b"");
    assert!(made.status.success(), "{made:?}");
    world.service.set_env("SIGNING_KEY_PATH", &own);
    world.service.restart();
    world.login();
    world.upload("n.bin", b"model");
}

/// PyJWT makes a manifest that is accepted, and accepts ours.
#[test]
fn pyjwt_understands_manifests_and_makes_them() {
    let python = |script: &str, stdin: &[u8]| run("python3", &["-c", script], stdin);
    if !python("import jwt, cryptography", b"").status.success() {
        return skip("manifests by PyJWT", "PyJWT and cryptography are not installed");
    }
    let keys = tempfile::tempdir().unwrap();
    let (private, public) = keygen(&keys.path().join("keys"));
    let world = World::with(|builder| builder.env("SIGNING_KEY_PATH", &private).env("TRUSTED_KEYS_PATH", &public));
    world.upload("m.bin", &pattern(SIZE, 1));
    let text = world.object(&world.keys_of(&world.folder, "m.bin").manifest);
    let derive = "import base64, hashlib, json, jwt, sys\n\
                  secret = base64.b64encode(hashlib.sha384(b'dev-resource-key-salt').digest()).decode()\n\
                  key = hashlib.sha256((secret + '.manifest').encode()).digest()\n";
    let verify = format!(
        "{derive}one, two = sys.stdin.read().split()\n\
         a = jwt.decode(one, key, algorithms=['HS256'])\n\
         b = jwt.decode(two, open({public:?}).read(), algorithms=['EdDSA'])\n\
         assert a == b, (a, b)\nprint(json.dumps(a))"
    );
    let output = python(&verify, &text);
    assert!(output.status.success(), "{output:?}");
    let payload: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&payload["filename"], &payload["plain_length"]), (&json!("m.bin"), &json!(SIZE)));

    // A model that no program of ours has uploaded.
    let bytes = pattern(SIZE, 2);
    let (small, big) = protocol::split(&bytes, &Salts::default());
    let make = format!(
        "{derive}big = sys.stdin.buffer.read()\n\
         hashes = b''.join(hashlib.sha256(big[i:i + 1048576]).digest() for i in range(0, len(big), 1048576))\n\
         payload = dict(v=1, folder={:?}, filename='py.bin', small_sha256={:?}, big_length=len(big), plain_length={SIZE}, \
         chunk=1048576, sha256=base64.urlsafe_b64encode(hashes).decode().rstrip('='), made_by='PyJWT')\n\
         print(jwt.encode(payload, key, algorithm='HS256'))\n\
         print(jwt.encode(payload, open({private:?}).read(), algorithm='EdDSA'))",
        world.folder,
        sha256_hex(&small)
    );
    let output = python(&make, &big);
    assert!(output.status.success(), "{output:?}");
    world.api.put_file(&world.folder, "py.bin.small", small);
    let keys = world.keys_of(&world.folder, "py.bin");
    world.s3.put(&world.folder, &keys.generation, &big, &[]);
    world.s3.put(&world.folder, &keys.manifest, &output.stdout, &[]);
    world.loads("py.bin", &bytes);
    world.loads("py.bin", &bytes);
}

#[test]
fn old_uploads_load_with_a_warning_unless_they_are_refused() {
    let world = World::new();
    let bytes = pattern(SIZE, 1);
    let (small, big) = protocol::split(&bytes, &Salts::default());
    world.api.put_file(&world.folder, "old.bin.small", small);
    world.s3.put(&world.folder, "old.bin.big", &big, &[]);
    world.loads("old.bin", &bytes);
    assert!(world.service.log_text().contains("is an old upload without a manifest"));
    assert!(world.service.get("/metrics").text().contains("\nloader_old_uploads_total 1\n"));
    // The manifest that the box has made is its own, and marked so.
    let record = fs::read(format!("{}.json", world.service.cache_file(&world.folder, "old.bin").display()));
    let record: Value = serde_json::from_slice(&record.unwrap_or_default()).unwrap_or_default();
    if let Some(text) = record["manifest"].as_str() {
        assert!(record["old"].is_object(), "{record}");
        // What the box has made is no uploader's manifest, not even if it comes from the CDN.
        world.s3.put(&world.folder, &world.keys_of(&world.folder, "old.bin").manifest, text.as_bytes(), &[]);
        world.forget("old.bin");
        let refused = world.service.load(&world.folder, "old.bin");
        assert!(refused.status == 500 && refused.detail().contains("RESOURCE_KEY_SALT"), "{}", refused.text());
        world.s3.delete(&world.folder, &world.keys_of(&world.folder, "old.bin").manifest);
        world.loads("old.bin", &bytes);
    }
    // Also what is in the cache already.
    world.service.set_env("REQUIRE_MANIFEST", "true");
    world.service.restart();
    world.login();
    let refused = world.service.load(&world.folder, "old.bin");
    assert!(refused.status == 500 && refused.detail().contains("REQUIRE_MANIFEST"), "{}", refused.text());
    world.service.set_env("REQUIRE_MANIFEST", "false");
    world.service.restart();
    world.login();
    world.loads("old.bin", &bytes);
}

/// An old uploader replaces one part after the other. What was loaded between the two must not last.
#[test]
fn a_torn_pair_without_metadata_is_looked_at_again() {
    let world = World::new();
    let bytes = pattern(SIZE, 1);
    let (small, big) = protocol::split(&bytes, &Salts::default());
    let mut torn = big.clone();
    // Not in the last blocks: the padding fits.
    torn[1_000_000] ^= 1;
    world.api.put_file(&world.folder, "old.bin.small", small);
    world.s3.put(&world.folder, "old.bin.big", &torn, &[]);
    assert!(world.service.load(&world.folder, "old.bin").body != bytes, "nothing can tell");
    world.s3.put(&world.folder, "old.bin.big", &big, &[]);
    world.loads("old.bin", &bytes);
    world.loads("old.bin", &bytes);
}

/// A bad rollout: the salt is forgotten for a while.
#[test]
fn a_wrong_salt_deletes_nothing() {
    let (world, proxy) = World::behind_proxy();
    let bytes = pattern(SIZE, 1);
    world.upload("m.bin", &bytes);
    let (small, big) = protocol::split(&bytes, &Salts::default());
    world.api.put_file(&world.folder, "old.bin.small", small);
    world.s3.put(&world.folder, "old.bin.big", &big, &[("small-sha256", "")]);
    world.s3.put(&world.folder, "old.bin.big", &big, &[]);
    world.loads("old.bin", &bytes);
    world.loads("old.bin", &bytes);
    for salt in ["wrong-1", "wrong-2", "wrong-3"] {
        world.service.set_env("RESOURCE_KEY_SALT", salt);
        world.service.restart();
        world.login();
        for name in ["m.bin", "old.bin"] {
            let reply = world.service.load(&world.folder, name);
            assert!(reply.status == 500 && reply.detail().contains("RESOURCE_KEY_SALT"), "{name}: {}", reply.text());
        }
    }
    world.service.set_env("RESOURCE_KEY_SALT", "dev-resource-key-salt");
    world.service.restart();
    world.login();
    proxy.down();
    world.loads("m.bin", &bytes);
    world.loads("old.bin", &bytes);
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
