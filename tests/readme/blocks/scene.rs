//! Where a block is run: an empty directory, and programs that come first on its `PATH`.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::world::loader_binary;
use crate::world::process::{command, run_to_end, write_program};
use crate::world::service::Service;
use crate::world::tcp::free_port;

/// How long a block may take.
const AT_MOST: Duration = Duration::from_secs(60);

/// An empty directory, with all that a block finds around it.
pub struct Scene {
    dir: TempDir,
    /// `BIND_ADDR` for what a block runs.
    pub address: String,
}

/// What a block has started; it and all its children are killed when dropped.
pub struct Running(Child);

impl Scene {
    /// With the program `loader`.
    pub fn new() -> Self {
        let scene = Self { dir: tempfile::tempdir().unwrap(), address: format!("127.0.0.1:{}", free_port()) };
        for directory in ["here", "bin", "calls", "root"] {
            fs::create_dir(scene.dir.path().join(directory)).unwrap();
        }
        std::os::unix::fs::symlink(loader_binary(), scene.dir.path().join("bin/loader")).unwrap();
        scene
    }

    /// A file in the directory where the block is run.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("here").join(name)
    }

    /// A file below what stands for the root directory.
    pub fn root(&self, path: &str) -> PathBuf {
        self.dir.path().join("root").join(path.trim_start_matches('/'))
    }

    /// A program in bash that comes first on `PATH` and keeps its arguments, a line a call. In it `$root` stands for the root
    /// directory.
    pub fn program(&self, name: &str, body: &str) {
        let dir = self.dir.path().display();
        let script = format!(
            "#!/usr/bin/env bash\nset -euo pipefail\nroot={dir}/root\nprintf '%s\\n' \"$*\" >>{dir}/calls/{name}\n{body}\n"
        );
        write_program(&self.dir.path().join("bin").join(name), &script);
    }

    /// How a [`program`](Self::program) was called.
    pub fn calls(&self, name: &str) -> Vec<String> {
        let calls = fs::read_to_string(self.dir.path().join("calls").join(name)).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    /// `PATH`: first what was installed by the block, then the scene's programs, then the machine's.
    pub fn search_path(&self) -> String {
        let dir = self.dir.path().display();
        format!("{dir}/root/usr/local/bin:{dir}/bin:{}", std::env::var("PATH").unwrap())
    }

    /// A block that connects to 127.0.0.1:8080 gets this service.
    pub fn talks_to(&mut self, service: &Service) {
        service.address().clone_into(&mut self.address);
    }

    /// `bash` with the block, which ends with its first command that fails.
    pub fn bash(&self, block: &str) -> Command {
        let curlrc = format!("noproxy = \"*\"\nconnect-to = \"127.0.0.1:8080:{}\"\n", self.address);
        fs::write(self.dir.path().join(".curlrc"), curlrc).unwrap();
        let env: [(OsString, OsString); 2] =
            [("PATH".into(), self.search_path().into()), ("CURL_HOME".into(), self.dir.path().into())];
        let mut command = command(Path::new("bash"), &self.path(""), &env, &self.address);
        command.args(["-euo", "pipefail", "-c", block]);
        command
    }

    /// Runs the block, which must succeed, and gives what it wrote to standard output.
    pub fn run(&self, block: &str) -> String {
        let output = run_to_end(self.bash(block), &[], b"", AT_MOST);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} and said:\n{said}\nof this block:\n{block}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts a block that does not end by itself; what it says is in the file `said`.
    pub fn start(&self, block: &str) -> Running {
        let said = fs::File::create(self.path("said")).unwrap();
        let mut command = self.bash(block);
        command.stdin(Stdio::null()).stdout(said.try_clone().unwrap()).stderr(said).process_group(0);
        Running(command.spawn().unwrap())
    }
}

impl Drop for Running {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        let group = libc::pid_t::try_from(self.0.id()).unwrap();
        // SAFETY: the call takes no pointers, and the child that leads the group has not been waited for.
        unsafe { libc::killpg(group, libc::SIGKILL) };
        let _ = self.0.wait();
    }
}
