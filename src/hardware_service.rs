//! The hardware string, to which the Resource API binds a user's keys.
//!
//! One changed character changes every key, and the box can no longer read its models. So a source is used only if its value
//! is the same on every boot, and the same on the host and in an ordinary container:
//!
//! - Containers share the host's `/proc/cpuinfo`, `/proc/meminfo` and `/sys`, but docker and podman mask
//!   `/sys/firmware`, where the device tree lives and where `/proc/device-tree` points. Values of
//!   the device tree are therefore read where the kernel repeats them: `Model` in `/proc/cpuinfo`, the SoC bus, the `uevent` of platform
//!   devices.
//! - A GPU counts whether or not its driver is loaded, and on a Raspberry Pi, whose `config.txt` adds and removes the device
//!   tree's nodes for it, by the board.
//! - `sda` and `nvme0` are assigned in the order in which probing ends, so disks are ordered by where they are plugged in.
//! - A container has its own mounts and cannot identify the boot disk, so mounts are not considered.
//!
//! Two cases remain in which host and container differ, and there `HARDWARE_ID` is the answer (or, for the first,
//! running the container with `--security-opt systempaths=unconfined`): a board whose kernel repeats its model nowhere,
//! and an LXC container whose lxcfs replaces `MemTotal` by the container's limit.

mod files;
mod serial;

use std::fmt::Write as _;
use std::path::Path;

use files::{Fact, Root, clean};

/// Stands for a part that the machine does not have or does not show.
const NONE: &str = "none";

/// What the service and `loader fingerprint` warn about.
pub const NO_SERIAL: &str = "neither a disk nor the board has a serial number, so this box has the hardware string of all others of \
its kind; set HARDWARE_ID to a name of its own";

const PCI: &str = "sys/bus/pci/devices";
const PLATFORM: &str = "sys/bus/platform/devices";

