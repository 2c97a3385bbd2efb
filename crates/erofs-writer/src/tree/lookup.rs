//! From paths to inodes. Symbolic links lead nowhere but into this tree: an
//! absolute target and `..` stop at its root.

use super::{
    Content, Dentry, EntryKind, InodeId, MAX_DEPTH, ROOT, Tree, check_name, implied_directory,
};
use crate::{WriteError, error::show_path};

/// Symbolic links followed in one look-up, as many as containerd follows.
const MAX_LINKS: usize = 255;

/// A path being walked: the directories entered, the names still to go.
struct Walk {
    entered: Vec<InodeId>,
    /// In reverse: the next one is the last.
    pending: Vec<Box<[u8]>>,
    links: usize,
}

impl Walk {
    fn new(path: &[&[u8]]) -> Self {
        let pending = path.iter().rev().map(|name| (*name).into()).collect();
        Self {
            entered: vec![ROOT],
            pending,
            links: 0,
        }
    }

    fn here(&self) -> InodeId {
        self.entered.last().copied().unwrap_or(ROOT)
    }

    /// The next proper name; `.` and `..` of link targets are dealt with.
    fn next_name(&mut self) -> Option<Box<[u8]>> {
        loop {
            let name = self.pending.pop()?;
            match &*name {
                b"" | b"." => {}
                b".." if self.entered.len() > 1 => drop(self.entered.pop()),
                b".." => {}
                _ => return Some(name),
            }
        }
    }

    fn follow(&mut self, target: &[u8], path: &[&[u8]]) -> Result<(), WriteError> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(WriteError::LinkLoop {
                path: show_path(path),
            });
        }
        if target.starts_with(b"/") {
            self.entered.truncate(1);
        }
        self.pending
            .extend(target.split(|byte| *byte == b'/').rev().map(Box::from));
        Ok(())
    }
}

impl Tree {
    /// The directory that holds the path's last name, made where it is missing.
    pub(super) fn resolve_parent(
        &mut self,
        path: &[&[u8]],
    ) -> Result<(InodeId, Box<[u8]>), WriteError> {
        let (name, parent) = path.split_last().ok_or(WriteError::Root)?;
        check_name(name)?;
        Ok((self.resolve_dir(parent)?, (*name).into()))
    }

    /// The directory of that path. What is missing is made, what a lower layer
    /// has there and is no directory is replaced, and everything on the way
    /// counts as named by this layer.
    pub(super) fn resolve_dir(&mut self, path: &[&[u8]]) -> Result<InodeId, WriteError> {
        path.iter().try_for_each(|name| check_name(name))?;
        let mut walk = Walk::new(path);
        while let Some(name) = walk.next_name() {
            check_name(&name)?;
            let here = walk.here();
            let next = match self.child(here, &name) {
                Some(Dentry { inode, .. }) if self.inode(inode).kind() == EntryKind::Directory => {
                    self.touch(here, &name);
                    inode
                }
                Some(Dentry { inode, layer }) if layer == self.layer => {
                    let Content::Symlink(target) = &self.inode(inode).content else {
                        return Err(WriteError::NotADirectory {
                            path: show_path(path),
                        });
                    };
                    walk.follow(target, path)?;
                    continue;
                }
                lower => {
                    if lower.is_some() {
                        self.remove_child(here, &name);
                    }
                    let empty = Content::Directory(std::collections::BTreeMap::new());
                    self.create(here, name, empty, implied_directory())?
                }
            };
            walk.entered.push(next);
            if walk.entered.len() > MAX_DEPTH {
                return Err(WriteError::TooDeep { limit: MAX_DEPTH });
            }
        }
        Ok(walk.here())
    }

    /// The file of that path, if there is one. Links on the way are followed,
    /// the last name is not.
    pub(crate) fn find(&self, path: &[&[u8]]) -> Result<Option<InodeId>, WriteError> {
        let Some((last, parent)) = path.split_last() else {
            return Ok(Some(ROOT));
        };
        let mut walk = Walk::new(parent);
        while let Some(name) = walk.next_name() {
            let Some(dentry) = self.child(walk.here(), &name) else {
                return Ok(None);
            };
            match &self.inode(dentry.inode).content {
                Content::Directory(_) => walk.entered.push(dentry.inode),
                Content::Symlink(target) => walk.follow(target, path)?,
                _ => return Ok(None),
            }
        }
        Ok(self.child(walk.here(), last).map(|dentry| dentry.inode))
    }
}
