//! The hardware string, on the trees of `/proc` and `/sys` in `tests/fixtures/hardware`.
//!
//! A string that changes locks a box out of its models, so most tests here change something that leaves a machine the
//! same, and expect the same string.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use loader::hardware_service::Hardware;
use tempfile::TempDir;

const X86_SERVER: &str = "CPU: Intel(R) Xeon(R) Silver 4314 CPU @ 2.40GHz. \
    GPU: 1a03:2000, 10de:2531. Memory: 64 GiB. DriveSerial: S4B0NX0R512345";
const JETSON: &str = "CPU: ARMv8 Processor rev 1 (v8l). GPU: nvidia,ga10b. Memory: 8 GiB. DriveSerial: S5GXNX0R723456";
const RASPBERRY_PI: &str = "CPU: Raspberry Pi 4 Model B Rev 1.5. \
    GPU: Broadcom VideoCore. Memory: 4 GiB. DriveSerial: 035344534333324780a1b2c3d4014700";
const EMMC_ONLY: &str =
    "CPU: NXP i.MX8MPlus EVK board. GPU: vivante,gc. Memory: 2 GiB. DriveSerial: 150100414a545034520789abcdef9500";

/// The machines, each with its string.
const MACHINES: [(&str, &str); 4] =
    [("x86-server", X86_SERVER), ("jetson", JETSON), ("raspberry-pi", RASPBERRY_PI), ("emmc-only", EMMC_ONLY)];

#[test]
fn x86_server_has_cpu_model_pci_gpus_and_sata_serial() {
    assert_eq!(fingerprint(&fixture("x86-server")), X86_SERVER);
}

#[test]
fn jetson_has_soc_gpu_and_nvme_serial() {
    assert_eq!(fingerprint(&fixture("jetson")), JETSON);
}

#[test]
fn raspberry_pi_has_board_model_and_falls_back_to_its_sd_card() {
    assert_eq!(fingerprint(&fixture("raspberry-pi")), RASPBERRY_PI);
}

#[test]
fn emmc_counts_before_the_sd_card_in_the_slot() {
    assert_eq!(fingerprint(&fixture("emmc-only")), EMMC_ONLY);
}

#[test]
fn container_on_the_raspberry_pi_gives_the_string_of_its_host() {
    assert_eq!(fingerprint(&fixture("container")), RASPBERRY_PI);
}

/// Docker and podman hide `/sys/firmware`, and with it what `/proc/device-tree` points to.
#[test]
fn every_machine_has_the_same_string_in_a_container() {
    for (name, expected) in MACHINES {
        let machine = Machine::copy_of(name);
        machine.remove_directory("sys/firmware");
        assert_eq!(machine.fingerprint(), expected, "{name}");
    }
}

#[test]
fn usb_stick_changes_nothing() {
    // Sticks report themselves as removable, USB disks do not.
    for (name, expected) in MACHINES {
        for removable in ["0", "1"] {
            let machine = Machine::copy_of(name);
            machine.plug_disk(
                "STICK-1",
                "pci0000:00/0000:00:00.1/usb2/2-1/2-1:1.0/host9/target9:0:0/9:0:0:0/block",
                "sdc",
                removable,
            );
            machine.plug_disk(
                "STICK-2",
                "platform/3610000.usb/usb1/1-2/1-2:1.0/host8/target8:0:0/8:0:0:0/block",
                "sdd",
                removable,
            );
            assert_eq!(machine.fingerprint(), expected, "{name}, removable {removable}");
        }
    }
}

#[test]
fn disk_of_a_network_changes_nothing() {
    for (name, expected) in MACHINES {
        let machine = Machine::copy_of(name);
        machine.plug_disk("ISCSI", "platform/host6/session1/target6:0:0/6:0:0:1/block", "sde", "0");
        machine.plug_disk("TCP", "virtual/nvme-fabrics/ctl/nvme9", "nvme9n1", "0");
        assert_eq!(machine.fingerprint(), expected, "{name}");
    }
}

