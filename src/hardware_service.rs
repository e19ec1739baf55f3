//! The hardware string, to which the Resource API binds a user's keys.
//!
//! One changed character changes every key, and the box can no longer read its models. So a source is used only if its value
//! is the same on every boot, and the same on the host and in an ordinary container:
//!
//! - Containers share the host's `/proc/cpuinfo`, `/proc/meminfo` and `/sys`, but docker and podman mask
//!   `/sys/firmware`, where the device tree lives and where `/proc/device-tree` points. Values of
//!   the device tree are therefore read where the kernel repeats them: `Model` in `/proc/cpuinfo`, the SoC bus, the `uevent` of platform
//!   devices.
//! - `sda` and `nvme0` are assigned in the order in which probing ends, so disks are ordered by where they are plugged in.
//! - A container has its own mounts and cannot identify the boot disk, so mounts are not considered.
//!
//! Two cases remain in which host and container differ, and there `HARDWARE_ID` is the answer (or, for the first,
//! running the container with `--security-opt systempaths=unconfined`): a board whose kernel repeats its model nowhere,
//! and an LXC container whose lxcfs replaces `MemTotal` by the container's limit.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

/// Stands for a part that the machine does not have or does not show.
const NONE: &str = "none";

/// The longest part, in characters: a corrupt device must not make the string too long to read out on the phone.
const MAX_PART_CHARS: usize = 128;

/// The most bytes read of one file. Only `/proc/cpuinfo` is longer; its fields are near its start, or, on the small boards
/// that have `Model`, at the end of a few kilobytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// The files below `/sys/block/<disk>` with a disk's serial. The first one that is not empty counts.
const SERIAL_FILES: [&str; 6] = [
    // eMMC and SD: the whole identification register. Its 32-bit serial alone is zero on some cheap cards.
    "device/cid",
    // NVMe, blank-padded.
    "device/serial",
    // SCSI, SATA and UFS: vital product data, binary.
    "device/vpd_pg80",
    // virtio, where the hypervisor sets one.
    "serial",
    // World-wide names last: their format differs between kernels.
    "device/wwid",
    "wwid",
];

/// Parts of the path of a device that is not built in: USB, NVMe over a network, iSCSI. Such a disk comes and goes while the
/// box remains the same.
const NOT_BUILT_IN: [&str; 3] = ["/usb", "/nvme-fabrics/", "/session"];

/// The hardware string of the machine: `CPU: {cpu}. GPU: {gpu}. Memory: {memory}. DriveSerial: {serial}`.
///
/// Reads `{root}/proc` and `{root}/sys` and nothing else; `root` is `/` outside tests. Each part is printable ASCII
/// with single spaces, at most 128 characters, and `none` where the machine has no such part or its file cannot be
/// read: there are no errors.
///
/// - `cpu`: the CPU's model name, else the board's, else the CPU's implementer and part number.
/// - `gpu`: `vendor:device` of every PCI display controller, else the device-tree `compatible` of the SoC's GPU.
/// - `memory`: in GiB, rounded up coarsely, as in `8 GiB`.
/// - `serial`: of the built-in disk: NVMe before SCSI, SATA and virtio, before eMMC, before an SD card.
pub fn fingerprint(root: &Path) -> String {
    let cpu = part(cpu(root));
    let gpu = part(gpu(root));
    let memory = part(memory(root));
    let serial = part(drive_serial(root));
    format!("CPU: {cpu}. GPU: {gpu}. Memory: {memory}. DriveSerial: {serial}")
}

fn part(text: Option<String>) -> String {
    text.unwrap_or_else(|| NONE.to_owned())
}

/// The first of these: `model name` (x86, 32-bit ARM, Jetson), then the board's model, then the rest.
///
/// The board's model is taken from the kernel's copies before the device tree itself, because a container sees only the
/// copies. Most SoC drivers copy the model literally; where one does not (Qualcomm), both sides must still agree.
fn cpu(root: &Path) -> Option<String> {
    let cpuinfo = read_raw(&root.join("proc/cpuinfo"))
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    cpuinfo_field(&cpuinfo, "model name")
        .or_else(|| cpuinfo_field(&cpuinfo, "Model"))
        .or_else(|| soc_machine(root))
        .or_else(|| read(&root.join("proc/device-tree/model")))
        .or_else(|| read(&root.join("sys/firmware/devicetree/base/model")))
        .or_else(|| cpuinfo_field(&cpuinfo, "Hardware"))
        .or_else(|| {
            let implementer = cpuinfo_field(&cpuinfo, "CPU implementer")?;
            let part = cpuinfo_field(&cpuinfo, "CPU part")?;
            Some(format!("implementer {implementer} part {part}"))
        })
}

