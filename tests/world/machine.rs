//! A box: Debian in a container whose process 1 is systemd. It keeps its disk when its power is cut.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use super::process::{Captured, capture, signal};
use super::tcp::lock;
use super::{eventually, skip};

/// Only a hang takes longer.
pub const HANG: Duration = Duration::from_secs(120);

/// The product on the machine's disk.
const PROGRAM: &str = "root/loader-aarch64-unknown-linux-musl";

/// What the machine can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Nothing: it has its own loopback interface.
    Own,
    /// The test's servers, on a shared loopback interface.
    Shared,
}

/// A machine, off until it is booted. All its processes end when it is dropped.
pub struct Machine {
    directory: TempDir,
    network: Network,
    console: Captured,
    running: Option<Running>,
}

struct Running {
    nspawn: Child,
    /// Its process 1, by its number outside.
    leader: Option<u32>,
}

/// A machine with these Debian packages and the product in `/root`, or none and a line that the test is skipped.
pub fn machine_or_skip(test: &str, network: Network, packages: &[&str]) -> Option<Machine> {
    let Some(program) = std::env::var_os("LOADER_STATIC") else {
        skip(test, "LOADER_STATIC does not name the static program that .dist/build makes");
        return None;
    };
    if Command::new("systemd-nspawn").arg("--version").output().is_err() || !rustix::process::geteuid().is_root() {
        skip(test, "it boots a system with systemd-nspawn, as root");
        return None;
    }
    match base(packages) {
        Ok(base) => Some(Machine::new(&base, Path::new(&program), network)),
        Err(why) => {
            skip(test, &why);
            None
        }
    }
}

impl Machine {
    fn new(base: &Path, program: &Path, network: Network) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let machine = Self { directory, network, console: Captured::default(), running: None };
        run(Command::new("cp").arg("-a").arg(base).arg(machine.disk("")));
        // The documents name the ARM64 program.
        machine.add_program(program, PROGRAM);
        for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".dist")).unwrap().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "service" || extension == "socket") {
                fs::copy(entry.path(), machine.disk("root").join(entry.file_name())).unwrap();
            }
        }
        machine
    }

    /// Copies a program onto the disk.
    pub fn add_program(&self, program: &Path, path: &str) {
        run(Command::new("install").arg("--mode=755").arg(program).arg(self.disk(path)));
    }

    /// Installs the program and its units.
    pub fn install(&self) {
        fs::copy(self.disk(PROGRAM), self.disk("usr/local/bin/loader")).unwrap();
        for unit in ["loader.service", "loader.socket"] {
            fs::copy(self.disk("root").join(unit), self.disk("etc/systemd/system").join(unit)).unwrap();
        }
    }

    /// Switches it on, and waits until its service manager answers.
    pub fn boot(&mut self) {
        self.power_on();
        eventually(HANG, "the system boots", || {
            let running = self.running.as_mut().unwrap();
            if let Some(status) = running.nspawn.try_wait().unwrap() {
                panic!("systemd-nspawn ended with {status}: {}", self.said());
            }
            running.leader = leader(running.nspawn.id());
            running.leader.is_some()
                && ["starting", "running", "degraded"].contains(&self.try_run("systemctl is-system-running").1.trim())
        });
    }

    /// Switches it on.
    pub fn power_on(&mut self) {
        assert!(self.running.is_none(), "it is on");
        let mut command = Command::new("systemd-nspawn");
        let name = self.directory.path().file_name().unwrap().to_string_lossy().replace('.', "");
        command.arg("--directory").arg(self.disk("")).arg(format!("--machine=loader-{name}"));
        command.args(["--boot", "--register=no", "--keep-unit", "--console=pipe"]);
        if self.network == Network::Own {
            command.arg("--private-network");
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut nspawn = command.spawn().unwrap();
        capture(nspawn.stdout.take().unwrap(), &self.console);
        capture(nspawn.stderr.take().unwrap(), &self.console);
        self.running = Some(Running { nspawn, leader: None });
    }

    /// Cuts the power: every process ends at once. Whatever they wrote stays, even what only the page cache holds and a
    /// real cut would lose: the kernel is this machine's, and lives on.
    pub fn cut_power(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        // When its process 1 ends, all its processes end, and then systemd-nspawn.
        match running.leader.or_else(|| leader(running.nspawn.id())) {
            Some(leader) => signal(leader, libc::SIGKILL),
            None => drop(running.nspawn.kill()),
        }
        let _ = running.nspawn.wait();
    }

    /// A path on its disk.
    pub fn disk(&self, path: &str) -> PathBuf {
        self.directory.path().join("root").join(path)
    }

    /// What its console has shown.
    fn said(&self) -> String {
        String::from_utf8_lossy(&lock(&self.console)).into_owned()
    }

    fn leader(&self) -> u32 {
        self.running.as_ref().and_then(|running| running.leader).expect("it is on")
    }

    /// Runs a shell command in the running system. Returns whether it succeeded, and its output.
    pub fn try_run(&self, command: &str) -> (bool, String) {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--target", &self.leader().to_string(), "--all", "--", "/bin/sh", "-ec"]);
        nsenter.arg(format!("cd /root\n{command}"));
        nsenter.env_clear().env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        let output = nsenter.stdin(Stdio::null()).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }

    /// The same for a command that must succeed.
    pub fn run(&self, command: &str) -> String {
        let (done, said) = self.try_run(command);
        let why = || self.try_run("journalctl --no-pager -n 50; systemctl status --no-pager loader").1;
        assert!(done, "{command}: {said}\n{}", why());
        said
    }

    /// A property of the service.
    pub fn property(&self, name: &str) -> String {
        self.run(&format!("systemctl show --property={name} --value loader.service")).trim().to_owned()
    }

    /// The service's process id inside the machine.
    pub fn main_pid(&self) -> u32 {
        self.property("MainPID").parse().unwrap()
    }

    /// The service's process id outside the machine.
    pub fn main_pid_outside(&self) -> u32 {
        let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/pid")).ok();
        let (here, inside) = (namespace(&self.leader().to_string()), self.main_pid().to_string());
        let is_it = |process: &String| {
            let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
            let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            ids.and_then(|ids| ids.split_whitespace().last()) == Some(&inside) && namespace(process) == here
        };
        let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.file_name());
        let mut processes = processes.filter_map(|name| name.into_string().ok());
        processes.find(is_it).and_then(|process| process.parse().ok()).expect("the service runs")
    }

    /// The path of a file of the running system, temporary file systems included.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.leader()))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.cut_power();
        if thread::panicking() {
            eprintln!("{}: {}", self.directory.path().display(), self.said());
        }
    }
}