#[test]
fn memory_that_the_kernel_keeps_for_itself_changes_nothing() {
    for (name, expected) in MACHINES {
        let machine = Machine::copy_of(name);
        let meminfo = machine.read("proc/meminfo");
        let total: i64 = meminfo.split_whitespace().nth(1).unwrap().parse().unwrap();
        // Another boot, another kernel, another amount that it reserves.
        for jitter_kib in [-640, 388, -48 * 1024, 20 * 1024, -300 * 1024] {
            machine.write("proc/meminfo", meminfo.replacen(&total.to_string(), &(total + jitter_kib).to_string(), 1));
            assert_eq!(machine.fingerprint(), expected, "{name}, {jitter_kib} KiB");
        }
    }
}

#[test]
fn processors_taken_offline_change_nothing() {
    for (name, expected) in MACHINES {
        let machine = Machine::copy_of(name);
        let cpuinfo = machine.read("proc/cpuinfo");
        // Only the last processor goes. Its record ends with an empty line, and what follows is about the board.
        let start = cpuinfo.rfind("processor\t:").unwrap();
        let end = start + cpuinfo[start..].find("\n\n").unwrap() + 2;
        machine.write("proc/cpuinfo", format!("{}{}", &cpuinfo[..start], &cpuinfo[end..]));
        assert_eq!(machine.fingerprint(), expected, "{name}");
    }
}

/// `nvme0` and `nvme1` are numbered in the order in which they finish probing, which may differ from boot to boot.
#[test]
fn disks_numbered_the_other_way_round_change_nothing() {
    let first_slot = "pci0000:00/0000:00:1b.0/0000:03:00.0/nvme";
    let second_slot = "pci0000:00/0000:00:1d.0/0000:04:00.0/nvme";
    let boot = |first: &str, second: &str| {
        let machine = Machine::copy_of("x86-server");
        machine.plug_disk("FIRST-SLOT", &format!("{first_slot}/{first}"), &format!("{first}n1"), "0");
        machine.plug_disk("SECOND-SLOT", &format!("{second_slot}/{second}"), &format!("{second}n1"), "0");
        machine.fingerprint()
    };
    assert!(boot("nvme0", "nvme1").ends_with("DriveSerial: FIRST-SLOT"));
    assert_eq!(boot("nvme1", "nvme0"), boot("nvme0", "nvme1"));
}

/// An NVMe drive with two ports has one virtual device for both, whose path has only a number.
#[test]
fn multipath_disks_numbered_the_other_way_round_change_nothing() {
    let boot = |first: &str, second: &str| {
        let machine = Machine::copy_of("x86-server");
        for (number, serial) in [(0, first), (1, second)] {
            let directory = format!("virtual/nvme-subsystem/nvme-subsys{number}");
            machine.plug_disk(serial, &directory, &format!("nvme{number}n1"), "0");
            machine.plug_disk("PATH", &directory, &format!("nvme{number}c0n1"), "0");
        }
        machine.fingerprint()
    };
    assert!(boot("ONE", "TWO").ends_with("DriveSerial: ONE"));
    assert_eq!(boot("TWO", "ONE"), boot("ONE", "TWO"));
}

/// Virtual functions of a graphics card exist only once somebody has enabled them.
#[test]
fn virtual_functions_of_a_gpu_change_nothing() {
    let machine = Machine::copy_of("x86-server");
    for (file, content) in [("class", "0x030000\n"), ("vendor", "0x10de\n"), ("device", "0x2531\n")] {
        machine.write(&format!("sys/bus/pci/devices/0000:31:00.4/{file}"), content);
    }
    machine.link("sys/bus/pci/devices/0000:31:00.4/physfn", "../0000:31:00.0");
    assert_eq!(machine.fingerprint(), X86_SERVER);
}

/// A board whose kernel names its model neither in `/proc/cpuinfo` nor on the SoC bus.
#[test]
fn board_model_comes_from_the_device_tree_where_nothing_else_has_it() {
    let machine = Machine::copy_of("emmc-only");
    machine.remove_directory("sys/devices/soc0");
    assert_eq!(machine.fingerprint(), EMMC_ONLY);
    // First without the link in /proc, then without the device tree.
    fs::remove_file(machine.path("proc/device-tree")).unwrap();
    assert_eq!(machine.fingerprint(), EMMC_ONLY);
    machine.remove_directory("sys/firmware");
    assert!(machine.fingerprint().starts_with("CPU: implementer 0x41 part 0xd03. "));
}

