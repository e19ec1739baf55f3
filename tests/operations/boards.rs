//! The hardware strings of the boards in `tests/fixtures/hardware/boards.txt`, before and after what happens to boxes in the field.

use std::fs;
use std::path::Path;

use super::hardware::Machine;

/// A board: its string, and the files and links that describe it.
struct Board {
    name: String,
    string: String,
    lines: Vec<(String, String)>,
}

impl Board {
    fn all() -> Vec<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hardware/boards.txt");
        let text = fs::read_to_string(path).unwrap();
        let board = |text: &str| {
            let mut lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
            let name = lines.next().unwrap().to_owned();
            let string = lines.next().unwrap().strip_prefix("= ").unwrap().to_owned();
            let line = |line: &str| {
                let cut = line.find(" -> ").or_else(|| line.find(": ")).unwrap();
                (line[..cut].to_owned(), line[cut..].to_owned())
            };
            Self { name, string, lines: lines.map(line).collect() }
        };
        text.split("\n== ").skip(1).map(board).collect()
    }

    fn machine(&self) -> Machine {
        let machine = Machine::empty();
        for (path, content) in &self.lines {
            match content.strip_prefix(" -> ") {
                Some(target) => machine.link(path, target),
                None => machine.write(path, content[2..].replace('|', "\n") + "\n"),
            }
        }
        machine
    }

    /// The disks, by their names in `/sys/block`.
    fn disks(&self) -> Vec<&str> {
        self.lines.iter().filter_map(|(path, _)| path.strip_prefix("sys/block/")).collect()
    }
}

/// Makes a change to a board's files.
type Change = fn(&Board, &Machine);

/// Changes to a box that leave it the same box.
const CHANGES: [(&str, Change); 6] = [
    ("a disk added", |board, machine| {
        // A disk of the kind that counts least, in a later slot. The string of a box without disks would change, so those are
        // left out.
        if !board.disks().is_empty() {
            machine.write("sys/devices/zzz/mmc_host/mmc9/mmc9:aaaa/block/mmcblk9/device/type", "SD\n");
            machine.write("sys/devices/zzz/mmc_host/mmc9/mmc9:aaaa/block/mmcblk9/device/cid", "ADDED\n");
            machine.link("sys/block/mmcblk9", "../devices/zzz/mmc_host/mmc9/mmc9:aaaa/block/mmcblk9");
        }
    }),
    ("a disk gone", |board, machine| {
        // All disks but the one in the string.
        let explanation = machine.explanation();
        for disk in board.disks().iter().filter(|disk| !explanation.contains(&format!("/sys/block/{disk}/"))) {
            fs::remove_file(machine.path(&format!("sys/block/{disk}"))).unwrap();
        }
    }),
    ("a USB disk", |_, machine| {
        machine.plug_disk("USB", "platform/usb/usb1/1-1/1-1:1.0/host9/target9:0:0/9:0:0:0/block", "sdx", "0");
    }),
    ("a GPU driver that comes late", |board, machine| {
        for (path, _) in &board.lines {
            if let Some(device) = path.strip_suffix("/uevent").or_else(|| path.strip_suffix("/class")) {
                machine.write(&format!("{device}/drm/card0/uevent"), "DEVNAME=dri/card0\n");
                let driver = "DRIVER=driver\nDEVTYPE=drm_minor\n";
                if path.ends_with("uevent") {
                    machine.write(path, format!("{driver}{}", machine.read(path)));
                }
            }
        }
    }),
    ("another kernel", |board, machine| {
        // Disks are renumbered, the kernel reserves some memory, the processor has one more feature, PCI another
        // domain.
        for disk in board.disks() {
            let other = if disk.starts_with("sd") { "sdq".to_owned() } else { disk.replacen(['0', '1'], "7", 1) };
            let link = machine.path(&format!("sys/block/{disk}"));
            if link.symlink_metadata().is_ok() {
                fs::rename(link, machine.path(&format!("sys/block/{other}"))).unwrap();
            }
        }
        let memory = machine.read("proc/meminfo");
        let total: u64 = memory.split_whitespace().nth(1).unwrap().parse().unwrap();
        machine.write("proc/meminfo", memory.replace(&total.to_string(), &(total - 20 * 1024).to_string()));
        let cpuinfo = machine.read("proc/cpuinfo").replace("BogoMIPS\t: ", "BogoMIPS\t: 1");
        machine.write("proc/cpuinfo", cpuinfo.replace("Hardware\t: BCM2835\n", ""));
        machine.write("sys/block/zram0/size", "0\n");
    }),
    ("other settings in config.txt", |board, machine| {
        // On a Raspberry Pi they decide whether the device tree has its GPU.
        if board.name.starts_with("pi-") {
            machine.remove_directory("sys/bus/platform");
        }
    }),
];

#[test]
fn boards_keep_their_strings_whatever_comes_and_goes() {
    let boards = Board::all();
    assert!(boards.len() >= 14, "{}", boards.len());
    for board in boards {
        assert_eq!(board.machine().fingerprint(), board.string, "{}", board.name);
        for (change, make) in &CHANGES {
            let machine = board.machine();
            make(&board, &machine);
            assert_eq!(machine.fingerprint(), board.string, "{}: {change}", board.name);
        }
        let machine = board.machine();
        for (_, make) in &CHANGES {
            make(&board, &machine);
        }
        assert_eq!(machine.fingerprint(), board.string, "{}: all of them", board.name);
    }
}

/// What `fingerprint --explain` names as a change does change the string.
#[test]
fn boards_get_another_string_by_what_the_explanation_says() {
    for board in Board::all() {
        let machine = board.machine();
        let nvme_first = !board.disks().is_empty() && !board.string.ends_with("EMMC-1");
        if nvme_first {
            machine.plug_disk("EARLIER", "0/pci0000:00/0000:00:00.1/nvme/nvme8", "nvme8n1", "0");
            assert!(machine.fingerprint().ends_with("DriveSerial: EARLIER"), "{}", board.name);
        }
        let explanation = board.machine().explanation();
        let expected = match board.disks().first() {
            None => "a disk with a serial is added",
            Some(disk) if disk.starts_with("mmcblk") && !nvme_first => "another eMMC",
            Some(disk) if disk.starts_with("mmcblk") => "a built-in disk is added",
            Some(disk) if disk.starts_with("nvme") => "an NVMe drive in an earlier slot",
            Some(_) => "an eMMC or an NVMe drive is added",
        };
        assert!(explanation.lines().last().unwrap().contains(expected), "{}: {explanation}", board.name);
    }
}