/// Process 1 of the machine that this `systemd-nspawn` runs.
fn leader(nspawn: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children")).ok()?;
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    children.into_iter().find(|child: &u32| {
        fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|name| name.trim() == "systemd")
    })
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{:?}: {error}", command.get_program()));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The system to boot, built once and kept for the next run. An error says why it cannot be built.
fn base(packages: &[&str]) -> Result<PathBuf, String> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = lock(&ONE_AT_A_TIME);
    let kept = kept();
    let plain = kept.join("systemd-bookworm");
    make(&plain, |root| {
        let mut debootstrap = Command::new("debootstrap");
        debootstrap.args(["--variant=minbase", "--include=systemd,systemd-sysv,dbus", "bookworm"]).arg(root);
        debootstrap
    })?;
    if packages.is_empty() {
        return Ok(plain);
    }
    let fuller = kept.join(format!("systemd-bookworm-{}", packages.join("-")));
    make(&fuller, |root| {
        const INSTALL: &str = "cp -a \"$1\" \"$2\" && chroot \"$2\" apt-get update -q
            DEBIAN_FRONTEND=noninteractive chroot \"$2\" apt-get install -y -q --no-install-recommends $3";
        let mut install = Command::new("sh");
        install.args(["-ec", INSTALL, "sh"]).arg(&plain).arg(root).arg(packages.join(" "));
        install
    })?;
    Ok(fuller)
}

/// Cargo's directory for the files of tests.
fn kept() -> &'static Path {
    // Cargo does not name it to examples, which boot nothing.
    Path::new(option_env!("CARGO_TARGET_TMPDIR").unwrap_or("target/tmp"))
}

/// Makes a directory with a command, unless it exists.
fn make(directory: &Path, command: impl FnOnce(&Path) -> Command) -> Result<(), String> {
    if directory.is_dir() {
        return Ok(());
    }
    let made = tempfile::tempdir_in(kept()).unwrap();
    let root = made.path().join("root");
    let mut command = command(&root);
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        return Err(format!("{name}: {}", said.lines().last().unwrap_or("no word")));
    }
    fs::rename(root, directory).map_err(|error| error.to_string())
}
