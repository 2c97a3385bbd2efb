//! What the driver knows of: shares, nodes (inodes it looked up) and handles
//! (files it opened). All of it holds descriptors of this process, so all of it
//! is bounded.
//!
//! One lock, never held during I/O on a share. A detached share's nodes and
//! handles are gone from the table at once; a node's number is never used again.

use super::abi::ROOT_NODE;
use super::host_file::{Key, Status};
use super::links::{ReadLink, ReadLinks};
use rustix::fs::FileType;
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

/// Most descriptors that the driver can make this process hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsLimits {
    /// Files that the driver has looked up and not forgotten.
    pub nodes: usize,
    /// Files and directories that it has open.
    pub handles: usize,
}

/// What the guest may change in a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShareAccess {
    /// What the host's file system and mounts let it.
    Writable,
    /// Nothing.
    ReadOnly,
    /// Nothing but, as [`ShareAccess::Writable`], what is mounted beneath.
    WritableBeneath,
}

/// A share, as its nodes know it.
#[derive(Debug)]
pub(super) struct Share {
    number: u64,
    /// The mount that its root is on.
    mount: u64,
    access: Mutex<ShareAccess>,
}

impl Share {
    fn access(&self) -> ShareAccess {
        *self.access.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_access(&self, access: ShareAccess) {
        *self.access.lock().unwrap_or_else(PoisonError::into_inner) = access;
    }

    /// Nothing may go from one share to another, even on one file system.
    pub(super) fn is(&self, other: &Share) -> bool {
        self.number == other.number
    }
}

/// A file that the driver knows.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: u64,
    pub(super) share: Arc<Share>,
    fd: OwnedFd,
    key: Key,
    pub(super) file_type: FileType,
}

impl Node {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Device number of its file system.
    pub(super) fn dev(&self) -> u64 {
        self.key.dev
    }

    /// Whether the share lets the guest change it.
    pub(super) fn is_writable(&self) -> bool {
        match self.share.access() {
            ShareAccess::Writable => true,
            ShareAccess::ReadOnly => false,
            ShareAccess::WritableBeneath => self.key.mount != self.share.mount,
        }
    }

    /// Its inode number there.
    pub(super) fn ino(&self) -> u64 {
        self.key.ino
    }
}

/// A file or directory that the driver has open.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) file: File,
    pub(super) node: Arc<Node>,
}

#[derive(Debug)]
struct Known {
    node: Arc<Node>,
    /// How often the driver was told of it.
    lookups: u64,
    /// The root of a share stays until the share goes.
    is_root: bool,
    /// Where the driver last found it.
    place: Option<Place>,
}

/// A directory's node and a name in it.
pub(super) type Place = (u64, Box<[u8]>);

/// How many directories of a path are looked at for one that a link led to.
const MAX_DEPTH: usize = 64;

/// A share by its name.
#[derive(Debug)]
struct Named {
    share: Arc<Share>,
    root: Arc<Node>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Table {
    limits: FsLimits,
    shares: BTreeMap<String, Named>,
    nodes: HashMap<u64, Known>,
    by_key: HashMap<(u64, Key), u64>,
    /// Nodes by where they were last found.
    by_place: HashMap<Place, u64>,
    links: ReadLinks,
    handles: HashMap<u64, Arc<Handle>>,
    next_number: u64,
    next_node: u64,
    next_handle: u64,
    /// Index of each host file system seen: see [`Table::guest_ino`].
    devices: HashMap<u64, u64>,
}

impl Table {
    pub(super) fn new(limits: FsLimits) -> Self {
        Table {
            limits,
            shares: BTreeMap::new(),
            nodes: HashMap::new(),
            by_key: HashMap::new(),
            by_place: HashMap::new(),
            links: ReadLinks::default(),
            handles: HashMap::new(),
            next_number: 1,
            next_node: ROOT_NODE + 1,
            next_handle: 1,
            devices: HashMap::new(),
        }
    }

    /// Adds a share; `false`: the name is taken by another file. That of the
    /// same file gets the new access.
    pub(super) fn attach(
        &mut self,
        name: &str,
        root: OwnedFd,
        status: &Status,
        access: ShareAccess,
    ) -> bool {
        if let Some(named) = self.shares.get(name) {
            // Not by the mount: private copies of one mount are mounts of their own.
            let same = named.root.key.is_file(&status.key);
            if same {
                named.share.set_access(access);
            }
            return same;
        }
        let share = Arc::new(Share {
            number: self.next_number,
            mount: status.key.mount,
            access: Mutex::new(access),
        });
        self.next_number += 1;
        let root = self.insert(&share, root, status, true);
        self.shares.insert(name.to_owned(), Named { share, root });
        true
    }

