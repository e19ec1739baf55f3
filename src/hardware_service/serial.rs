//! The serial, of a part that is not taken out or added later: it tells this box from others of its kind.

use std::fs;

use super::files::{Fact, Root, clean};

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

/// What QEMU gives to every disk, in every machine, for which nobody has set a serial: IDE and SATA, then the end of SCSI's
/// world-wide name.
const DEFAULTS_OF_QEMU: [&str; 2] = ["QM0000", "QEMU HARDDISK drive-"];

/// The serial of the first built-in disk that has one, else the board's.
pub(super) fn serial(root: Root) -> Option<Fact> {
    drive_serial(root).or_else(|| board_serial(root))
}

fn drive_serial(root: Root) -> Option<Fact> {
    let rank = |name: String| {
        let disk = format!("sys/block/{name}");
        let kind = DiskKind::of(&name, root.value(&format!("{disk}/device/type")).as_deref())?;
        // Real entries are links to where the device sits, such as
        // `../devices/pci0000:00/0000:00:17.0/ata1/…/block/sda`.
        let place =
            fs::read_link(root.path(&disk)).map_or_else(|_| name.clone(), |link| link.to_string_lossy().into_owned());
        if root.value(&format!("{disk}/removable")).is_some_and(|flag| flag == "1")
            || NOT_BUILT_IN.iter().any(|bus| place.contains(bus))
        {
            return None;
        }
        let found = |file: &&str| {
            let file = format!("{disk}/{file}");
            let bytes = root.bytes(&file)?;
            let serial = if file.ends_with("vpd_pg80") {
                vpd_text(&bytes)?.to_owned()
            } else {
                String::from_utf8_lossy(&bytes).into_owned()
            };
            Some((clean(&serial).filter(|serial| is_distinct(serial))?, file))
        };
        let (serial, file) = SERIAL_FILES.iter().find_map(found)?;
        // The virtual path of an NVMe drive with two ports holds only its number, so there the serial decides.
        let place = if place.contains("/virtual/") { String::new() } else { natural_key(&place) };
        Some((kind, place, serial, file))
    };
    let (kind, _, value, file) = root.names("sys/block").into_iter().filter_map(rank).min()?;
    Some(Fact { value, source: format!("/{file}"), changed_by: kind.changed_by() })
}

/// `Serial` in `/proc/cpuinfo` (Raspberry Pi, kernels of board vendors), or the `serial_number` of the SoC. The device tree's
/// would do as well, but Docker masks it.
fn board_serial(root: Root) -> Option<Fact> {
    let changed_by = "another board, or a disk with a serial is added";
    let distinct = |fact: &Fact| is_distinct(&fact.value);
    root.cpuinfo("Serial", changed_by)
        .filter(distinct)
        .or_else(|| root.soc("serial_number", changed_by).filter(distinct))
}

/// Whether a serial can tell two machines apart: firmware without one says `0000000000000000`, or the like.
fn is_distinct(serial: &str) -> bool {
    let mut characters = serial.trim_start_matches("0x").bytes().filter(u8::is_ascii_alphanumeric);
    let first = characters.next();
    characters.any(|character| Some(character) != first)
        && !DEFAULTS_OF_QEMU.iter().any(|default| serial.contains(default))
}

/// Kinds of system disk, in the order of preference. An SD card is last, because anybody can take it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum DiskKind {
    Emmc,
    Nvme,
    ScsiOrVirtio,
    SdCard,
}

impl DiskKind {
    /// Only known kinds count, so that a new virtual device of the kernel (as loop, ram, zram, dm, md, sr, nbd) changes nothing.
    /// Whole names are compared: `nvme0c0n1` is one path to `nvme0n1`, `mmcblk0boot0` a part of `mmcblk0`.
    fn of(name: &str, card_type: Option<&str>) -> Option<Self> {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let letters = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase());
        if let Some((controller, namespace)) = name.strip_prefix("nvme").and_then(|rest| rest.split_once('n')) {
            (digits(controller) && digits(namespace)).then_some(Self::Nvme)
        } else if let Some(number) = name.strip_prefix("mmcblk") {
            digits(number).then_some(if card_type == Some("MMC") { Self::Emmc } else { Self::SdCard })
        } else {
            let letter = name.strip_prefix("sd").or_else(|| name.strip_prefix("vd"))?;
            letters(letter).then_some(Self::ScsiOrVirtio)
        }
    }

    fn changed_by(self) -> &'static str {
        match self {
            Self::Emmc => "another eMMC, and so, where it is soldered, another board",
            Self::Nvme => "this drive is replaced or removed, an eMMC is added, or an NVMe drive in an earlier slot",
            Self::ScsiOrVirtio => {
                "this disk is replaced or removed, an eMMC or an NVMe drive is added, or a disk at an earlier port"
            }
            Self::SdCard => "this card is replaced or removed, or a built-in disk is added",
        }
    }
}