fn soc_machine(root: &Path) -> Option<String> {
    let devices = root.join("sys/bus/soc/devices");
    names(&devices).iter().find_map(|name| read(&devices.join(name).join("machine")))
}

/// The value of the first line `key : value` that has one. The case counts: on x86 `model` is a number, on a Raspberry
/// Pi `Model` is the board.
fn cpuinfo_field(cpuinfo: &str, key: &str) -> Option<String> {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.trim() == key)
        .find_map(|(_, value)| clean(value))
}

fn gpu(root: &Path) -> Option<String> {
    let ids = pci_gpus(root);
    let ids = if ids.is_empty() { soc_gpus(root) } else { ids };
    clean(&ids.join(", "))
}

/// `vendor:device` of the PCI display controllers, by address.
fn pci_gpus(root: &Path) -> Vec<String> {
    let devices = root.join("sys/bus/pci/devices");
    let id = |name: &String| {
        let device = devices.join(name);
        // 0x03 is the base class of display controllers. A device with `physfn` is a virtual function, which exists
        // only once somebody has switched it on.
        if !read(&device.join("class"))?.starts_with("0x03") || device.join("physfn").symlink_metadata().is_ok() {
            return None;
        }
        let vendor = read(&device.join("vendor"))?;
        let product = read(&device.join("device"))?;
        Some(format!("{}:{}", vendor.trim_start_matches("0x"), product.trim_start_matches("0x")))
    };
    names(&devices).iter().filter_map(id).collect()
}

/// The most specific `compatible` of each kind of GPU on the SoC, sorted. Platform devices are made from the device
/// tree at boot, whether or not a driver is loaded.
fn soc_gpus(root: &Path) -> Vec<String> {
    let devices = root.join("sys/bus/platform/devices");
    let compatible = |name: &String| {
        let uevent = read_raw(&devices.join(name).join("uevent"))?;
        let uevent = String::from_utf8_lossy(&uevent);
        let value =
            |key: &str| uevent.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).and_then(clean);
        if is_gpu_node(&value("OF_NAME")?) { value("OF_COMPATIBLE_0") } else { None }
    };
    let mut found: Vec<String> = names(&devices).iter().filter_map(compatible).collect();
    found.sort();
    found.dedup();
    found
}

/// Whether a device-tree node of this name is a GPU. The device-tree specification calls it `gpu`; `v3d` is the
/// Raspberry Pi's, `gpu3d` and `gpu2d` come from NXP's kernels, and NVIDIA's name the chip, as in `gp10b`, `gv11b` and
/// `ga10b`.
fn is_gpu_node(name: &str) -> bool {
    matches!(name, "gpu" | "gpu2d" | "gpu3d" | "v3d")
        || matches!(name.as_bytes(), [b'g', family, tens, ones, b'a' | b'b']
            if family.is_ascii_lowercase() && tens.is_ascii_digit() && ones.is_ascii_digit())
}

fn memory(root: &Path) -> Option<String> {
    let meminfo = read_raw(&root.join("proc/meminfo"))?;
    let meminfo = String::from_utf8_lossy(&meminfo);
    let kib =
        meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.split_whitespace().next()?.parse().ok()?;
    Some(format!("{} GiB", installed_gib(kib)))
}

/// The memory that is probably installed, in GiB, for a `MemTotal` in KiB.
///
/// `MemTotal` is what firmware and kernel left over. It differs by hundreds of KiB from boot to boot, by tens of MiB
/// between kernels and by hundreds of MiB with the carve-outs of a Jetson or the `gpu_mem` of a Raspberry Pi, so
/// rounding to the nearest GiB, or up to the next, would flip sooner or later. Carve-outs grow with the machine, and so
/// does the step here: 1 GiB up to 8 GiB, 2 up to 16, 4 up to 32, and so on: an eighth of the memory or more, while usually
/// 2 to 8 % are missing.
fn installed_gib(kib: u64) -> u64 {
    let gib = kib.div_ceil(1024 * 1024).max(1);
    let step = (gib.next_power_of_two() / 8).max(1);
    gib.div_ceil(step) * step
}