    /// Takes a share away with all that the driver knows of it.
    pub(super) fn detach(&mut self, name: &str) -> bool {
        let Some(Named { share, .. }) = self.shares.remove(name) else {
            return false;
        };
        self.handles
            .retain(|_, handle| !handle.node.share.is(&share));
        self.nodes.retain(|_, known| !known.node.share.is(&share));
        self.by_key.retain(|(number, _), _| *number != share.number);
        let nodes = &self.nodes;
        self.by_place.retain(|_, id| nodes.contains_key(id));
        true
    }

    /// The shares: name and access.
    pub(super) fn shares(&self) -> Vec<(String, ShareAccess)> {
        self.shares
            .iter()
            .map(|(name, named)| (name.clone(), named.share.access()))
            .collect()
    }

    /// The driver starts anew: it knows nothing and has nothing open.
    pub(super) fn forget_all(&mut self) {
        self.handles.clear();
        self.nodes.retain(|_, known| {
            known.lookups = 0;
            known.is_root
        });
        let nodes = &self.nodes;
        self.by_key.retain(|_, id| nodes.contains_key(id));
        self.by_place.clear();
        self.links.clear();
    }

    /// The root of a share, about which the driver is told now.
    pub(super) fn look_up_share(&mut self, name: &[u8]) -> Result<Arc<Node>, Errno> {
        let name = std::str::from_utf8(name).map_err(|_| Errno::NOENT)?;
        let root = Arc::clone(&self.shares.get(name).ok_or(Errno::NOENT)?.root);
        if let Some(known) = self.nodes.get_mut(&root.id) {
            known.lookups = known.lookups.saturating_add(1);
        }
        Ok(root)
    }

    /// The n-th share from `offset` on, by name: the next offset, the name, the
    /// root.
    pub(super) fn nth_share(&self, offset: usize) -> Option<(&str, &Arc<Node>)> {
        let (name, named) = self.shares.iter().nth(offset)?;
        Some((name, &named.root))
    }

    /// The node of a file that was just found in `share`; the driver is told of
    /// it now.
    pub(super) fn remember(
        &mut self,
        share: &Arc<Share>,
        fd: OwnedFd,
        status: &Status,
    ) -> Result<Arc<Node>, Errno> {
        if let Some(id) = self.by_key.get(&(share.number, status.key))
            && let Some(known) = self.nodes.get_mut(id)
            // A number that the host used again for another kind of file.
            && known.node.file_type == status.file_type()
        {
            known.lookups = known.lookups.saturating_add(1);
            return Ok(Arc::clone(&known.node));
        }
        if !self.shares.values().any(|named| named.share.is(share)) {
            return Err(Errno::STALE);
        }
        if self.nodes.len() >= self.limits.nodes {
            return Err(Errno::NFILE);
        }
        Ok(self.insert(share, fd, status, false))
    }

    fn insert(
        &mut self,
        share: &Arc<Share>,
        fd: OwnedFd,
        status: &Status,
        is_root: bool,
    ) -> Arc<Node> {
        let id = self.next_node;
        self.next_node += 1;
        let node = Arc::new(Node {
            id,
            share: Arc::clone(share),
            fd,
            key: status.key,
            file_type: status.file_type(),
        });
        let known = Known {
            node: Arc::clone(&node),
            lookups: u64::from(!is_root),
            is_root,
            place: None,
        };
        self.nodes.insert(id, known);
        self.by_key.insert((share.number, status.key), id);
        node
    }

    /// The driver gives back lookups of a node. One that gives back more than it
    /// got loses the node, as it would with the right number.
    pub(super) fn forget(&mut self, id: u64, lookups: u64) {
        let Some(known) = self.nodes.get_mut(&id) else {
            return;
        };
        known.lookups = known.lookups.saturating_sub(lookups);
        if known.lookups == 0 && !known.is_root {
            let key = (known.node.share.number, known.node.key);
            if self.by_key.get(&key) == Some(&id) {
                self.by_key.remove(&key);
            }
            let place = known.place.take();
            self.nodes.remove(&id);
            self.leave(place, id);
        }
    }

