//! Manifests as other programs see them: OpenSSL and PyJWT verify ours, and make their own.

use std::fs;
use std::process::{Command, Output};
use std::time::Duration;

use jwt_simple::reexports::ct_codecs::{Base64UrlSafeNoPadding, Decoder, Encoder};
use serde_json::{Value, json};

use super::manifests::{Keys, SIZE, keygen};
use crate::world::protocol::{self, Salts};
use crate::world::{World, pattern, process, sha256_hex, skip};

const MIB: usize = 1 << 20;

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

/// The key of line one, derived independently of the program.
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
    // Keys made by OpenSSL work as well.
    let own = keys.path().join("openssl.pem");
    let made = run("openssl", &["genpkey", "-algorithm", "ed25519", "-out", own.to_str().unwrap()], b"");
    assert!(made.status.success(), "{made:?}");
    world.service.set_env("SIGNING_KEY_PATH", &own);
    world.service.restart();
    world.login();
    world.upload("n.bin", b"model");
}

/// PyJWT accepts our manifest, and the loader accepts one that PyJWT made.
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

    // A model uploaded without the loader.
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
