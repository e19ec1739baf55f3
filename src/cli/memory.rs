//! Files in memory that nobody can change any more, and how much memory there is for them.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

use crate::storage::reserve_space;

/// One file after the other gets its memory, so that all of them together must fit.
static RESERVATION: Mutex<()> = Mutex::new(());

/// An empty file in memory that is inherited by the program that this process becomes. All its memory is reserved: a
/// program that runs out of memory while it writes is killed, not told.
pub(super) fn reserve(name: &str, length: u64) -> Result<File, String> {
    let failed = |error: Errno| format!("no memory can be reserved for {name}: {}", io::Error::from(error));
    // Kernels before 6.3 do not know the flag, and later ones can be told to demand it.
    let file = memfd_create(name, MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| memfd_create(name, MemfdFlags::ALLOW_SEALING))
        .map(File::from)
        .map_err(failed)?;
    let _reserving = RESERVATION.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(available) = available(Path::new("/")).filter(|available| *available < length) {
        return Err(format!("{name} needs {length} bytes of memory, and {available} are available"));
    }
    reserve_space(&file, length).map_err(failed)?;
    Ok(file)
}

/// From here on nobody can change the file, this process included.
pub(super) fn seal(file: &File) -> io::Result<()> {
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    Ok(fcntl_add_seals(file, seals)?)
}

/// How many bytes of memory this process can still have: the least of what the machine and each of its control groups
/// has left. None if nothing tells.
fn available(root: &Path) -> Option<u64> {
    let of_machine = field(&root.join("proc/meminfo"), "MemAvailable:").map(|kibibytes| kibibytes.saturating_mul(1024));
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let of_groups = groups.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let is_first_version = controllers.split(',').any(|name| name == "memory");
        let (tree, limit, usage) = match is_first_version {
            true => ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
            false if controllers.is_empty() => ("sys/fs/cgroup", "memory.max", "memory.current"),
            false => return None,
        };
        let path = Path::new(path.trim_start_matches('/'));
        let left = path.ancestors().filter_map(|group| {
            let group = root.join(tree).join(group);
            let stat = group.join("memory.stat");
            // Pages of files can be dropped.
            let files = ["inactive_file", "active_file"].iter().filter_map(|name| field(&stat, name)).sum();
            let used = number(&group.join(usage))?.saturating_sub(files);
            Some(number(&group.join(limit))?.saturating_sub(used))
        });
        left.min()
    });
    of_groups.chain(of_machine).min()
}

/// None for a limit of `max`, too.
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number after a name in a file of such lines.
fn field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let words = text.lines().map(|line| line.split_whitespace());
    words.filter_map(|mut words| (words.next()? == name).then(|| words.next())?).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        available(root.path())
    }

    #[test]
    fn the_tightest_limit_counts() {
        let machine = ("proc/meminfo", "MemTotal: 4000 kB\nMemAvailable:   2000 kB\n");
        assert_eq!(with(&[]), None);
        assert_eq!(with(&[machine]), Some(2_048_000));
        let groups = |inner, outer| {
            with(&[
                machine,
                ("proc/self/cgroup", "0::/a.slice/b.service\n"),
                ("sys/fs/cgroup/memory.current", "1"),
                ("sys/fs/cgroup/a.slice/memory.max", outer),
                ("sys/fs/cgroup/a.slice/memory.current", "900000\n"),
                ("sys/fs/cgroup/a.slice/memory.stat", "anon 600000\ninactive_file 200000\nactive_file 100000\n"),
                ("sys/fs/cgroup/a.slice/b.service/memory.max", inner),
                ("sys/fs/cgroup/a.slice/b.service/memory.current", "300\n"),
            ])
        };
        assert_eq!(groups("max\n", "max\n"), Some(2_048_000));
        assert_eq!(groups("max\n", "1000000\n"), Some(400_000));
        assert_eq!(groups("1000\n", "1000000\n"), Some(700));
        assert_eq!(groups("100\n", "1000000\n"), Some(0));
        let first_version = [
            machine,
            ("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "5000"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000"),
        ];
        assert_eq!(with(&first_version), Some(4000));
    }

    #[test]
    fn a_sealed_file_keeps_its_bytes() {
        use std::io::Write;
        let mut file = reserve("a model", 5).unwrap();
        file.write_all(b"bytes").unwrap();
        seal(&file).unwrap();
        assert!(file.write_all(b"more").is_err() && file.set_len(0).is_err() && seal(&file).is_err());
        assert_eq!(reserve("nothing", 0).unwrap().metadata().unwrap().len(), 0);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let error = reserve("a model", 1 << 50).unwrap_err();
        assert!(error.starts_with("a model needs 1125899906842624 bytes of memory, and "), "{error}");
    }
}
