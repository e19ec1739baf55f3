//! A box that nobody visits, installed as the documents say: from power-on to a program that uses its models, and again
//! after resets at random moments.
//!
//! The moments come from a seed, which a failing test prints; `RESETS_SEED` repeats them, and `RESETS` is their number.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::readme::{DIST, README};
use crate::world::docker::{encrypted, saved_images};
use crate::world::machine::{HANG, Machine, Network, machine_or_skip};
use crate::world::resource_api::{EMAIL, PASSWORD};
use crate::world::tcp::free_port;
use crate::world::{Dice, World, client, loader_binary, pattern, sha256_hex, wall_clock};

const FRAGMENT: &[u8] = b"the key fragment of the box";
const TOKEN: &str = "the-token-of-the-box";

/// A box logs in within this time once the Resource API can be reached. The rest takes a moment, or longer if this machine
/// is busy.
const SOON: Duration = Duration::from_secs(30);

/// The times of one run.
struct Times {
    resets: u64,
    /// Power is cut at most this long after it was switched on. Most boxes are ready by then.
    latest_cut: Duration,
    /// How long the Resource API may be away after a start.
    outage: Duration,
    /// The same after every third start.
    long_outage: Duration,
}

/// A program that needs its models and images at its start, and fails without them.
const PROGRAM: &str = "[Unit]
Requires=loader-ready.service
After=loader-ready.service
[Service]
EnvironmentFile=/etc/loader.env
ExecStart=/bin/sh -ec 'docker image inspect $$(cat /etc/image); loader load FOLDER/m.bin /run/m.bin; loader load FOLDER/n.bin /run/n.bin; \\
  touch /run/works; exec sleep infinity'
[Install]
WantedBy=multi-user.target
";

/// The box, and what it should have.
struct Box {
    machine: Machine,
    world: World,
    address: String,
    /// The number of the newest models and images.
    version: u64,
}

#[test]
fn a_box_ends_ready_after_every_reset_without_a_person() {
    let Some(machine) = machine_or_skip("resets", Network::Shared, &["docker.io"]) else { return };
    let mut moments = Dice::new("RESETS_SEED");
    let seconds = Duration::from_secs;
    let times = match std::env::var("RESETS") {
        Ok(resets) => Times {
            resets: resets.parse().unwrap(),
            latest_cut: seconds(30),
            outage: seconds(40),
            long_outage: seconds(240),
        },
        Err(_) => Times { resets: 2, latest_cut: seconds(12), outage: seconds(5), long_outage: seconds(5) },
    };
    let world = World::new();
    world.api.set_key_fragment(FRAGMENT);
    let address = format!("127.0.0.1:{}", free_port());
    let mut the_box = Box { machine, world, address, version: 0 };
    the_box.bring_new_versions();
    the_box.install();
    // The installation reached no server, so the first start has everything to do.
    assert!(the_box.world.api.count("/login") == 1, "only the uploader has logged in");

    the_box.world.api.clear_requests();
    the_box.machine.boot();
    let took = the_box.becomes_ready(Instant::now());
    println!("first start: ready after {took:?}");
    for reset in 1..=times.resets {
        the_box.machine.cut_power();
        the_box.bring_new_versions();
        the_box.machine.power_on();
        thread::sleep(moments.within(times.latest_cut));
        the_box.machine.cut_power();

        let in_1970 = reset == times.resets;
        the_box.set_clock(in_1970);
        let outage = match moments.below(2) {
            _ if reset % 3 == 0 => times.long_outage / 2 + moments.within(times.long_outage / 2),
            0 => Duration::ZERO,
            _ => moments.within(times.outage),
        };
        if !outage.is_zero() {
            the_box.world.api.down();
        }
        the_box.world.api.clear_requests();
        the_box.machine.boot();
        thread::sleep(outage);
        the_box.world.api.up();
        let took = the_box.becomes_ready(Instant::now());
        println!("reset {reset}: API away for {outage:?}, 1970: {in_1970}, then ready after {took:?}");
        if in_1970 {
            let journal = the_box.machine.run("journalctl --no-pager --boot --unit=loader.service --output=cat");
            assert!(journal.contains("time=1970-01-01T") && !journal.contains("time=20"), "{journal}");
        }
    }
}