/// The hardware string, by its parts. Each is printable ASCII with single spaces, at most 128 characters, and `none` where the
/// machine has no such part or its file cannot be read: there are no errors.
pub struct Hardware {
    parts: [(&'static str, Option<Fact>); 4],
}

impl Hardware {
    /// Reads `{root}/proc` and `{root}/sys` and nothing else; `root` is `/` outside tests.
    ///
    /// - `CPU`: the board's model on a Raspberry Pi, else the CPU's model name, else the board's, else the CPU's implementer
    ///   and part number.
    /// - `GPU`: `vendor:device` of every PCI display controller, else the device-tree `compatible` of the SoC's GPU.
    /// - `Memory`: in GiB, rounded up coarsely, as in `8 GiB`.
    /// - `DriveSerial`: of the built-in disk: eMMC before NVMe, before SCSI, SATA and virtio, before an SD card; else the board's.
    pub fn read(root: &Path) -> Self {
        let root = Root(root);
        let cpu = cpu(root);
        let gpu = gpu(root, cpu.as_ref());
        Self { parts: [("CPU", cpu), ("GPU", gpu), ("Memory", memory(root)), ("DriveSerial", serial::serial(root))] }
    }

    /// `CPU: {cpu}. GPU: {gpu}. Memory: {memory}. DriveSerial: {serial}`.
    pub fn string(&self) -> String {
        let part = |(name, fact): &(&str, Option<Fact>)| format!("{name}: {}", value(fact.as_ref()));
        self.parts.each_ref().map(part).join(". ")
    }

    /// Each part, where it was read and what would change it, for a person.
    pub fn explanation(&self) -> String {
        let mut text = String::new();
        for (name, fact) in &self.parts {
            let _ = writeln!(text, "{name}: {}", value(fact.as_ref()));
            let _ = match fact {
                Some(fact) => {
                    writeln!(text, "  read from:  {}\n  changed by: {}", fact.source, fact.changed_by)
                }
                None => writeln!(text, "  not found; changed by: one is added, or a kernel that shows it"),
            };
        }
        text
    }

    /// Whether this box is told from others of its kind.
    pub fn has_serial(&self) -> bool {
        self.parts[3].1.is_some()
    }
}

fn value(fact: Option<&Fact>) -> &str {
    fact.map_or(NONE, |fact| &fact.value)
}

/// The first of these: `Model` (Raspberry Pi; its 32-bit kernels have a `model name` as well, which all of their boards share), `model
/// name` (x86, Jetson), then the board's model, then the rest.
///
/// The board's model is taken from the kernel's copies before the device tree itself, because a container sees only the
/// copies. Most SoC drivers copy the model literally; where one does not (Qualcomm), both sides must still agree.
fn cpu(root: Root) -> Option<Fact> {
    const BOARD: &str = "another board, or another vendor's kernel or firmware";
    root.cpuinfo("Model", "another board")
        .or_else(|| root.cpuinfo("model name", "another processor"))
        .or_else(|| root.soc("machine", BOARD))
        .or_else(|| root.fact("proc/device-tree/model", BOARD))
        .or_else(|| root.fact("sys/firmware/devicetree/base/model", BOARD))
        .or_else(|| root.cpuinfo("Hardware", BOARD))
        .or_else(|| {
            let implementer = root.cpuinfo("CPU implementer", "")?.value;
            let part = root.cpuinfo("CPU part", "another processor, or a kernel that shows the board's model")?;
            Some(Fact { value: format!("implementer {implementer} part {}", part.value), ..part })
        })
}

fn gpu(root: Root, cpu: Option<&Fact>) -> Option<Fact> {
    let fact = |ids: Vec<String>, source: &str, changed_by| {
        Some(Fact { value: clean(&ids.join(", "))?, source: source.to_owned(), changed_by })
    };
    fact(pci_gpus(root), "/sys/bus/pci/devices, class 0x03", "a graphics card is added, removed or replaced")
        .or_else(|| {
            cpu.filter(|cpu| cpu.value.starts_with("Raspberry Pi")).map(|_| Fact {
                value: "Broadcom VideoCore".to_owned(),
                source: "the board's model: every Raspberry Pi has one".to_owned(),
                changed_by: "another board, or a graphics card is added",
            })
        })
        .or_else(|| {
            let changed_by = "another board, another vendor's kernel or firmware, or a graphics card is added";
            fact(soc_gpus(root), "/sys/bus/platform/devices, by the names of the device tree", changed_by)
        })
}

/// `vendor:device` of the PCI display controllers, by address.
fn pci_gpus(root: Root) -> Vec<String> {
    let id = |name: &String| {
        let device = format!("{PCI}/{name}");
        // 0x03 is the base class of display controllers. A device with `physfn` is a virtual function, which exists
        // only once somebody has switched it on.
        if !root.value(&format!("{device}/class"))?.starts_with("0x03")
            || root.path(&format!("{device}/physfn")).symlink_metadata().is_ok()
        {
            return None;
        }
        let vendor = root.value(&format!("{device}/vendor"))?;
        let product = root.value(&format!("{device}/device"))?;
        Some(format!("{}:{}", vendor.trim_start_matches("0x"), product.trim_start_matches("0x")))
    };
    root.names(PCI).iter().filter_map(id).collect()
}

/// The most specific `compatible` of each kind of GPU on the SoC, sorted. Platform devices are made from the device
/// tree at boot, whether or not a driver is loaded.
fn soc_gpus(root: Root) -> Vec<String> {
    let compatible = |name: &String| {
        let uevent = root.text(&format!("{PLATFORM}/{name}/uevent"))?;
        let value =
            |key: &str| uevent.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).and_then(clean);
        if is_gpu_node(&value("OF_NAME")?) { value("OF_COMPATIBLE_0") } else { None }
    };
    let mut found: Vec<String> = root.names(PLATFORM).iter().filter_map(compatible).collect();
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

fn memory(root: Root) -> Option<Fact> {
    let meminfo = root.text("proc/meminfo")?;
    let kib =
        meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.split_whitespace().next()?.parse().ok()?;
    Some(Fact {
        value: format!("{} GiB", installed_gib(kib)),
        source: "MemTotal in /proc/meminfo, rounded up to what is installed".to_owned(),
        changed_by: "another amount of memory",
    })
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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn gpu_nodes_are_distinguished_from_similar_names() {
        assert!(["gpu", "v3d", "gpu3d", "gp10b", "gv11b", "ga10b"].into_iter().all(is_gpu_node));
        assert!(!["gpu-thermal", "gpio", "gic", "gmu", "npu", "g11b", "clock-controller"].into_iter().any(is_gpu_node));
    }
}
