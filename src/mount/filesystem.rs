//! The file system, as the kernel asks for it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyXattr, Request,
};

use super::file::OpenFile;
use super::service::{CallError, Service, VersionInfo, patiently};
use super::tree::{Node, ROOT, Tree, Version};
use crate::names::{FileName, Folder, MAX_BYTES, ModelName};
use crate::threads::lock;

/// The kernel asks for a name again at each use of it: the next open must get a new upload.
const NAME_TTL: Duration = Duration::ZERO;

/// A version never changes.
const ATTRIBUTES_TTL: Duration = Duration::from_secs(3600);

/// A version that was asked for so recently is the current one. The kernel looks a name up just before it opens it.
const CURRENT_FOR: Duration = Duration::from_millis(50);

/// How long a response is kept for the next read.
const READ_IDLE_LIMIT: Duration = Duration::from_secs(5);

/// How often the service is told that a file is still open. It holds a version for 300 s.
const HOLD_EVERY: Duration = Duration::from_secs(120);

/// The longest time that it may take for one file.
const HOLD_LIMIT: Duration = Duration::from_secs(30);

/// Who may read the files.
#[derive(Clone, Copy, Debug)]
pub(super) struct Permissions {
    /// The mode of a file; a folder has the same with `x` for each `r`.
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// See the module.
pub(super) struct Models {
    service: Arc<Service>,
    permissions: Permissions,
    /// How long the service may take for a call.
    limit: Duration,
    mounted_at: SystemTime,
    tree: Tree,
    handles: Arc<Handles>,
}

/// What a folder holds.
type Entries = Vec<(FileType, String)>;

/// What programs have open.
#[derive(Default)]
pub(super) struct Handles {
    last: AtomicU64,
    files: Mutex<HashMap<u64, Arc<OpenFile>>>,
    /// A file has been opened.
    was_used: AtomicBool,
    held_at: Mutex<Option<Instant>>,
    folders: Mutex<HashMap<u64, Arc<Entries>>>,
}

impl Handles {
    fn next(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Ends responses that nobody reads any more. To be called now and then.
    pub(super) fn end_idle(&self) {
        let files: Vec<_> = lock(&self.files).values().cloned().collect();
        files.iter().for_each(|file| file.end_idle(READ_IDLE_LIMIT));
        let mut held_at = lock(&self.held_at);
        if held_at.is_none_or(|at| at.elapsed() >= HOLD_EVERY) {
            *held_at = Some(Instant::now());
            for file in &files {
                // Without the service, the others fail as well. Other failures are for whoever reads the file.
                if let Err(CallError::Down(_) | CallError::TimedOut) = file.hold(Instant::now() + HOLD_LIMIT) {
                    break;
                }
            }
        }
    }

    /// Whether all files that were open have been closed.
    pub(super) fn are_closed(&self) -> bool {
        self.was_used.load(Ordering::Relaxed) && lock(&self.files).is_empty()
    }
}

impl Models {
    pub(super) fn new(service: Service, permissions: Permissions, limit: Duration) -> Self {
        Self {
            service: Arc::new(service),
            permissions,
            limit,
            mounted_at: SystemTime::now(),
            tree: Tree::default(),
            handles: Arc::default(),
        }
    }

    pub(super) fn handles(&self) -> Arc<Handles> {
        Arc::clone(&self.handles)
    }

    fn current(&self, model: &ModelName) -> Result<VersionInfo, CallError> {
        patiently(self.limit, |deadline| self.service.look_up(model, deadline))
    }

    fn child(&self, parent: u64, name: &OsStr) -> Result<(u64, Node), Errno> {
        let name = name.to_str().ok_or(Errno::ENOENT)?;
        match self.tree.get(parent) {
            Some(Node::Root) => {
                let folder = Folder::new(name).map_err(|_| Errno::ENOENT)?;
                Ok(self.tree.folder(folder))
            }
            Some(Node::Folder(folder)) => {
                let file = FileName::new(name).map_err(|_| Errno::ENOENT)?;
                let model = ModelName { folder, file };
                let current = self.current(&model).map_err(|error| failed(&model, &error))?;
                let (number, version) = self.tree.file(model, current);
                *lock(&version.checked_at) = Some(Instant::now());
                Ok((number, Node::File(version)))
            }
            Some(Node::File(_)) => Err(Errno::ENOTDIR),
            None => Err(stale()),
        }
    }

    fn attributes(&self, number: u64, node: &Node) -> FileAttr {
        let Permissions { mode, uid, gid } = self.permissions;
        let (size, time, kind, perm, nlink) = match node {
            Node::File(version) => (version.info.size, version.modified, FileType::RegularFile, mode, 1),
            _ => (0, self.mounted_at, FileType::Directory, mode | (mode >> 2 & 0o111), 2),
        };
        FileAttr {
            ino: INodeNo(number),
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink,
            uid,
            gid,
            rdev: 0,
            blksize: 128 << 10,
            flags: 0,
        }
    }

