//! Updaters, which decrypt into a file: `swupdate` and `rauc`. The program reads that file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::pipeline::{Consumer, Outcome, program, run};
use super::tools::{IV, KEY, Object, Tool, download, must, openssl_enc, read};
use crate::world::{hex, sha256_hex_of};

/// A key and a certificate that signs itself, which both updaters ask for.
fn make_certificate(made: &Path) {
    if made.join("cert.pem").exists() {
        return;
    }
    let mut command = program("openssl", made);
    command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=benchmark", "-days", "30"]);
    command.args(["-keyout", "key.pem", "-out", "cert.pem"]);
    must(command);
}

pub struct Swupdate;

impl Tool for Swupdate {
    fn name(&self) -> &'static str {
        "`swupdate` into a file"
    }

    fn programs(&self) -> &'static [(&'static str, &'static str)] {
        &[("swupdate", "swupdate"), ("cpio", "cpio"), ("openssl", "openssl")]
    }

    fn encrypt(&self, plain: &Path, made: &Path, dir: &Path) -> PathBuf {
        make_certificate(made);
        fs::write(made.join("swupdate.key"), format!("{} {}\n", hex(&KEY), hex(&IV))).expect("a new file");
        let mut openssl = openssl_enc(made);
        openssl.arg("-in").arg(plain).arg("-out").arg("m.enc");
        must(openssl);
        let encrypted = fs::File::open(made.join("m.enc")).expect("it was made");
        let hash = sha256_hex_of(encrypted).expect("it can be read");
        let (file, iv) = (dir.join("m"), hex(&IV));
        let description = format!(
            "software = {{ version = \"1\"; hardware-compatibility: [ \"1\" ]; files: ( {{ filename = \"m.enc\"; \
             path = \"{}\"; type = \"rawfile\"; encrypted = true; ivt = \"{iv}\"; sha256 = \"{hash}\"; \
             installed-directly = true; }} ); }}\n",
            file.display()
        );
        fs::write(made.join("sw-description"), description).expect("a new file");
        let mut sign = program("openssl", made);
        sign.args(["cms", "-sign", "-binary", "-nosmimecap", "-in", "sw-description", "-outform", "DER"]);
        sign.args(["-signer", "cert.pem", "-inkey", "key.pem", "-out", "sw-description.sig"]);
        must(sign);
        fs::write(made.join("names"), "sw-description\nsw-description.sig\nm.enc\n").expect("a new file");
        let mut cpio = program("cpio", made);
        cpio.args(["--quiet", "-o", "-H", "crc", "-O", "encrypted"]);
        cpio.stdin(fs::File::open(made.join("names")).expect("it was written"));
        must(cpio);
        fs::remove_file(made.join("m.enc")).expect("it was made");
        made.join("encrypted")
    }

    fn cold(&self, object: &Object, made: &Path, dir: &Path, to: &mut Consumer) -> Outcome {
        let mut command = program("swupdate", dir);
        command.args(["-H", "benchmark:1", "-K"]).arg(made.join("swupdate.key")).arg("-k").arg(made.join("cert.pem"));
        command.arg("-d").arg(format!("-u {}", object.url));
        run(vec![command], dir, &mut Consumer::counting()).then(|| read(&dir.join("m"), to))
    }

    fn warm(&self, _made: &Path, dir: &Path, to: &mut Consumer) -> Option<Outcome> {
        Some(read(&dir.join("m"), to))
    }
}

pub struct Rauc;

impl Rauc {
    fn command(made: &Path, dir: &Path) -> Command {
        let mut command = program("rauc", dir);
        command.arg("-c").arg(made.join("system.conf"));
        command
    }
}

impl Tool for Rauc {
    fn name(&self) -> &'static str {
        "`curl`, then `rauc extract` of a `crypt` bundle"
    }

    fn programs(&self) -> &'static [(&'static str, &'static str)] {
        &[("rauc", "rauc"), ("curl", "curl"), ("mksquashfs", "squashfs-tools"), ("openssl", "openssl")]
    }

    fn encrypt(&self, plain: &Path, made: &Path, _dir: &Path) -> PathBuf {
        make_certificate(made);
        let certificate = made.join("cert.pem");
        let configuration = format!(
            "[system]\ncompatible=benchmark\nbootloader=noop\n[keyring]\npath={0}\n[encryption]\nkey={1}\ncert={0}\n",
            certificate.display(),
            made.join("key.pem").display()
        );
        fs::write(made.join("system.conf"), configuration).expect("a new file");
        let content = made.join("content");
        fs::create_dir(&content).expect("a new directory");
        let manifest =
            "[update]\ncompatible=benchmark\nversion=1\n[bundle]\nformat=crypt\n[image.rootfs]\nfilename=m.img\n";
        fs::write(content.join("manifest.raucm"), manifest).expect("a new file");
        fs::copy(plain, content.join("m.img")).expect("room for the file");
        let mut bundle = program("rauc", made);
        bundle.args(["bundle", "--cert=cert.pem", "--key=key.pem"]);
        // Like a trained model, the file cannot be compressed.
        bundle.args(["--mksquashfs-args=-noI -noD -noF -noX -no-progress", "content", "bundle"]);
        must(bundle);
        let mut encrypt = Self::command(made, made);
        must({
            encrypt.args(["encrypt", "--to=cert.pem", "bundle", "encrypted"]);
            encrypt
        });
        fs::remove_dir_all(content).expect("it was made");
        fs::remove_file(made.join("bundle")).expect("it was made");
        made.join("encrypted")
    }

    fn cold(&self, object: &Object, made: &Path, dir: &Path, to: &mut Consumer) -> Outcome {
        let (bundle, extracted) = (dir.join("bundle"), dir.join("extracted"));
        download(object, dir, &bundle)
            .then(|| {
                let mut command = Self::command(made, dir);
                command.arg("extract").arg(&bundle).arg(&extracted).stdin(Stdio::null());
                run(vec![command], dir, &mut Consumer::counting())
            })
            .then(|| read(&extracted.join("m.img"), to))
    }

    fn warm(&self, _made: &Path, dir: &Path, to: &mut Consumer) -> Option<Outcome> {
        Some(read(&dir.join("extracted/m.img"), to))
    }
}
