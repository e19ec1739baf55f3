//! Tools that decrypt as they read: `rclone`, `age` and `openssl` in pipes, `gocryptfs` as a file system.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::pipeline::{Consumer, Outcome, Peak, copy, program, run};
use crate::world::hex;
use crate::world::s3::{Keys, REGION};

/// An encrypted model in the S3 server.
pub struct Object {
    /// A presigned URL.
    pub url: String,
    pub endpoint: String,
    pub bucket: String,
    /// The key, which ends in `.bin`.
    pub key: String,
    /// Credentials that may read it.
    pub keys: Keys,
}

/// Another way for a model from an S3 server to a program.
pub trait Tool {
    /// The name in the table.
    fn name(&self) -> &'static str;

    /// The programs that it needs, and the Debian packages that they are in. The versions of the first ones are told.
    fn programs(&self) -> &'static [(&'static str, &'static str)];

    /// What somebody does who has the plaintext: the file that goes to the S3 server. `made` keeps keys and files, and `dir` is
    /// where the box will put its files.
    fn encrypt(&self, plain: &Path, made: &Path, dir: &Path) -> PathBuf;

    /// Reads the model on a box that has nothing but its keys.
    fn cold(&self, object: &Object, made: &Path, dir: &Path, to: &mut Consumer) -> Outcome;

    /// Reads it again for the next program, if anything was kept.
    fn warm(&self, _made: &Path, _dir: &Path, _to: &mut Consumer) -> Option<Outcome> {
        None
    }
}

/// Runs a command that must succeed, and answers what it wrote.
pub fn must(mut command: Command) -> String {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = command.output().unwrap_or_else(|error| panic!("{:?}: {error}", command.get_program()));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {} {said}", command.get_program(), output.status);
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// `curl` of the object, to its standard output.
fn curl(object: &Object, dir: &Path) -> Command {
    let mut command = program("curl", dir);
    command.args(["-sS", "--fail", "--noproxy", "*"]).arg(&object.url);
    command
}

/// `curl` of the object into a file.
pub fn download(object: &Object, dir: &Path, file: &Path) -> Outcome {
    let mut command = curl(object, dir);
    command.arg("-o").arg(file);
    run(vec![command], dir, &mut Consumer::counting())
}

/// A program that opens the file and reads it.
pub fn read(file: &Path, to: &mut Consumer) -> Outcome {
    let result = File::open(file).and_then(|file| copy(file, to)).map_err(|error| format!("read: {error}"));
    Outcome { result, peak_kib: 0 }
}

pub struct Rclone;

impl Rclone {
    /// A remote `models:` that decrypts what is in `remote`.
    fn with(remote: &str, made: &Path, dir: &Path) -> Command {
        let password = made.join("rclone.password");
        if !password.exists() {
            let mut obscure = program("rclone", made);
            obscure.args(["obscure", "a password of the benchmark"]);
            fs::write(&password, must(obscure)).expect("a new file");
        }
        let mut command = program("rclone", dir);
        command.args(["--config", "/dev/null"]);
        command.env("RCLONE_CONFIG_MODELS_TYPE", "crypt").env("RCLONE_CONFIG_MODELS_REMOTE", remote);
        command.env("RCLONE_CONFIG_MODELS_PASSWORD", fs::read_to_string(password).expect("it was written"));
        command.env("RCLONE_CONFIG_MODELS_FILENAME_ENCRYPTION", "off");
        command.env("RCLONE_CONFIG_MODELS_DIRECTORY_NAME_ENCRYPTION", "false");
        command
    }
}

impl Tool for Rclone {
    fn name(&self) -> &'static str {
        "`rclone cat` of a `crypt` remote"
    }

    fn programs(&self) -> &'static [(&'static str, &'static str)] {
        &[("rclone", "rclone")]
    }

    fn encrypt(&self, plain: &Path, made: &Path, _dir: &Path) -> PathBuf {
        let mut command = Self::with(&made.display().to_string(), made, made);
        command.arg("copyto").arg(plain).arg("models:encrypted");
        must(command);
        made.join("encrypted.bin")
    }

    fn cold(&self, object: &Object, made: &Path, dir: &Path, to: &mut Consumer) -> Outcome {
        let mut command = Self::with(&format!("cdn:{}", object.bucket), made, dir);
        command.env("RCLONE_CONFIG_CDN_TYPE", "s3").env("RCLONE_CONFIG_CDN_PROVIDER", "Other");
        command.env("RCLONE_CONFIG_CDN_ENDPOINT", &object.endpoint).env("RCLONE_CONFIG_CDN_REGION", REGION);
        command.env("RCLONE_CONFIG_CDN_ACCESS_KEY_ID", &object.keys.access);
        command.env("RCLONE_CONFIG_CDN_SECRET_ACCESS_KEY", &object.keys.secret);
        let name = object.key.strip_suffix(".bin").expect("every key ends like this");
        command.arg("cat").arg(format!("models:{name}"));
        run(vec![command], dir, to)
    }
}

pub struct Age;