/// The serial of the first built-in disk that has one.
fn drive_serial(root: &Path) -> Option<String> {
    let block = root.join("sys/block");
    let rank = |name: String| {
        let disk = block.join(&name);
        let kind = DiskKind::of(&name, &disk)?;
        // Real entries are links to where the device sits, such as
        // `../devices/pci0000:00/0000:00:17.0/ata1/…/block/sda`.
        let place = fs::read_link(&disk).map_or_else(|_| name.clone(), |link| link.to_string_lossy().into_owned());
        if read(&disk.join("removable")).is_some_and(|flag| flag == "1")
            || NOT_BUILT_IN.iter().any(|bus| place.contains(bus))
        {
            return None;
        }
        let serial = SERIAL_FILES.iter().find_map(|file| serial(&disk.join(file)))?;
        // The virtual path of an NVMe drive with two ports holds only its number, so there the serial decides.
        let place = if place.contains("/virtual/") { String::new() } else { natural_key(&place) };
        Some((kind, place, serial))
    };
    names(&block).into_iter().filter_map(rank).min().map(|(_, _, serial)| serial)
}

/// Kinds of system disk, in the order of preference. An SD card is last, because anybody can take it out.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum DiskKind {
    Nvme,
    ScsiOrVirtio,
    Emmc,
    SdCard,
}

impl DiskKind {
    /// Only known kinds count, so that a new virtual device of the kernel (as loop, ram, zram, dm, md, sr, nbd) changes nothing.
    /// Whole names are compared: `nvme0c0n1` is one path to `nvme0n1`, `mmcblk0boot0` a part of `mmcblk0`.
    fn of(name: &str, disk: &Path) -> Option<Self> {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let letters = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase());
        if let Some((controller, namespace)) = name.strip_prefix("nvme").and_then(|rest| rest.split_once('n')) {
            (digits(controller) && digits(namespace)).then_some(Self::Nvme)
        } else if let Some(number) = name.strip_prefix("mmcblk") {
            let emmc = read(&disk.join("device/type")).is_some_and(|kind| kind == "MMC");
            digits(number).then_some(if emmc { Self::Emmc } else { Self::SdCard })
        } else {
            let letter = name.strip_prefix("sd").or_else(|| name.strip_prefix("vd"))?;
            letters(letter).then_some(Self::ScsiOrVirtio)
        }
    }
}

fn serial(file: &Path) -> Option<String> {
    let bytes = read_raw(file)?;
    if file.ends_with("vpd_pg80") { clean(vpd_text(&bytes)?) } else { clean(&String::from_utf8_lossy(&bytes)) }
}

/// The text of a SCSI vital product data page 0x80: device type, page code, length (two bytes, big-endian), serial in
/// ASCII.
fn vpd_text(page: &[u8]) -> Option<&str> {
    let [_, 0x80, high, low, text @ ..] = page else { return None };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    std::str::from_utf8(text.get(..length).unwrap_or(text)).ok()
}

/// A key that sorts numbers inside names by value: `ata9` before `ata10`.
fn natural_key(name: &str) -> String {
    let mut key = String::new();
    let mut digits = String::new();
    let flush = |digits: &mut String, key: &mut String| {
        if !digits.is_empty() {
            key.push_str(&format!("{:0>20}", digits.trim_start_matches('0')));
            digits.clear();
        }
    };
    for character in name.chars() {
        if character.is_ascii_digit() {
            digits.push(character);
        } else {
            flush(&mut digits, &mut key);
            key.push(character);
        }
    }
    flush(&mut digits, &mut key);
    key
}

/// The names in a directory, sorted, because the kernel promises no order. Empty if it cannot be read.
fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn read(file: &Path) -> Option<String> {
    clean(&String::from_utf8_lossy(&read_raw(file)?))
}