    /// Whether the version is what the service would send now.
    fn check_current(&self, version: &Version) -> Result<(), Errno> {
        let mut checked_at = lock(&version.checked_at);
        if checked_at.is_some_and(|at| at.elapsed() < CURRENT_FOR) {
            return Ok(());
        }
        let current = self.current(&version.model).map_err(|error| failed(&version.model, &error))?;
        if current.tag != version.info.tag {
            return Err(stale());
        }
        *checked_at = Some(Instant::now());
        Ok(())
    }

    fn entries(&self, node: &Node) -> Result<Entries, Errno> {
        let models = patiently(self.limit, |deadline| self.service.list(deadline)).map_err(|error| {
            log::warn!("the models cannot be listed: {error}");
            errno(&error)
        })?;
        let models = models.iter();
        let (kind, mut names): (_, Vec<String>) = match node {
            Node::Root => (FileType::Directory, models.map(|model| model.folder.to_string()).collect()),
            Node::Folder(folder) => {
                let models = models.filter(|model| model.folder == *folder);
                (FileType::RegularFile, models.map(|model| model.file.to_string()).collect())
            }
            Node::File(_) => return Err(Errno::ENOTDIR),
        };
        names.sort();
        names.dedup();
        let dots = [".", ".."].map(|name| (FileType::Directory, name.to_owned()));
        Ok(dots.into_iter().chain(names.into_iter().map(|name| (kind, name))).collect())
    }
}

/// The error number that fits.
fn errno(error: &CallError) -> Errno {
    match error {
        CallError::Missing => Errno::ENOENT,
        CallError::Refused(_) => Errno::EACCES,
        CallError::TimedOut => Errno::ETIMEDOUT,
        CallError::Down(_) | CallError::Busy | CallError::Failed(_) | CallError::Replaced => Errno::EIO,
    }
}

/// The same, after a line in the log.
fn failed(model: &ModelName, error: &CallError) -> Errno {
    // Programs try names that may not exist.
    let level = if let CallError::Missing = error { log::Level::Debug } else { log::Level::Warn };
    log::log!(level, "{model}: {error}");
    errno(error)
}

/// The kernel looks the name up again, and opens what it finds.
fn stale() -> Errno {
    Errno::from_i32(libc::ESTALE)
}

impl Filesystem for Models {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Whoever waits for a cold model must not keep others from its folder.
        let _ = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.child(parent.0, name) {
            Ok((number, node)) => {
                let attributes = self.attributes(number, &node);
                reply.entry_with_ttls(&ATTRIBUTES_TTL, &NAME_TTL, &attributes, Generation(0));
            }
            Err(error) => reply.error(error),
        }
    }

    fn forget(&self, _: &Request, number: INodeNo, lookups: u64) {
        self.tree.forget(number.0, lookups);
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.tree.get(number.0) {
            Some(node) => reply.attr(&ATTRIBUTES_TTL, &self.attributes(number.0, &node)),
            None => reply.error(stale()),
        }
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let version = match self.tree.get(number.0) {
            Some(Node::File(version)) => version,
            Some(_) => return reply.error(Errno::EISDIR),
            None => return reply.error(stale()),
        };
        let file = OpenFile::new(Arc::clone(&self.service), Arc::clone(&version));
        let held = self.check_current(&version).and_then(|()| {
            patiently(self.limit, |deadline| file.hold(deadline)).map_err(|error| match error {
                CallError::Replaced => stale(),
                error => failed(&version.model, &error),
            })
        });
        if let Err(error) = held {
            return reply.error(error);
        }
        let handle = self.handles.next();
        lock(&self.handles.files).insert(handle, Arc::new(file));
        self.handles.was_used.store(true, Ordering::Relaxed);
        reply.opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(file) = lock(&self.handles.files).get(&handle.0).cloned() else {
            return reply.error(Errno::EBADF);
        };
        file.read(offset, size, self.limit, |bytes| match bytes {
            Ok(bytes) => reply.data(bytes),
            Err(error) => {
                let is_repeated =
                    matches!(error, CallError::Replaced) && file.version.is_reported.swap(true, Ordering::Relaxed);
                reply.error(if is_repeated { Errno::EIO } else { failed(&file.version.model, &error) });
            }
        });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        lock(&self.handles.files).remove(&handle.0);
        reply.ok();
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let entries = self.tree.get(number.0).ok_or_else(stale).and_then(|node| self.entries(&node));
        match entries {
            Ok(entries) => {
                let handle = self.handles.next();
                lock(&self.handles.folders).insert(handle, Arc::new(entries));
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Err(error) => reply.error(error),
        }
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Some(entries) = lock(&self.handles.folders).get(&handle.0).cloned() else {
            return reply.error(Errno::EBADF);
        };
        for (index, (kind, name)) in (0..).zip(&*entries).skip(offset as usize) {
            // Programs take the number from `stat`; here it only must not be 0.
            if reply.add(INodeNo(ROOT), index + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        lock(&self.handles.folders).remove(&handle.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, 4096, MAX_BYTES as u32, 4096);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        // The kernel does not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }
}
