//! The tree of names while layers are applied to it.

mod lookup;

use std::collections::BTreeMap;

use crate::{WriteError, Xattr, error::show_path, ondisk::encode_device};

/// Deepest nesting of directories; `PATH_MAX` names no deeper one.
const MAX_DEPTH: usize = 2048;
const MAX_SYMLINK_LEN: usize = 4095;
const MAX_NAME_LEN: usize = 255;
/// What a name costs in memory besides its bytes, about.
const DENTRY_MEMORY: usize = 64;

/// A point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timestamp {
    /// Seconds since 1970 (UTC).
    pub seconds: i64,
    /// Nanoseconds within the second.
    pub nanoseconds: u32,
}

/// What every kind of file has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attributes {
    /// Permission bits, set-id and sticky bits (`0o7777`).
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last modification.
    pub mtime: Timestamp,
    /// Extended attributes; of several with one name the last counts.
    pub xattrs: Vec<Xattr>,
}

/// Contents of a file that are in the image already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileData {
    pub(crate) block: u32,
    pub(crate) size: u64,
}

/// Files that are neither regular nor directories nor symbolic links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
    /// A character device.
    CharDevice {
        /// Major number, 12 bits.
        major: u32,
        /// Minor number, 20 bits.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number, 12 bits.
        major: u32,
        /// Minor number, 20 bits.
        minor: u32,
    },
}

/// The type of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum EntryKind {
    File,
    Directory,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

pub(crate) type InodeId = u32;
pub(crate) const ROOT: InodeId = 0;

pub(crate) enum Content {
    Directory(BTreeMap<Box<[u8]>, Dentry>),
    File(FileData),
    Symlink(Box<[u8]>),
    /// Its kind and its encoded device number.
    Node(EntryKind, u32),
}

#[derive(Clone, Copy)]
pub(crate) struct Dentry {
    pub(crate) inode: InodeId,
    /// The last layer that named it.
    layer: u32,
}

pub(crate) struct Inode {
    pub(crate) content: Content,
    pub(crate) attributes: Attributes,
    /// Names of it; for a directory 1.
    pub(crate) names: u32,
}

impl Inode {
    pub(crate) fn kind(&self) -> EntryKind {
        match &self.content {
            Content::Directory(_) => EntryKind::Directory,
            Content::File(_) => EntryKind::File,
            Content::Symlink(_) => EntryKind::Symlink,
            Content::Node(kind, _) => *kind,
        }
    }

    fn memory(&self) -> u64 {
        let content = match &self.content {
            Content::Symlink(target) => target.len(),
            _ => 0,
        };
        let xattrs: usize = self.attributes.xattrs.iter().map(Xattr::memory).sum();
        (size_of::<Self>() + content + xattrs) as u64
    }
}

/// All files, by number; a directory's children by name.
pub(crate) struct Tree {
    inodes: Vec<Option<Inode>>,
    free: Vec<InodeId>,
    layer: u32,
    memory: u64,
    max_memory: u64,
    max_inodes: u64,
    /// Contents of files that lost their last name.
    orphans: Vec<FileData>,
}

impl Tree {
    pub(crate) fn new(max_inodes: u64, max_memory: u64) -> Self {
        let root = Inode {
            content: Content::Directory(BTreeMap::new()),
            attributes: implied_directory(),
            names: 1,
        };
        Self {
            memory: root.memory(),
            inodes: vec![Some(root)],
            free: Vec::new(),
            layer: 0,
            max_memory,
            max_inodes,
            orphans: Vec::new(),
        }
    }

    pub(crate) fn begin_layer(&mut self) {
        self.layer += 1;
    }

    /// Contents to punch out of the image, since the last call.
    pub(crate) fn take_orphans(&mut self) -> Vec<FileData> {
        std::mem::take(&mut self.orphans)
    }

    pub(crate) fn inode_slots(&self) -> usize {
        self.inodes.len()
    }

    pub(crate) fn inode(&self, id: InodeId) -> &Inode {
        // Ids come from dentries, and an inode lives as long as its names.
        self.inodes[id as usize]
            .as_ref()
            .expect("a named inode exists")
    }

    fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        self.inodes[id as usize]
            .as_mut()
            .expect("a named inode exists")
    }

    fn children_mut(&mut self, id: InodeId) -> Option<&mut BTreeMap<Box<[u8]>, Dentry>> {
        match &mut self.inode_mut(id).content {
            Content::Directory(children) => Some(children),
            _ => None,
        }
    }

    fn child(&self, dir: InodeId, name: &[u8]) -> Option<Dentry> {
        match &self.inode(dir).content {
            Content::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    /// Makes a directory, or gives new attributes to one that exists.
    pub(crate) fn insert_dir(
        &mut self,
        path: &[&[u8]],
        attributes: Attributes,
    ) -> Result<(), WriteError> {
        if path.is_empty() {
            return self.set_attributes(ROOT, attributes);
        }
        let (parent, name) = self.resolve_parent(path)?;
        match self.child(parent, &name) {
            Some(dentry) if self.inode(dentry.inode).kind() == EntryKind::Directory => {
                self.touch(parent, &name);
                self.set_attributes(dentry.inode, attributes)
            }
            _ => {
                self.remove_child(parent, &name);
                let content = Content::Directory(BTreeMap::new());
                self.create(parent, name, content, attributes).map(drop)
            }
        }
    }

    /// Makes a file of any other kind; what had the name before is gone.
    pub(crate) fn insert(
        &mut self,
        path: &[&[u8]],
        content: Content,
        attributes: Attributes,
    ) -> Result<(), WriteError> {
        let (parent, name) = self.resolve_parent(path)?;
        self.remove_child(parent, &name);
        self.create(parent, name, content, attributes).map(drop)
    }

    pub(crate) fn insert_hardlink(
        &mut self,
        path: &[&[u8]],
        target: &[&[u8]],
    ) -> Result<(), WriteError> {
        let (parent, name) = self.resolve_parent(path)?;
        // First, so that a link to itself or to below itself finds nothing.
        self.remove_child(parent, &name);
        let missing = || WriteError::LinkTargetMissing {
            target: show_path(target),
        };
        let inode = self.find(target)?.ok_or_else(missing)?;
        if self.inode(inode).kind() == EntryKind::Directory {
            return Err(WriteError::LinkToDirectory {
                target: show_path(target),
            });
        }
        self.inode_mut(inode).names += 1;
        self.add_name(parent, name, inode)
    }

    /// Removes what the layers below have under that name; what this layer
    /// itself made there stays. A path that does not exist is no error.
    pub(crate) fn whiteout(&mut self, path: &[&[u8]]) -> Result<(), WriteError> {
        let (parent, name) = self.resolve_parent(path)?;
        match self.child(parent, &name) {
            Some(dentry) if dentry.layer < self.layer => self.remove_child(parent, &name),
            Some(dentry) => self.remove_lower_children(dentry.inode),
            None => {}
        }
        Ok(())
    }

    /// Removes what the layers below have in that directory.
    pub(crate) fn opaque(&mut self, path: &[&[u8]]) -> Result<(), WriteError> {
        let dir = self.resolve_dir(path)?;
        self.remove_lower_children(dir);
        Ok(())
    }

    fn remove_lower_children(&mut self, dir: InodeId) {
        let mut pending = vec![dir];
        while let Some(dir) = pending.pop() {
            let layer = self.layer;
            let Some(children) = self.children_mut(dir) else {
                continue;
            };
            let mut gone = Vec::new();
            for (name, dentry) in children {
                if dentry.layer < layer {
                    gone.push(name.clone());
                } else {
                    pending.push(dentry.inode);
                }
            }
            for name in gone {
                self.remove_child(dir, &name);
            }
        }
    }

    fn remove_child(&mut self, parent: InodeId, name: &[u8]) {
        let removed = self
            .children_mut(parent)
            .and_then(|children| children.remove(name));
        let Some(dentry) = removed else { return };
        self.memory -= (DENTRY_MEMORY + name.len()) as u64;
        let mut pending = vec![dentry.inode];
        while let Some(id) = pending.pop() {
            let inode = self.inode_mut(id);
            inode.names -= 1;
            if inode.names > 0 {
                continue;
            }
            let Some(inode) = self.inodes[id as usize].take() else {
                continue;
            };
            self.free.push(id);
            self.memory -= inode.memory();
            match inode.content {
                Content::File(data) => self.orphans.push(data),
                Content::Directory(children) => {
                    for (name, child) in children {
                        self.memory -= (DENTRY_MEMORY + name.len()) as u64;
                        pending.push(child.inode);
                    }
                }
                Content::Symlink(_) | Content::Node(..) => {}
            }
        }
    }

    fn create(
        &mut self,
        parent: InodeId,
        name: Box<[u8]>,
        content: Content,
        mut attributes: Attributes,
    ) -> Result<InodeId, WriteError> {
        check_content(&content)?;
        drop_older_duplicates(&mut attributes.xattrs);
        let count = (self.inodes.len() - self.free.len()) as u64;
        if count >= self.max_inodes.min(u64::from(u32::MAX)) {
            return Err(WriteError::Limit {
                what: "files of the image",
                limit: self.max_inodes,
            });
        }
        let inode = Inode {
            content,
            attributes,
            names: 1,
        };
        self.memory += inode.memory();
        let id = match self.free.pop() {
            Some(id) => id,
            None => {
                self.inodes.push(None);
                u32::try_from(self.inodes.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.inodes[id as usize] = Some(inode);
        self.add_name(parent, name, id)?;
        Ok(id)
    }

    fn add_name(
        &mut self,
        parent: InodeId,
        name: Box<[u8]>,
        inode: InodeId,
    ) -> Result<(), WriteError> {
        self.memory += (DENTRY_MEMORY + name.len()) as u64;
        let dentry = Dentry {
            inode,
            layer: self.layer,
        };
        if let Some(children) = self.children_mut(parent) {
            children.insert(name, dentry);
        }
        self.check_memory()
    }

    fn touch(&mut self, parent: InodeId, name: &[u8]) {
        let layer = self.layer;
        if let Some(dentry) = self.children_mut(parent).and_then(|c| c.get_mut(name)) {
            dentry.layer = layer;
        }
    }

    fn set_attributes(
        &mut self,
        id: InodeId,
        mut attributes: Attributes,
    ) -> Result<(), WriteError> {
        drop_older_duplicates(&mut attributes.xattrs);
        let inode = self.inode_mut(id);
        let before = inode.memory();
        inode.attributes = attributes;
        let after = inode.memory();
        self.memory = self.memory - before + after;
        self.check_memory()
    }

    fn check_memory(&self) -> Result<(), WriteError> {
        if self.memory > self.max_memory {
            let limit = self.max_memory;
            return Err(WriteError::Limit {
                what: "bytes of names and attributes",
                limit,
            });
        }
        Ok(())
    }
}

/// What a directory is that only the path of a member implies.
pub(crate) fn implied_directory() -> Attributes {
    Attributes {
        permissions: 0o755,
        ..Attributes::default()
    }
}

/// The content of a special file.
pub(crate) fn node_content(node: NodeKind) -> Result<Content, WriteError> {
    let device =
        |major, minor| encode_device(major, minor).ok_or(WriteError::BadDevice { major, minor });
    Ok(match node {
        NodeKind::Fifo => Content::Node(EntryKind::Fifo, 0),
        NodeKind::Socket => Content::Node(EntryKind::Socket, 0),
        NodeKind::CharDevice { major, minor } => {
            Content::Node(EntryKind::CharDevice, device(major, minor)?)
        }
        NodeKind::BlockDevice { major, minor } => {
            Content::Node(EntryKind::BlockDevice, device(major, minor)?)
        }
    })
}

fn check_content(content: &Content) -> Result<(), WriteError> {
    match content {
        Content::Symlink(target)
            if target.is_empty() || target.len() > MAX_SYMLINK_LEN || target.contains(&0) =>
        {
            Err(WriteError::BadSymlink)
        }
        _ => Ok(()),
    }
}

fn check_name(name: &[u8]) -> Result<(), WriteError> {
    let bad = name.is_empty()
        || name.len() > MAX_NAME_LEN
        || matches!(name, b"." | b"..")
        || name.iter().any(|byte| matches!(byte, 0 | b'/'));
    if bad {
        let shown = &name[..name.len().min(MAX_NAME_LEN + 1)];
        return Err(WriteError::BadName {
            name: shown.escape_ascii().to_string(),
        });
    }
    Ok(())
}

fn drop_older_duplicates(xattrs: &mut Vec<Xattr>) {
    let mut kept: Vec<Xattr> = Vec::with_capacity(xattrs.len());
    for xattr in std::mem::take(xattrs) {
        kept.retain(|other| !other.same_name(&xattr));
        kept.push(xattr);
    }
    // One order, whatever that of the source was.
    kept.sort_unstable();
    *xattrs = kept;
}

#[cfg(test)]
mod tests;