    /// Notes where the driver found a node.
    pub(super) fn found_at(&mut self, id: u64, dir: u64, name: &[u8]) {
        let Some(known) = self.nodes.get_mut(&id) else {
            return;
        };
        let is_same = |place: &Place| place.0 == dir && *place.1 == *name;
        if known.is_root || known.place.as_ref().is_some_and(is_same) {
            return;
        }
        let place = (dir, Box::from(name));
        let before = known.place.replace(place.clone());
        self.by_place.insert(place, id);
        self.leave(before, id);
    }

    /// A thread of the guest is told what is in a link.
    pub(super) fn link_is_read(&mut self, thread: u32, link: u64, target: &[u8]) {
        let known = self.nodes.get(&link);
        if let Some(place) = known.and_then(|known| known.place.as_ref()) {
            self.links.add(thread, place, target);
        }
    }

    /// The links, each with its directory, that a thread read and by which it may
    /// have come to a name in a directory.
    pub(super) fn links_leading_to(
        &self,
        thread: u32,
        dir: u64,
        name: &[u8],
    ) -> Vec<(Arc<Node>, ReadLink)> {
        let mut found = Vec::new();
        if self.links.is_empty_for(thread) {
            return found;
        }
        let (mut dir, mut name) = (dir, name);
        for _ in 0..MAX_DEPTH {
            let Some(known) = self.nodes.get(&dir) else {
                break;
            };
            let links = self.links.leading_to(thread, dir, name);
            found.extend(
                links
                    .into_iter()
                    .map(|link| (Arc::clone(&known.node), link)),
            );
            let Some((above, called)) = &known.place else {
                break;
            };
            (dir, name) = (*above, called);
        }
        found
    }

    /// A question about a name in a directory is answered with ESTALE, as `link`
    /// led there.
    pub(super) fn answered_stale(&mut self, link: &ReadLink, dir: u64, name: &[u8]) {
        // Of a name that the driver has a node for it asks twice: whether what it
        // knows still holds, and what there is instead.
        let is_known = self.by_place.contains_key(&(dir, Box::from(name)));
        self.links.answered(link, if is_known { 2 } else { 1 });
    }

    fn leave(&mut self, place: Option<Place>, id: u64) {
        if let Some(place) = place
            && self.by_place.get(&place) == Some(&id)
        {
            self.by_place.remove(&place);
        }
    }

    /// A node that the driver names.
    pub(super) fn node(&self, id: u64) -> Result<Arc<Node>, Errno> {
        let known = self.nodes.get(&id).ok_or(Errno::STALE)?;
        Ok(Arc::clone(&known.node))
    }

    /// Whether another file may be opened.
    pub(super) fn check_handles(&self) -> Result<(), Errno> {
        if self.handles.len() >= self.limits.handles {
            return Err(Errno::NFILE);
        }
        Ok(())
    }

    /// A number for an opened file.
    pub(super) fn add_handle(&mut self, file: File, node: Arc<Node>) -> Result<u64, Errno> {
        self.check_handles()?;
        if !self.nodes.contains_key(&node.id) {
            return Err(Errno::STALE);
        }
        let number = self.next_handle;
        self.next_handle += 1;
        self.handles.insert(number, Arc::new(Handle { file, node }));
        Ok(number)
    }

    /// An opened file that the driver names.
    pub(super) fn handle(&self, number: u64) -> Result<Arc<Handle>, Errno> {
        self.handles.get(&number).cloned().ok_or(Errno::BADF)
    }

    /// Closes a file.
    pub(super) fn release(&mut self, number: u64) -> Option<Arc<Handle>> {
        self.handles.remove(&number)
    }

    /// An inode number that is unique in the guest, where all shares are one
    /// file system: the host's, and in its upper 16 bits which file system of
    /// the host it belongs to. Larger ones are folded.
    pub(super) fn guest_ino(&mut self, dev: u64, ino: u64) -> u64 {
        const BITS: u32 = 48;
        let next = self.devices.len() as u64;
        // A guest cannot make host file systems; at worst two share an index.
        let index = *self.devices.entry(dev).or_insert(next) & 0xffff;
        let folded = (ino & ((1 << BITS) - 1)) ^ ((ino >> BITS) << 32);
        folded | index << BITS
    }

    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.nodes.len(), self.handles.len())
    }
}