/// The text of a SCSI vital product data page 0x80: device type, page code, length (two bytes, big-endian), serial in
/// ASCII.
fn vpd_text(page: &[u8]) -> Option<&str> {
    let [_, 0x80, high, low, text @ ..] = page else { return None };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    std::str::from_utf8(text.get(..length).unwrap_or(text)).ok()
}

/// A key that sorts numbers inside names by value: `ata9` before `ata10`. PCI addresses (`0000:00:1f.0`) are hexadecimal and of one
/// length, so they are left as they are.
fn natural_key(path: &str) -> String {
    let mut key = String::new();
    for name in path.split('/') {
        key.push('/');
        if name.len() == 12 && name.as_bytes()[4] == b':' {
            key.push_str(name);
            continue;
        }
        let mut rest = name;
        while let Some(character) = rest.chars().next() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (word, after) = rest.split_at(digits.max(character.len_utf8()));
            if digits > 0 {
                let number = word.trim_start_matches('0');
                key.extend(std::iter::repeat_n('0', 20_usize.saturating_sub(number.len())));
                key.push_str(number);
            } else {
                key.push_str(word);
            }
            rest = after;
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vital_product_data_is_cut_at_its_length() {
        assert_eq!(vpd_text(b"\0\x80\0\x04 WD1rest"), Some(" WD1"));
        assert_eq!(vpd_text(b"\0\x80\0\xffshort"), Some("short"));
        assert_eq!(vpd_text(b"\0\x83\0\x04naa."), None);
        assert_eq!(vpd_text(b"\0\x80\0"), None);
        assert_eq!(vpd_text(b"\0\x80\0\x02\xff\xfe"), None);
    }

    #[test]
    fn numbers_in_names_sort_by_value_and_pci_addresses_as_hexadecimal() {
        let mut paths =
            ["ata10/sdb", "ata9/sda", "ata9", "ata09a", "0000:00:1f.0/nvme0", "0000:00:04.0/nvme1", "0000:00:1b.0"];
        paths.sort_by_key(|path| natural_key(path));
        assert_eq!(
            paths,
            ["0000:00:04.0/nvme1", "0000:00:1b.0", "0000:00:1f.0/nvme0", "ata9", "ata9/sda", "ata09a", "ata10/sdb"]
        );
    }

    #[test]
    fn only_whole_disks_of_known_kinds_count() {
        let kind = |name| DiskKind::of(name, None);
        assert_eq!(kind("nvme0n1"), Some(DiskKind::Nvme));
        assert_eq!(kind("sdaa"), Some(DiskKind::ScsiOrVirtio));
        assert_eq!(kind("vda"), Some(DiskKind::ScsiOrVirtio));
        assert_eq!(kind("mmcblk1"), Some(DiskKind::SdCard));
        assert_eq!(DiskKind::of("mmcblk1", Some("MMC")), Some(DiskKind::Emmc));
        for name in "nvme0c0n1 nvme0 mmcblk0boot0 mmcblk0rpmb loop0 ram1 zram0 dm-0 md0 sr0 nbd0 fd0 sd".split(' ') {
            assert_eq!(kind(name), None, "{name}");
        }
    }

    #[test]
    fn what_every_machine_has_is_no_serial() {
        for serial in ["", "0", "0000000000000000", "0x00000000", "ffffffff", "00:00:00", "QM00001"] {
            assert!(!is_distinct(serial), "{serial}");
        }
        assert!(!is_distinct("t10.QEMU QEMU HARDDISK drive-scsi0-0-0-0"));
        for serial in ["100000000fe69593", "vol01234567890abcdef", "000000002e2fe545", "1a"] {
            assert!(is_distinct(serial), "{serial}");
        }
    }
}
