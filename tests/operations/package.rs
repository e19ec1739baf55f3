//! The Debian packages: installed in a system that really boots, started, upgraded, removed and purged.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use crate::world::client::{call, segment};
use crate::world::machine::{HANG, Machine, Network, machine_or_skip};
use crate::world::raw::Stream;
use crate::world::resource_api::{EMAIL, PASSWORD};
use crate::world::tcp::free_port;
use crate::world::{World, eventually, pattern};

/// With characters that a shell or systemd would interpret.
const TOKEN: &str = r##"to"k$en#1\"##;

/// More than a connection's buffers hold.
const SIZE: usize = 48 << 20;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const LATER: &str = concat!(env!("CARGO_PKG_VERSION"), "+1");

/// The product's target for a processor, and Debian's name for that processor.
const HERE: (&str, &str) = if cfg!(target_arch = "aarch64") {
    ("aarch64-unknown-linux-musl", "arm64")
} else {
    ("x86_64-unknown-linux-musl", "amd64")
};

/// Makes packages of what `.dist/build` has built.
fn make((target, architecture): (&str, &str), version: &str, directory: &Path) -> PathBuf {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join(".dist/package"));
    let output = command.arg(target).arg(directory).env("VERSION", version).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    directory.join(format!("loader_{version}_{architecture}.deb"))
}

/// A load whose client reads the head and then waits.
struct Transfer(Stream);

impl Transfer {
    fn begin(address: &str, path: &str) -> Self {
        let mut stream = Stream::connect(address).unwrap();
        stream.set_timeout(HANG).unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
        let (mut said, mut byte) = (Vec::new(), [0]);
        while !said.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            said.push(byte[0]);
        }
        assert!(said.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&said));
        Self(stream)
    }

    /// Everything until the connection ends, however it ends.
    fn rest(mut self) -> Vec<u8> {
        let mut body = Vec::new();
        let _ = self.0.read_to_end(&mut body);
        body
    }
}

struct Installed {
    machine: Machine,
    world: World,
    address: String,
}

#[test]
fn the_package_is_installed_started_upgraded_removed_and_purged() {
    let Some(mut machine) = machine_or_skip("the Debian package", Network::Shared, &[]) else { return };
    for version in [VERSION, LATER] {
        make(HERE, version, &machine.disk("root"));
    }
    let world = World::new();
    world.upload("m.bin", &pattern(SIZE, 1));
    machine.boot();
    let the_box = Installed { machine, world, address: format!("127.0.0.1:{}", free_port()) };
    let before = the_box.files();
    the_box.it_is_installed_and_nothing_is_started();
    the_box.it_is_configured_and_started();
    the_box.it_is_upgraded_while_it_sends();
    the_box.it_shows_models_as_files();
    the_box.it_is_removed_and_purged(&before);
}

impl Installed {
    fn apt(&self, words: &str) -> String {
        self.machine.run(&format!("DEBIAN_FRONTEND=noninteractive apt-get -y -q {words} 2>&1"))
    }

    /// All files of the system, except those of apt and dpkg.
    fn files(&self) -> Vec<String> {
        let all = self.machine.run(
            "find /etc /lib/systemd /opt /usr /var -xdev | grep -Ev '^/var/(cache|lib/(apt|dpkg|systemd/timers)|log/(apt|journal|dpkg))|^/etc/g?(shadow|group)-?$'",
        );
        let mut files: Vec<String> = all.lines().map(str::to_owned).collect();
        files.sort();
        files
    }

    fn path(&self) -> String {
        format!("/load/m.bin?folder={}", segment(&self.world.folder))
    }

    fn log_in(&self) {
        // As `/etc/loader.env` describes it, so with its token.
        let login =
            format!("echo '{PASSWORD}' | sh -c 'set -a; . /etc/loader.env; loader login {EMAIL} --password-stdin'");
        self.machine.run(&login);
    }

    fn loads(&self) {
        let token = format!("Bearer {TOKEN}");
        let reply = call(&self.address, HANG, "POST", &self.path(), &[("Authorization", &token)], b"").unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert!(reply.body == pattern(SIZE, 1), "wrong bytes were loaded");
    }

    fn it_is_installed_and_nothing_is_started(&self) {
        let said = self.apt(&format!("install ./loader_{VERSION}_{}.deb", HERE.1));
        assert!(said.contains(&format!("Setting up loader ({VERSION})")), "{said}");
        assert_eq!(
            self.machine.run("command -v loader && loader --version"),
            format!("/usr/bin/loader\nloader {VERSION}\n")
        );
        self.machine.run("dpkg --verify loader && getent group loader docker");
        assert_eq!(self.machine.run("stat -c '%a %U' /etc/loader.env"), "600 root\n");
        for unit in ["loader.service", "loader.socket"] {
            let state = self.machine.run(&format!("systemctl is-enabled {unit} || systemctl is-active {unit} || true"));
            assert_eq!(state, "disabled\ninactive\n", "{unit}");
        }
        // Every variable is there, once, as a comment.
        let variables = self.machine.run("sed -n 's/^#\\([A-Z_]*\\)=.*/\\1/p' /etc/loader.env");
        let mut variables: Vec<&str> = variables.lines().collect();
        let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
        let table = readme.split("## Configuration").nth(1).unwrap().split("## ").next().unwrap();
        let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
        let mut known: Vec<&str> = rows.map(|row| row.split('`').next().unwrap()).collect();
        variables.sort_unstable();
        known.sort_unstable();
        assert_eq!(variables, known);
        assert!(!self.machine.try_run("grep -E '^[^#]' /etc/loader.env").0, "a line is no comment");
    }