impl Box {
    /// New versions of the kept models and of the images.
    fn bring_new_versions(&mut self) {
        self.version += 1;
        self.world.upload("m.bin", &self.model("m.bin"));
        if self.version % 2 == 1 {
            self.world.upload("n.bin", &self.model("n.bin"));
            let images = encrypted(&saved_images(&[&self.image()], 20_000_000, false), FRAGMENT);
            fs::create_dir_all(self.machine.disk("opt/azaion")).unwrap();
            fs::write(self.machine.disk("opt/azaion/images.new"), images).unwrap();
            fs::rename(self.machine.disk("opt/azaion/images.new"), self.machine.disk("opt/azaion/images.enc")).unwrap();
            fs::write(self.machine.disk("etc/image"), self.image()).unwrap();
        }
    }

    /// Every second version is one of `m.bin` only.
    fn model(&self, name: &str) -> Vec<u8> {
        match name {
            "m.bin" => pattern(9_000_000, self.version),
            _ => pattern(3_000_000, 1000 + (self.version - 1) / 2),
        }
    }

    fn image(&self) -> String {
        format!("app:{}", (self.version - 1) / 2)
    }

    /// Installs it as the documents say, while no server can be reached.
    fn install(&mut self) {
        let folder = &self.world.folder;
        let kept = format!("{folder}/m.bin,{folder}/n.bin");
        let api = self.world.api.url();
        let filled_in = |block: &str, values: &[(&str, &str)]| {
            values.iter().fold(block.to_owned(), |text, (placeholder, value)| {
                assert!(text.contains(placeholder), "{placeholder} in {text}");
                text.replace(placeholder, value)
            })
        };
        let installation = filled_in(
            &DIST.block("## As a systemd service", "ini"),
            &[
                ("https://api.example.com", &api),
                ("HARDWARE_SALT=…", "HARDWARE_SALT=dev-hardware-salt"),
                ("API_KEY_SALT=…", "API_KEY_SALT=dev-api-key-salt"),
                ("RESOURCE_KEY_SALT=…", "RESOURCE_KEY_SALT=dev-resource-key-salt"),
                ("CLIENT_TOKEN=…", &format!("CLIENT_TOKEN={TOKEN}")),
            ],
        );
        let unattended = filled_in(
            &DIST.block("## A box that nobody visits", "ini"),
            &[("models/detector.engine,models/labels.bin", &kept)],
        );
        // The machine shares this one's ports and disk.
        let here = format!("BIND_ADDR={}\nCACHE_MIN_FREE_BYTES=0\n", self.address);
        fs::write(self.machine.disk("root/loader.env"), [installation, unattended, here].concat()).unwrap();
        let credentials = json!({ "email": EMAIL, "password": PASSWORD }).to_string();
        fs::write(self.machine.disk("root/login.json"), credentials).unwrap();
        // Debian's engine, without the network that this machine's rules forbid it.
        fs::create_dir_all(self.machine.disk("etc/docker")).unwrap();
        let engine = r#"{"iptables": false, "ip6tables": false, "bridge": "none"}"#;
        fs::write(self.machine.disk("etc/docker/daemon.json"), engine).unwrap();
        fs::write(self.machine.disk("etc/systemd/system/program.service"), PROGRAM.replace("FOLDER", folder)).unwrap();

        self.world.api.down();
        self.machine.boot();
        self.machine.run(&DIST.block("### Credentials", "sh"));
        assert!(!self.machine.disk("root/login.json").exists());
        let drop_in = DIST.block("### Credentials", "ini");
        let directory = self.machine.disk("etc/systemd/system/loader.service.d");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("override.conf"), drop_in).unwrap();
        let block = README.block("## Install", "sh");
        let said = self.machine.run(&format!("export BIND_ADDR={}\n{block}", self.address));
        assert!(said.contains("DriveSerial: ") && said.contains("it serves\n"), "{said}");
        self.machine.run(&DIST.block("### Programs that wait for it", "sh"));
        self.machine.run("systemctl daemon-reload && systemctl enable program.service");
        self.machine.cut_power();
        self.world.api.up();
    }

    /// Sets whether the service takes it to be 1970 from its next start on. That needs a program with shared libraries.
    fn set_clock(&self, in_1970: bool) {
        let drop_in = self.machine.disk("etc/systemd/system/loader.service.d/clock.conf");
        if !in_1970 {
            let _ = fs::remove_file(drop_in);
            return;
        }
        // No container has a clock of its own, so a library gives the program another one.
        let library = self.machine.disk("usr/local/lib/clock.so");
        wall_clock::build(&library, Path::new("/usr/local/lib/clock-offset"));
        fs::write(library.with_file_name("clock-offset"), wall_clock::offset_to(60).to_string()).unwrap();
        self.machine.add_program(&loader_binary(), "usr/local/bin/loader-with-libraries");
        let lines = "[Service]\nExecStart=\nExecStart=/usr/local/bin/loader-with-libraries\nEnvironment=LD_PRELOAD=/usr/local/lib/clock.so\n";
        fs::write(drop_in, lines).unwrap();
    }

    /// Waits until the program works, and checks that everything it needs is there. Returns how long that took.
    fn becomes_ready(&self, reachable: Instant) -> Duration {
        let machine = &self.machine;
        let deadline = reachable + HANG;
        let works = machine.path("/run/works");
        while !works.exists() {
            let why = || {
                let journal = "journalctl --no-pager --boot --unit=loader --unit=loader-ready --unit=program";
                let system = "systemctl --failed; systemctl list-jobs; journalctl --no-pager --boot --lines=60";
                machine.try_run(&format!("{journal}; {system}")).1
            };
            assert!(Instant::now() < deadline, "it is not ready: {}", why());
            assert!(!machine.try_run("systemctl is-failed program.service").0, "the program failed: {}", why());
            thread::sleep(Duration::from_millis(50));
        }
        let took = reachable.elapsed();
        let requests = self.world.api.requests();
        let login = requests.iter().find(|request| request.path == "/login").expect("it has logged in");
        let until_login = login.at.saturating_duration_since(reachable);
        assert!(until_login < SOON, "the login came after {until_login:?}, and all was ready after {took:?}");

        for name in ["m.bin", "n.bin"] {
            let loaded = fs::read(machine.path(&format!("/run/{name}"))).unwrap();
            assert_eq!(sha256_hex(&loaded), sha256_hex(&self.model(name)), "not the newest {name}");
        }
        let entered = |unit: &str| -> u64 {
            let show = format!("systemctl show --property=ActiveEnterTimestampMonotonic --value {unit}");
            machine.run(&show).trim().parse().unwrap()
        };
        assert!(entered("program.service") > entered("loader-ready.service"));
        let status = self.ask("/status");
        assert_eq!((&status["authenticated"], &status["user"]["email"]), (&json!(true), &json!(EMAIL)), "{status}");
        let kept = status["cache"]["models"].as_array().unwrap().iter().filter(|model| model["kept"] == true).count();
        assert_eq!(kept, 2, "{status}");
        assert_eq!(self.ask("/unlock/status")["state"], "ready");
        assert_eq!(machine.property("NRestarts"), "0");
        let left = machine.run("find /var/lib/loader/models/ -type f");
        let whole = |path: &str| [".big", ".big.json", ".big.proven"].iter().any(|end| path.ends_with(end));
        let left: Vec<&str> = left.lines().filter(|path| path.contains(&self.world.folder) && !whole(path)).collect();
        assert!(left.is_empty(), "{left:?} are left");
        took
    }

    fn ask(&self, path: &str) -> Value {
        let token = format!("Bearer {TOKEN}");
        client::call(&self.address, HANG, "GET", path, &[("Authorization", &token)], b"").unwrap().json()
    }
}
