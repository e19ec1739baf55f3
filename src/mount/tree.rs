//! The inodes that the kernel has: the root, folders, and versions of models. A new version is a new inode, so what the kernel
//! has cached of a file is always of one version.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use super::service::VersionInfo;
use crate::names::{Folder, ModelName};
use crate::threads::lock;

/// The root's number, by the protocol.
pub(super) const ROOT: u64 = 1;

/// A version of a model.
#[derive(Debug)]
pub(super) struct Version {
    pub(super) model: ModelName,
    pub(super) info: VersionInfo,
    /// When this box got it, or else when the mount first saw it.
    pub(super) modified: SystemTime,
    /// When the service last said that it is the current one.
    pub(super) checked_at: Mutex<Option<Instant>>,
    /// The log has said that the version cannot be read any more.
    pub(super) is_reported: AtomicBool,
}

/// What an inode is.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Root,
    Folder(Folder),
    File(Arc<Version>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Folder(Folder),
    File(ModelName, String),
}

/// All inodes but the root.
#[derive(Default)]
pub(super) struct Tree(Mutex<State>);

#[derive(Default)]
struct State {
    inodes: HashMap<u64, Inode>,
    numbers: HashMap<Key, u64>,
    last: u64,
}

struct Inode {
    node: Node,
    key: Key,
    /// How often the kernel was given it and has not forgotten it.
    lookups: u64,
}

impl Tree {
    pub(super) fn get(&self, number: u64) -> Option<Node> {
        if number == ROOT {
            return Some(Node::Root);
        }
        lock(&self.0).inodes.get(&number).map(|inode| inode.node.clone())
    }

    /// The inode of a folder, for the kernel.
    pub(super) fn folder(&self, folder: Folder) -> (u64, Node) {
        let node = Node::Folder(folder.clone());
        (lock(&self.0).give(Key::Folder(folder), || node.clone()).0, node)
    }

    /// The inode of a version, for the kernel.
    pub(super) fn file(&self, model: ModelName, info: VersionInfo) -> (u64, Arc<Version>) {
        let modified = info.modified.unwrap_or_else(SystemTime::now);
        let key = Key::File(model.clone(), info.tag.clone());
        let new = Arc::new(Version {
            model,
            info,
            modified,
            checked_at: Mutex::default(),
            is_reported: AtomicBool::new(false),
        });
        match lock(&self.0).give(key, || Node::File(Arc::clone(&new))) {
            (number, Node::File(version)) => (number, version),
            // A key of a file is never a folder's.
            (number, _) => (number, new),
        }
    }

    /// The kernel drops this many references to an inode.
    pub(super) fn forget(&self, number: u64, lookups: u64) {
        let mut state = lock(&self.0);
        let Some(inode) = state.inodes.get_mut(&number) else { return };
        inode.lookups = inode.lookups.saturating_sub(lookups);
        if inode.lookups == 0
            && let Some(inode) = state.inodes.remove(&number)
        {
            state.numbers.remove(&inode.key);
        }
    }
}

impl State {
    fn give(&mut self, key: Key, node: impl FnOnce() -> Node) -> (u64, Node) {
        let Self { inodes, numbers, last } = self;
        let number = *numbers.entry(key.clone()).or_insert_with(|| {
            *last = (*last).max(ROOT) + 1;
            *last
        });
        let inode = inodes.entry(number).or_insert_with(|| Inode { node: node(), key, lookups: 0 });
        inode.lookups += 1;
        (number, inode.node.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_keeps_its_number_until_the_kernel_has_forgotten_it() {
        let tree = Tree::default();
        let model = ModelName::new("models", "m.bin").unwrap();
        let info = |tag: &str| VersionInfo { tag: tag.into(), size: 1, modified: None };
        let (first, _) = tree.file(model.clone(), info("a"));
        let (second, _) = tree.file(model.clone(), info("b"));
        assert_ne!(first, second);
        assert_eq!(tree.file(model.clone(), info("a")).0, first);
        tree.forget(first, 1);
        assert!(tree.get(first).is_some());
        tree.forget(first, 1);
        assert!(tree.get(first).is_none());
        // A number is not used again: the kernel may have pages of the old inode.
        let (third, _) = tree.file(model, info("a"));
        assert!(third != first && third != second);
    }
}