impl Tool for Age {
    fn name(&self) -> &'static str {
        "`curl \\| age -d`"
    }

    fn programs(&self) -> &'static [(&'static str, &'static str)] {
        &[("age", "age"), ("curl", "curl")]
    }

    fn encrypt(&self, plain: &Path, made: &Path, _dir: &Path) -> PathBuf {
        let (key, encrypted) = (made.join("age.key"), made.join("encrypted"));
        if !key.exists() {
            let mut command = program("age-keygen", made);
            command.arg("-o").arg(&key);
            must(command);
        }
        let mut command = program("age", made);
        command.arg("-e").arg("-i").arg(&key).arg("-o").arg(&encrypted).arg(plain);
        must(command);
        encrypted
    }

    fn cold(&self, object: &Object, made: &Path, dir: &Path, to: &mut Consumer) -> Outcome {
        let mut age = program("age", dir);
        age.arg("-d").arg("-i").arg(made.join("age.key"));
        run(vec![curl(object, dir), age], dir, to)
    }
}

pub struct Openssl;

/// `openssl enc` with a key and an initialization vector of the benchmark.
pub fn openssl_enc(dir: &Path) -> Command {
    let mut command = program("openssl", dir);
    command.args(["enc", "-aes-256-cbc", "-K", &hex(&KEY), "-iv", &hex(&IV)]);
    command
}

/// The AES-256 key.
pub const KEY: [u8; 32] = [11; 32];

pub const IV: [u8; 16] = [13; 16];

impl Tool for Openssl {
    fn name(&self) -> &'static str {
        "`curl \\| openssl enc -d -aes-256-cbc`"
    }

    fn programs(&self) -> &'static [(&'static str, &'static str)] {
        &[("openssl", "openssl"), ("curl", "curl")]
    }

    fn encrypt(&self, plain: &Path, made: &Path, _dir: &Path) -> PathBuf {
        let encrypted = made.join("encrypted");
        let mut command = openssl_enc(made);
        command.arg("-in").arg(plain).arg("-out").arg(&encrypted);
        must(command);
        encrypted
    }

    fn cold(&self, object: &Object, _made: &Path, dir: &Path, to: &mut Consumer) -> Outcome {
        let mut openssl = openssl_enc(dir);
        openssl.arg("-d");
        run(vec![curl(object, dir), openssl], dir, to)
    }
}

pub struct Gocryptfs;

impl Gocryptfs {
    /// Mounts the encrypted directory, and does something meanwhile.
    fn while_mounted(
        made: &Path,
        encrypted: &Path,
        plain: &Path,
        work: impl FnOnce() -> Result<(), String>,
    ) -> Outcome {
        fs::create_dir_all(plain).expect("a new directory");
        let mut command = program("gocryptfs", made);
        command.args(["-q", "-fg", "-nosyslog", "-passfile"]).arg(made.join("gocryptfs.password"));
        let mut child = command.arg(encrypted).arg(plain).stderr(Stdio::null()).spawn().expect("gocryptfs is there");
        let peak = Peak::of(vec![child.id()]);
        let is_mounted = format!("{} fuse.gocryptfs ", plain.display());
        let started = Instant::now();
        while !fs::read_to_string("/proc/self/mounts").expect("Linux has it").contains(&is_mounted) {
            assert!(started.elapsed() < Duration::from_secs(60), "gocryptfs does not mount");
            thread::sleep(Duration::from_millis(2));
        }
        let result = work();
        let peak_kib = peak.kib();
        let mut umount = program("umount", made);
        umount.arg(plain);
        must(umount);
        child.wait().expect("a child");
        Outcome { result, peak_kib }
    }

    fn read(made: &Path, dir: &Path, to: &mut Consumer) -> Outcome {
        let plain = dir.join("plain");
        Self::while_mounted(made, &dir.join("encrypted"), &plain, || read(&plain.join("m"), to).result)
    }
}

impl Tool for Gocryptfs {
    fn name(&self) -> &'static str {
        "`curl`, then a file in `gocryptfs`"
    }

    fn programs(&self) -> &'static [(&'static str, &'static str)] {
        &[("gocryptfs", "gocryptfs"), ("fusermount", "fuse3"), ("curl", "curl")]
    }

    fn encrypt(&self, plain: &Path, made: &Path, _dir: &Path) -> PathBuf {
        let encrypted = made.join("gocryptfs");
        if !encrypted.exists() {
            fs::create_dir(&encrypted).expect("a new directory");
            let password = made.join("gocryptfs.password");
            fs::write(&password, "a password of the benchmark").expect("a new file");
            let mut command = program("gocryptfs", made);
            command.args(["-init", "-q", "-plaintextnames", "-passfile"]).arg(password).arg(&encrypted);
            must(command);
        }
        let mounted = made.join("mounted");
        let copied = Self::while_mounted(made, &encrypted, &mounted, || {
            fs::copy(plain, mounted.join("m")).map(drop).map_err(|error| error.to_string())
        });
        copied.result.expect("room for the file");
        encrypted.join("m")
    }

    fn cold(&self, object: &Object, made: &Path, dir: &Path, to: &mut Consumer) -> Outcome {
        let encrypted = dir.join("encrypted");
        fs::create_dir(&encrypted).expect("a new directory");
        let configuration = "gocryptfs.conf";
        fs::copy(made.join("gocryptfs").join(configuration), encrypted.join(configuration)).expect("it was made");
        download(object, dir, &encrypted.join("m")).then(|| Self::read(made, dir, to))
    }

    fn warm(&self, made: &Path, dir: &Path, to: &mut Consumer) -> Option<Outcome> {
        Some(Self::read(made, dir, to))
    }
}