#[test]
fn disk_without_a_serial_leaves_the_next_one() {
    let machine = Machine::copy_of("jetson");
    machine.write("sys/block/nvme0n1/device/serial", " \n");
    fs::remove_file(machine.path("sys/block/nvme0n1/wwid")).unwrap();
    assert!(machine.fingerprint().ends_with("DriveSerial: 035344534e363447807420dc5b015400"));
}

/// The overlay `vc4-kms-v3d` in `config.txt` adds these nodes, and a fresh installation may not have it.
#[test]
fn raspberry_pi_without_graphics_in_its_config_txt_is_the_same() {
    let machine = Machine::copy_of("raspberry-pi");
    for node in ["gpu", "v3dbus"] {
        machine.remove_directory(&format!("sys/devices/platform/{node}"));
    }
    assert_eq!(machine.fingerprint(), RASPBERRY_PI);
}

/// Soldered disks come before those with a connector, then the SD card, and the board if there is no disk.
#[test]
fn serial_is_of_what_is_hardest_to_take_out() {
    let machine = Machine::copy_of("raspberry-pi");
    let serial = || machine.fingerprint().split("DriveSerial: ").nth(1).unwrap().to_owned();
    machine.remove_directory("sys/devices/platform/emmc2bus");
    assert_eq!(serial(), "10000000d94a609b", "nothing but the board");
    // The link that is left in `sys/block` must not dangle.
    fs::remove_file(machine.path("sys/block/mmcblk0")).unwrap();
    machine.write("sys/block/mmcblk0/device/cid", "5344");
    machine.write("sys/block/mmcblk0/device/type", "SD\n");
    assert_eq!(serial(), "5344");
    machine.plug_disk("SATA", "pci0000:00/0000:00:17.0/ata1/host0/target0:0:0/0:0:0:0/block", "sda", "0");
    assert_eq!(serial(), "SATA");
    machine.plug_disk("NVME", "pci0000:00/0000:00:1d.0/0000:04:00.0/nvme/nvme0", "nvme0n1", "0");
    assert_eq!(serial(), "NVME");
    machine.write("sys/block/mmcblk1/device/cid", "1501");
    machine.write("sys/block/mmcblk1/device/type", "MMC\n");
    assert_eq!(serial(), "1501");
}

/// Zeros, and the serial that QEMU gives to every disk: all such machines would have the same string.
#[test]
fn serial_that_every_machine_has_counts_as_none() {
    let machine = Machine::empty();
    machine.write("proc/cpuinfo", "Serial\t\t: 0000000000000000\n");
    machine.plug_disk("QM00001", "pci0000:00/0000:00:01.1/ata1/host0/target0:0:0/0:0:0:0/block", "sda", "0");
    assert!(machine.fingerprint().ends_with("DriveSerial: none"), "{}", machine.fingerprint());
    assert!(!Hardware::read(machine.root.path()).has_serial());
    machine.write("sys/bus/soc/devices/soc0/serial_number", "1D0C2A0DAB35A53C\n");
    assert!(machine.fingerprint().ends_with("DriveSerial: 1D0C2A0DAB35A53C"));
}

#[test]
fn explanation_says_where_each_part_is_from_and_what_changes_it() {
    let explanation = Hardware::read(&fixture("jetson")).explanation();
    let lines: Vec<&str> = explanation.lines().collect();
    assert_eq!(lines.len(), 12, "{explanation}");
    assert_eq!(lines[0], "CPU: ARMv8 Processor rev 1 (v8l)");
    assert_eq!(lines[1], "  read from:  model name in /proc/cpuinfo");
    assert_eq!(lines[10], "  read from:  /sys/block/nvme0n1/device/serial");
    assert!(lines[11].starts_with("  changed by: this drive is replaced or removed"), "{explanation}");
    assert_eq!(Hardware::read(Path::new("/nonexistent")).explanation().matches("not found").count(), 4);
}

