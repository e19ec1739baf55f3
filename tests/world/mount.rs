//! `loader mount` in its own process, on its own directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::process::{Captured, capture, memory_kib, signal};
use super::service::Service;
use super::tcp::lock;
use super::{eventually, loader_binary, skip};

/// Only a hang takes longer.
const HANG: Duration = Duration::from_secs(40);

/// A mount; it is killed and removed when dropped.
pub struct Mount {
    child: Child,
    output: Captured,
    path: PathBuf,
    options: Vec<String>,
    _dir: TempDir,
}

/// The program that mounts: the one that `LOADER_MOUNT_BINARY` names, else the one that serves.
pub fn mount_binary() -> PathBuf {
    let named = std::env::var_os("LOADER_MOUNT_BINARY");
    named.map_or_else(loader_binary, |path| std::path::absolute(path).unwrap())
}

/// Whether this machine can mount; says that `test` is skipped if not.
pub fn can_mount(test: &str) -> bool {
    let can =
        rustix::process::geteuid().is_root() && fs::File::options().read(true).write(true).open("/dev/fuse").is_ok();
    if !can {
        skip(test, "it mounts a file system as root, with /dev/fuse");
    }
    can
}

impl Mount {
    /// Mounts the models of a service.
    pub fn of(service: &Service, options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("models");
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        let (child, output) = spawn(service, &path, &options);
        let mut mount = Self { child, output, path, options, _dir: dir };
        mount.wait_until_mounted();
        mount
    }

    /// Kills the process, as a crash would: the directory stays mounted, with nobody serving it.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts the process again at the same directory.
    pub fn start_again(&mut self, service: &Service) {
        (self.child, self.output) = spawn(service, &self.path, &self.options);
        self.wait_until_mounted();
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        signal(self.child.id(), libc::SIGTERM);
    }

    /// Waits for the end.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually(HANG, "the mount ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether something is mounted at the directory, served or not.
    pub fn is_mounted(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        mounts.contains(&format!("loader {} fuse ", self.path.display()))
    }

    /// What it has written.
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&lock(&self.output)).into_owned()
    }

    /// A field of its `/proc/PID/status` in KiB.
    pub fn memory_kib(&self, field: &str) -> u64 {
        memory_kib(self.child.id(), field)
    }

    fn wait_until_mounted(&mut self) {
        eventually(HANG, "the models are mounted", || {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the mount ended ({ended:?}): {}", self.log_text());
            self.log_text().contains("has the models of the service")
        });
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if self.is_mounted() {
            let _ = Command::new("umount").arg("--lazy").arg(&self.path).output();
        }
        if std::thread::panicking() {
            eprintln!("the mount said:\n{}", self.log_text());
        }
    }
}

fn spawn(service: &Service, path: &Path, options: &[String]) -> (Child, Captured) {
    let mut command = service.command_of(&mount_binary());
    command.arg("mount").arg(path).args(options);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let output = Captured::default();
    capture(child.stdout.take().unwrap(), &output);
    capture(child.stderr.take().unwrap(), &output);
    (child, output)
}