fn read_raw(file: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file).ok()?.take(MAX_FILE_BYTES).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Printable ASCII with single spaces, cut to [`MAX_PART_CHARS`], or nothing if there is none. Device-tree strings end
/// in NUL, serials are padded with blanks, and a failing disk may return anything at all.
fn clean(text: &str) -> Option<String> {
    let printable: String =
        text.chars().map(|character| if character.is_ascii_graphic() { character } else { ' ' }).collect();
    let words: Vec<&str> = printable.split_whitespace().collect();
    let short: String = words.join(" ").chars().take(MAX_PART_CHARS).collect();
    let short = short.trim_end();
    (!short.is_empty()).then(|| short.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_printable_single_spaced_and_short() {
        assert_eq!(clean("  Intel(R)\tXeon(R)   CPU\n").as_deref(), Some("Intel(R) Xeon(R) CPU"));
        assert_eq!(clean("Raspberry Pi 4\0").as_deref(), Some("Raspberry Pi 4"));
        assert_eq!(clean("a\x1b[31mb\u{202e}\u{fffd}c\x7f").as_deref(), Some("a [31mb c"));
        assert_eq!(clean(" \0\n"), None);
        assert_eq!(clean(&"x".repeat(500)), Some("x".repeat(MAX_PART_CHARS)));
        assert_eq!(clean(&format!("{} y", "x".repeat(MAX_PART_CHARS - 1))), Some("x".repeat(MAX_PART_CHARS - 1)));
    }

    #[test]
    fn memory_is_rounded_to_what_is_installed() {
        // What real machines report, in KiB: Raspberry Pi 1, 4 and 8 GB, Jetson Nano, Orin Nano, AGX Orin 32 and 64 GB,
        // servers.
        for (kib, gib) in [
            (948_012, 1),
            (3_884_360, 4),
            (3_448_136, 4),
            (7_998_820, 8),
            (4_059_268, 4),
            (7_802_656, 8),
            (32_116_504, 32),
            (64_349_052, 64),
            (65_611_908, 64),
            (131_703_472, 128),
            (197_736_700, 192),
            (8 * 1024 * 1024, 8),
            (1, 1),
            (0, 1),
        ] {
            assert_eq!(installed_gib(kib), gib, "{kib} KiB");
        }
    }

    #[test]
    fn vital_product_data_is_cut_at_its_length() {
        assert_eq!(vpd_text(b"\0\x80\0\x04 WD1rest"), Some(" WD1"));
        assert_eq!(vpd_text(b"\0\x80\0\xffshort"), Some("short"));
        assert_eq!(vpd_text(b"\0\x83\0\x04naa."), None);
        assert_eq!(vpd_text(b"\0\x80\0"), None);
        assert_eq!(vpd_text(b"\0\x80\0\x02\xff\xfe"), None);
    }

    #[test]
    fn numbers_in_names_sort_by_value() {
        let mut paths = ["ata10/sdb", "ata9/sda", "ata9", "ata09a"];
        paths.sort_by_key(|path| natural_key(path));
        assert_eq!(paths, ["ata9", "ata9/sda", "ata09a", "ata10/sdb"]);
    }

    #[test]
    fn only_whole_disks_of_known_kinds_count() {
        let kind = |name| DiskKind::of(name, Path::new("/nonexistent"));
        assert_eq!(kind("nvme0n1"), Some(DiskKind::Nvme));
        assert_eq!(kind("sdaa"), Some(DiskKind::ScsiOrVirtio));
        assert_eq!(kind("vda"), Some(DiskKind::ScsiOrVirtio));
        assert_eq!(kind("mmcblk1"), Some(DiskKind::SdCard));
        for name in "nvme0c0n1 nvme0 mmcblk0boot0 mmcblk0rpmb loop0 ram1 zram0 dm-0 md0 sr0 nbd0 fd0 sd".split(' ') {
            assert_eq!(kind(name), None, "{name}");
        }
    }

    #[test]
    fn gpu_nodes_are_distinguished_from_similar_names() {
        assert!(["gpu", "v3d", "gpu3d", "gp10b", "gv11b", "ga10b"].into_iter().all(is_gpu_node));
        assert!(!["gpu-thermal", "gpio", "gic", "gmu", "npu", "g11b", "clock-controller"].into_iter().any(is_gpu_node));
    }

    #[test]
    fn cpuinfo_keys_are_exact_and_empty_values_skipped() {
        let cpuinfo =
            "processor\t: 0\nmodel\t\t: 167\nmodel name\t: \nmodel name\t: Some CPU @ 2:1\nModel\t\t: Board\n";
        assert_eq!(cpuinfo_field(cpuinfo, "model name").as_deref(), Some("Some CPU @ 2:1"));
        assert_eq!(cpuinfo_field(cpuinfo, "Model").as_deref(), Some("Board"));
        assert_eq!(cpuinfo_field(cpuinfo, "Hardware"), None);
    }
}