#[test]
fn virtio_disk_gives_the_serial_that_the_hypervisor_set() {
    let machine = Machine::empty();
    machine.write("sys/devices/pci0000:00/0000:00:02.0/virtio1/block/vda/serial", "disk-7f3a");
    machine.link("sys/block/vda", "../devices/pci0000:00/0000:00:02.0/virtio1/block/vda");
    assert_eq!(machine.fingerprint(), "CPU: none. GPU: none. Memory: none. DriveSerial: disk-7f3a");
}

#[test]
fn hostile_contents_come_out_printable_and_short() {
    let machine = Machine::copy_of("jetson");
    machine.write("proc/cpuinfo", "model name\t: a\x1b]0;b\x07\u{202e}c\u{fffd}\n".repeat(5000));
    machine.write("proc/meminfo", "MemTotal: -1 kB\n");
    machine.write(
        "sys/block/nvme0n1/device/serial",
        b"\xff\0\r\n".repeat(100_000).iter().chain(b"X").copied().collect::<Vec<u8>>(),
    );
    machine.write("sys/block/nvme0n1/wwid", "wx".repeat(100_000));
    let expected = format!("CPU: a ]0;b c. GPU: nvidia,ga10b. Memory: none. DriveSerial: {}", "wx".repeat(64));
    assert_eq!(machine.fingerprint(), expected);
}

#[test]
fn nothing_to_read_gives_none_for_every_part() {
    let none = "CPU: none. GPU: none. Memory: none. DriveSerial: none";
    assert_eq!(Machine::empty().fingerprint(), none);
    assert_eq!(fingerprint(Path::new("/nonexistent")), none);
}

#[test]
fn this_machine_gives_the_same_string_twice() {
    let string = fingerprint(Path::new("/"));
    assert_eq!(fingerprint(Path::new("/")), string);
    assert!(
        string.starts_with("CPU: ") && string.contains(". GPU: ") && string.contains(". DriveSerial: "),
        "{string}"
    );
    assert!(string.contains(" GiB. "), "every Linux has MemTotal: {string}");
    assert!(string.chars().all(|character| character.is_ascii_graphic() || character == ' '), "{string:?}");
}

fn fingerprint(root: &Path) -> String {
    Hardware::read(root).string()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hardware").join(name)
}

/// A tree of `/proc` and `/sys` that a test may change.
pub struct Machine {
    root: TempDir,
}

impl Machine {
    pub fn empty() -> Self {
        Self { root: TempDir::new().unwrap() }
    }

    fn copy_of(name: &str) -> Self {
        let machine = Self::empty();
        copy_tree(&fixture(name), machine.root.path());
        machine
    }

    pub fn fingerprint(&self) -> String {
        fingerprint(self.root.path())
    }

    pub fn explanation(&self) -> String {
        Hardware::read(self.root.path()).explanation()
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub fn link(&self, path: &str, target: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    /// Leaves links to it dangling, as masking does. Machines without this directory stay as they are.
    pub fn remove_directory(&self, path: &str) {
        if self.path(path).exists() {
            fs::remove_dir_all(self.path(path)).unwrap();
        }
    }

    /// A disk `name` below `sys/devices/{directory}`, linked from `sys/block` as the kernel does.
    pub fn plug_disk(&self, serial: &str, directory: &str, name: &str, removable: &str) {
        let disk = format!("devices/{directory}/{name}");
        self.write(&format!("sys/{disk}/removable"), format!("{removable}\n"));
        self.write(&format!("sys/{disk}/device/serial"), format!("{serial}\n"));
        let link = self.path(&format!("sys/block/{name}"));
        if link.symlink_metadata().is_err() {
            self.link(&format!("sys/block/{name}"), &format!("../{disk}"));
        }
    }
}

/// Copies files, directories and links. Links stay links, so that they lead into the copy.
fn copy_tree(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        let kind = entry.file_type().unwrap();
        if kind.is_symlink() {
            symlink(fs::read_link(entry.path()).unwrap(), target).unwrap();
        } else if kind.is_dir() {
            fs::create_dir(&target).unwrap();
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
