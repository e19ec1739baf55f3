//! The units as they are shipped, and the static program, in a systemd that really boots: Debian in a container.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use crate::world::process::{Captured, capture, signal};
use crate::world::tcp::lock;
use crate::world::{client, eventually, skip};

/// Longer than anything takes that does not hang.
const HANG: Duration = Duration::from_secs(120);

/// The users that systemd makes for `DynamicUser=`.
const DYNAMIC_USERS: std::ops::RangeInclusive<u32> = 61184..=65519;

/// A booted system; it ends with everything in it when dropped.
struct Machine {
    nspawn: Child,
    /// Its process 1, as it is numbered outside.
    leader: Option<u32>,
    console: Captured,
    directory: TempDir,
}

impl Machine {
    /// Boots a copy of the system in `base`, with the program and the units where the README installs them.
    fn boot(base: &Path, program: &Path) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        run(Command::new("cp").arg("-a").arg(base).arg(&root));
        fs::copy(program, root.join("usr/local/bin/loader")).unwrap();
        fs::set_permissions(root.join("usr/local/bin/loader"), fs::Permissions::from_mode(0o755)).unwrap();
        for unit in ["loader.service", "loader.socket"] {
            let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join(".dist").join(unit);
            fs::copy(shipped, root.join("etc/systemd/system").join(unit)).unwrap();
        }

        let mut command = Command::new("systemd-nspawn");
        command.arg("--directory").arg(&root).arg(format!("--machine=loader-test-{}", std::process::id()));
        // A network of its own: the unit's port may be taken here.
        command.args(["--boot", "--register=no", "--keep-unit", "--private-network", "--console=pipe"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut nspawn = command.spawn().unwrap();
        let console = Captured::default();
        capture(nspawn.stdout.take().unwrap(), &console);
        capture(nspawn.stderr.take().unwrap(), &console);
        let mut machine = Self { nspawn, leader: None, console, directory };
        eventually(HANG, "the system boots", || {
            if let Some(status) = machine.nspawn.try_wait().unwrap() {
                panic!("systemd-nspawn ended with {status}: {}", machine.said());
            }
            machine.leader = machine.find_leader();
            machine.leader.is_some() && {
                let state = machine.try_run("systemctl is-system-running").1;
                matches!(state.trim(), "running" | "degraded")
            }
        });
        machine
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&lock(&self.console)).into_owned()
    }

    fn find_leader(&self) -> Option<u32> {
        let pid = self.nspawn.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        let children = children.split_whitespace().filter_map(|child| child.parse().ok());
        children.into_iter().find(|child: &u32| {
            fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|name| name.trim() == "systemd")
        })
    }

    /// Runs a shell command in the system: whether it succeeded, and what it wrote.
    fn try_run(&self, command: &str) -> (bool, String) {
        let leader = self.leader.unwrap().to_string();
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--target", &leader, "--all", "--", "/bin/sh", "-c", command]);
        nsenter.env_clear().env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        let output = nsenter.stdin(Stdio::null()).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }

    fn run(&self, command: &str) -> String {
        let (done, said) = self.try_run(command);
        assert!(done, "{command}: {said}\n{}", self.try_run("journalctl --no-pager -n 50; systemctl status loader").1);
        said
    }

    /// A property of the service.
    fn property(&self, name: &str) -> String {
        self.run(&format!("systemctl show --property={name} --value loader.service")).trim().to_owned()
    }

    fn main_pid(&self) -> u32 {
        self.property("MainPID").parse().unwrap()
    }

    /// A file of the system, temporary file systems included.
    fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.leader.unwrap()))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // When its process 1 ends, all its processes end, and then systemd-nspawn.
        match self.leader {
            Some(leader) => signal(leader, libc::SIGKILL),
            None => drop(self.nspawn.kill()),
        }
        let _ = self.nspawn.wait();
        if thread::panicking() {
            eprintln!("{}: {}", self.directory.path().display(), self.said());
        }
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{:?}: {error}", command.get_program()));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The system to boot, made once and kept for the next run; the error is why it cannot be had.
fn base() -> Result<PathBuf, String> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("systemd-bookworm");
    if directory.is_dir() {
        return Ok(directory);
    }
    let made = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let root = made.path().join("root");
    let output = Command::new("debootstrap")
        .args(["--variant=minbase", "--include=systemd,systemd-sysv,dbus", "bookworm"])
        .arg(&root)
        .output()
        .map_err(|error| format!("debootstrap: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        return Err(format!("debootstrap: {}", said.lines().last().unwrap_or("no word")));
    }
    fs::rename(root, &directory).unwrap();
    Ok(directory)
}

fn machine_or_skip(test: &str) -> Option<Machine> {
    let Some(program) = std::env::var_os("LOADER_STATIC") else {
        skip(test, "LOADER_STATIC does not name the static program that .dist/build makes");
        return None;
    };
    if Command::new("systemd-nspawn").arg("--version").output().is_err() || !rustix::process::geteuid().is_root() {
        skip(test, "it boots a system with systemd-nspawn, as root");
        return None;
    }
    match base() {
        Ok(base) => Some(Machine::boot(&base, Path::new(&program))),
        Err(why) => {
            skip(test, &why);
            None
        }
    }
}

