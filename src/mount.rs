//! `loader mount`: models as files of a read-only FUSE file system, for programs that open paths.
//!
//! It is a process of its own and a client of the running service, which so needs no privilege for it. A file is one version of a
//! model: `tree` numbers them, `filesystem` answers the kernel, `file` and `stream` turn its reads into requests for ranges, and
//! `service` makes those. `large_blocks` keeps the memory small.

mod connection;
mod file;
mod filesystem;
mod large_blocks;
mod listing;
mod service;
mod stream;
mod tree;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Signal, getpid, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use self::filesystem::{Handles, Models, Permissions};
use self::service::Service;
use self::stream::READ_AHEAD;
use crate::configuration::Configuration;
use crate::{systemd, threads};

/// What `mount` and `df` show as the device.
const NAME: &str = "loader";

/// Requests of the kernel that are worked on at once. One that waits for a slow uplink keeps a thread.
const THREADS: usize = 16;

/// How long programs may keep their files after a signal.
const FINISH_LIMIT: Duration = Duration::from_secs(10);

/// How often responses that nobody reads are looked for.
const TIDY_EVERY: Duration = Duration::from_secs(2);

/// What the command line says.
pub struct Options {
    /// Where to mount.
    pub directory: PathBuf,
    /// Whether users other than this one may read.
    pub allow_other: bool,
    /// The mode of files.
    pub mode: u16,
    /// The group of all files; none for this process's own.
    pub group: Option<u32>,
    /// How long a read may take.
    pub timeout: Duration,
    /// Whether to unmount after the last open file has been closed.
    pub until_closed: bool,
}

/// Mounts, and serves until it is unmounted. The error is a sentence.
pub fn run(configuration: &Configuration, options: &Options) -> Result<(), String> {
    let directory = &options.directory;
    let failed = |error: io::Error| format!("{} cannot be mounted on: {error}", directory.display());
    remove_dead_mount(directory).map_err(failed)?;
    if is_mounted(directory) {
        return Err(format!("{} is mounted already, by another loader mount; stop that one", directory.display()));
    }
    fs::create_dir_all(directory).map_err(failed)?;

    let service = Service::new(configuration);
    let address = service.address().to_string();
    let permissions = Permissions {
        mode: options.mode,
        uid: rustix::process::geteuid().as_raw(),
        gid: options.group.unwrap_or_else(|| rustix::process::getegid().as_raw()),
    };
    let models = Models::new(service, permissions, options.timeout);
    let (handles, until_closed) = (models.handles(), options.until_closed);
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(NAME.to_owned()),
        MountOption::RO,
        MountOption::NoExec,
        MountOption::NoAtime,
        MountOption::DefaultPermissions,
    ];
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(THREADS);
    let mut session = Session::new(models, directory, &config)
        .map_err(|error| format!("{} (it takes root and /dev/fuse, or fusermount3)", failed(error)))?;
    unmount_on_signal(directory, session.unmount_callable())
        .and_then(|()| threads::spawn("tidy", move || tidy(&handles, until_closed)))
        .map_err(failed)?;
    // The first access to the mount needs somebody who serves it.
    let ahead = directory.clone();
    let _ = threads::spawn("mounted", move || {
        read_ahead(&ahead);
        log::info!("{} has the models of the service at {address}", ahead.display());
        systemd::notify("READY=1");
    });
    session.run().map_err(failed)?;
    log::info!("unmounted");
    log::logger().flush();
    Ok(())
}

/// Removes what a mount that was killed has left: a directory on which everything fails.
fn remove_dead_mount(directory: &Path) -> io::Result<()> {
    // The kernel may still know the directory's attributes.
    while let Err(error) = fs::read_dir(directory)
        && error.raw_os_error() == Some(libc::ENOTCONN)
    {
        log::warn!("{} is a mount that nobody serves any more; it is removed", directory.display());
        unmount(directory, UnmountFlags::DETACH)?;
    }
    Ok(())
}

/// Whether another loader has mounted on the directory.
fn is_mounted(directory: &Path) -> bool {
    let (Ok(mounts), Ok(directory)) = (fs::read_to_string("/proc/self/mounts"), directory.canonicalize()) else {
        return false;
    };
    // Spaces and the like are octal there.
    let directory = directory.to_string_lossy().replace('\\', "\\134").replace(' ', "\\040");
    mounts.lines().any(|line| line.starts_with(&format!("{NAME} {directory} fuse ")))
}

/// On the first SIGTERM or SIGINT: no path leads into the mount any more, and it ends with the last open file. The process ends
/// after [`FINISH_LIMIT`] in any case, and at once on a second signal.
fn unmount_on_signal(directory: &Path, mut unmounter: SessionUnmounter) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let (directory, is_stopping) = (directory.to_owned(), Arc::new(AtomicBool::new(false)));
    threads::spawn("signals", move || {
        for signal in &mut signals {
            if is_stopping.swap(true, Ordering::Relaxed) {
                process::exit(128 + signal);
            }
            systemd::notify("STOPPING=1");
            log::info!("unmounting; open files can be read for up to {} s", FINISH_LIMIT.as_secs());
            // Only root may do so itself.
            let unmounted = unmount(&directory, UnmountFlags::DETACH).map_err(io::Error::from);
            if let Err(error) = unmounted.or_else(|_| unmounter.unmount()) {
                log::error!("{} cannot be unmounted: {error}", directory.display());
            }
            let _ = threads::spawn("end", || {
                thread::sleep(FINISH_LIMIT);
                log::warn!("files that are still open are cut off");
                log::logger().flush();
                process::exit(0);
            });
        }
    })?;
    Ok(())
}

fn tidy(handles: &Handles, until_closed: bool) {
    let mut were_closed = false;
    loop {
        thread::sleep(TIDY_EVERY);
        handles.end_idle();
        let are_closed = until_closed && handles.are_closed();
        if are_closed && were_closed {
            log::info!("no file is open any more");
            if let Err(error) = kill_process(getpid(), Signal::TERM) {
                log::warn!("{error}");
            }
            return;
        }
        were_closed = are_closed;
    }
}

/// Asks the kernel to read further ahead. Without it reads are smaller, and nothing else is different.
fn read_ahead(directory: &Path) {
    let Ok(metadata) = fs::metadata(directory) else { return };
    let device = metadata.dev();
    let path = format!("/sys/class/bdi/{}:{}/read_ahead_kb", libc::major(device), libc::minor(device));
    if let Err(error) = fs::write(&path, (READ_AHEAD >> 10).to_string()) {
        log::debug!("{path} cannot be written: {error}");
    }
}