    fn it_is_configured_and_started(&self) {
        // First with the values in the comments, then with this box's: later lines win.
        let lines = format!(
            "RESOURCE_API_URL={}\nBIND_ADDR={}\nHARDWARE_SALT=dev-hardware-salt\nAPI_KEY_SALT=dev-api-key-salt\n\
             RESOURCE_KEY_SALT=dev-resource-key-salt\nCLIENT_TOKEN='{TOKEN}'\n",
            self.world.api.url(),
            self.address
        );
        self.machine.run(&format!(
            "sed -i 's/^#\\([A-Z_]*=.\\)/\\1/' /etc/loader.env\ncat >>/etc/loader.env <<'END'\n{lines}END"
        ));
        self.machine.run("systemctl enable --now loader");
        assert_eq!(self.machine.property("Result"), "success");
        let pid = self.machine.main_pid();
        let status = self.machine.run(&format!("cat /proc/{pid}/status; grep core /proc/{pid}/limits"));
        let user = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
        let user: u32 = user.split_whitespace().next().unwrap().parse().unwrap();
        assert!((61184..=65519).contains(&user), "its user is {user}, who is not systemd's");
        assert!(status.contains("Max core file size        0                    0 "), "{status}");
        self.log_in();
        self.loads();
        self.machine.run("ls /var/lib/loader/models/* /var/log/loader/loader-*.log");
    }

    fn it_is_upgraded_while_it_sends(&self) {
        let edited = self.machine.run("cat /etc/loader.env");
        let pid = self.machine.main_pid();
        let (patient, stalled) =
            (Transfer::begin(&self.address, &self.path()), Transfer::begin(&self.address, &self.path()));
        thread::scope(|scope| {
            let upgrade = scope.spawn(|| self.apt(&format!("install ./loader_{LATER}_{}.deb", HERE.1)));
            // The client reads on once the service has been told to stop.
            eventually(HANG, "the upgrade stops the service", || {
                upgrade.is_finished() || self.machine.property("ActiveState") == "deactivating"
            });
            let journal = || self.machine.run("journalctl --no-pager --unit=loader.service");
            assert!(!upgrade.is_finished(), "the upgrade did not wait for a transfer: {}", journal());
            assert!(patient.rest() == pattern(SIZE, 1), "a transfer that would have ended in time was cut off");
            let said = upgrade.join().unwrap();
            assert!(said.contains(&format!("Unpacking loader ({LATER}) over ({VERSION})")), "{said}");
        });
        let cut = stalled.rest();
        assert!(cut.len() < SIZE && cut == pattern(SIZE, 1)[..cut.len()], "{} bytes came", cut.len());

        assert_ne!(self.machine.main_pid(), pid);
        let program = self.machine.run(&format!("readlink /proc/{}/exe", self.machine.main_pid()));
        assert_eq!(program, "/usr/bin/loader\n", "the old program runs on");
        assert_eq!(self.machine.run("cat /etc/loader.env"), edited);
        assert_eq!(self.machine.run("systemctl is-enabled loader"), "enabled\n");
        self.log_in();
        self.loads();
    }

    fn it_shows_models_as_files(&self) {
        self.machine.run("[ -e /dev/fuse ] || mknod -m 666 /dev/fuse c 10 229");
        self.apt(&format!("install ./loader-mount_{LATER}_{}.deb", HERE.1));
        assert_eq!(self.machine.try_run("systemctl is-active loader-mount").1, "inactive\n");
        self.machine.run("systemctl start loader-mount");
        let file = format!("/run/loader-models/{}/m.bin", self.world.folder);
        assert_eq!(self.machine.run(&format!("stat -c '%s %A %G' {file}")), format!("{SIZE} -r--r----- loader\n"));
        self.apt("purge loader-mount");
        assert!(!self.machine.try_run("mountpoint /run/loader-models").0, "it is still mounted");
    }

    fn it_is_removed_and_purged(&self, before: &[String]) {
        self.apt("remove loader");
        assert!(call(&self.address, HANG, "GET", "/health", &[], b"").is_err(), "it serves after its removal");
        assert!(!self.machine.try_run("systemctl cat loader.service").0);
        self.machine.run("ls /etc/loader.env /var/lib/loader/models/* /var/log/loader/loader-*.log");

        self.machine.run("mkdir -p /etc/loader && touch /etc/loader/signing-key.pem /var/lib/loader/mine");
        let said = self.apt("purge loader");
        for line in
            ["Removing the model cache /var/lib/loader/models", "Keeping /var/lib/loader", "Keeping /etc/loader:"]
        {
            assert!(said.contains(line), "{line}: {said}");
        }
        let kept = ["/etc/loader", "/etc/loader/signing-key.pem", "/var/lib/loader", "/var/lib/private/loader"];
        // systemd keeps this for every service with a dynamic user.
        let systemd_s = ["/var/lib/private", "/var/log/private"];
        let left: Vec<String> = self.files().into_iter().filter(|file| !before.contains(file)).collect();
        let ours =
            |file: &&String| !kept.iter().chain(&systemd_s).any(|kept| kept == file) && !file.ends_with("/loader/mine");
        assert_eq!(left.iter().filter(ours).collect::<Vec<_>>(), Vec::<&String>::new());
        self.machine.run("ls /var/lib/loader/mine /etc/loader/signing-key.pem");
    }
}