#[test]
fn the_units_as_shipped_start_wait_restart_and_stop() {
    let Some(machine) = machine_or_skip("the systemd units") else { return };
    // The group that docker's package makes.
    machine.run("groupadd --system docker");
    it_starts_with_a_user_of_its_own_and_says_how_it_is(&machine);
    clients_of_the_socket_wait_while_it_restarts(&machine);
    a_stopped_process_is_restarted_by_the_watchdog(&machine);
    it_stops_cleanly(&machine);
}

fn it_starts_with_a_user_of_its_own_and_says_how_it_is(machine: &Machine) {
    // Returns when the service has said that it is ready, so it answers from the first moment.
    machine.run("systemctl start loader.service");
    machine.run("loader healthcheck");
    assert_eq!(machine.property("Type"), "notify");
    assert_eq!(machine.property("SubState"), "running");
    let pid = machine.main_pid();
    let status = machine.run(&format!("cat /proc/{pid}/status"));
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    let user: u32 = user.split_whitespace().next().unwrap().parse().unwrap();
    assert!(DYNAMIC_USERS.contains(&user), "its user is {user}");
    let limits = machine.run(&format!("cat /proc/{pid}/limits"));
    let limit = |name: &str| -> Vec<String> {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().map(str::to_owned).collect()
    };
    assert_eq!(limit("Max core file size")[..2], ["0", "0"]);
    assert_eq!(limit("Max open files")[..2], ["4096", "4096"]);
    let journal = machine.run("journalctl --no-pager --unit=loader.service");
    assert!(!journal.contains("leaves room for"), "the unit's limits do not fit the program's: {journal}");

    let line = "Status: \"not logged in; images: idle; downloads: 0\"";
    eventually(HANG, "systemctl status shows the status line", || {
        machine.run("systemctl status --no-pager loader.service").contains(line)
    });
}

fn clients_of_the_socket_wait_while_it_restarts(machine: &Machine) {
    machine.run("groupadd --system loader");
    // As `.dist/README.md` says: systemd does not open the socket while the service runs without it.
    machine.run("systemctl stop loader && systemctl enable --now loader.socket && systemctl start loader");
    let path = machine.path("/run/loader.sock");
    let socket = fs::metadata(&path).unwrap();
    let group = machine.run("getent group loader");
    assert_eq!(socket.mode() & 0o777, 0o660);
    assert_eq!(group.split(':').nth(2), Some(socket.gid().to_string().as_str()));
    machine.run("BIND_ADDR=unix:/run/loader.sock loader healthcheck");
    assert!(!machine.try_run("loader healthcheck").0, "it listens on BIND_ADDR although it has a socket from systemd");
    assert!(
        DYNAMIC_USERS.contains(&fs::metadata(machine.path(&format!("/proc/{}", machine.main_pid()))).unwrap().uid())
    );

    let address = format!("unix:{}", path.display());
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let failures = thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let reply = client::call(&address, HANG, "GET", "/health", &[], b"")?;
                        if reply.status != 200 {
                            return Err(format!("{} {}", reply.status, reply.text()));
                        }
                        answered.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(Duration::from_millis(1));
                    }
                    Ok(())
                })
            })
            .collect();
        let served = |more: u64| {
            let before = answered.load(Ordering::Relaxed);
            // A client that failed makes no more requests, so one may be missing to the number.
            eventually(HANG, "clients are served", || {
                answered.load(Ordering::Relaxed) >= before + more || clients.iter().any(|client| client.is_finished())
            });
        };
        served(20);
        for _ in 0..5 {
            let before = machine.main_pid();
            machine.run("systemctl restart loader.service");
            assert_ne!(machine.main_pid(), before);
            served(20);
        }
        // Nobody serves, and the next client's connection starts the service.
        machine.run("systemctl stop loader.service");
        served(20);
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().filter_map(|client| client.join().unwrap().err()).collect::<Vec<String>>()
    });
    assert!(failures.is_empty(), "of {answered:?} requests and more these failed: {failures:?}");
}

fn a_stopped_process_is_restarted_by_the_watchdog(machine: &Machine) {
    assert_eq!(machine.property("WatchdogUSec"), "1min");
    machine.run(
        "mkdir -p /run/systemd/system/loader.service.d
        printf '[Service]\\nWatchdogSec=1s\\n' >/run/systemd/system/loader.service.d/test.conf
        systemctl daemon-reload && systemctl restart loader.service",
    );
    // It lives for longer than the limit when nobody stops it.
    let pid = machine.main_pid();
    thread::sleep(Duration::from_secs(3));
    assert_eq!((machine.main_pid(), machine.property("NRestarts").as_str()), (pid, "0"));

    machine.run(&format!("kill -STOP {pid}"));
    eventually(HANG, "the watchdog restarts it", || {
        machine.property("NRestarts") == "1" && machine.property("SubState") == "running"
    });
    assert_ne!(machine.main_pid(), pid);
    let journal = machine.run("journalctl --no-pager --unit=loader.service");
    assert!(journal.contains("Watchdog timeout"), "{journal}");
    machine.run("BIND_ADDR=unix:/run/loader.sock loader healthcheck");
}

fn it_stops_cleanly(machine: &Machine) {
    let pid = machine.main_pid();
    machine.run("systemctl stop loader.service");
    for (name, value) in
        [("ActiveState", "inactive"), ("Result", "success"), ("ExecMainCode", "1"), ("ExecMainStatus", "0")]
    {
        assert_eq!(machine.property(name), value, "{name}");
    }
    let journal = machine.run(&format!("journalctl --no-pager --unit=loader.service _PID={pid}"));
    assert!(journal.contains("message=\"stopped\""), "{journal}");
}
