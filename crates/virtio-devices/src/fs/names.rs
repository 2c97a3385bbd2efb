//! Requests about names in directories.

use super::abi::{Attr, Body, ROOT_NODE};
use super::credentials::as_user;
use super::host_file::{self, Descriptors, Status};
use super::request::{Header, Name, Operation};
use super::server::{Reply, Server, check_writable};
use super::table::Node;
use rustix::fs::{
    AtFlags, FileType, Mode, RenameFlags, linkat, mkdirat, mknodat, readlinkat, renameat_with,
    symlinkat, unlinkat,
};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Permission bits, set-id bits and the sticky bit.
const MODE_BITS: u32 = 0o7777;

/// What of a mode a new file gets.
pub(super) fn mode_of(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & MODE_BITS)
}

impl Server {
    pub(super) fn perform_on_names(
        &self,
        header: &Header,
        operation: &Operation<'_>,
    ) -> Result<Reply, Errno> {
        let (dir, uid, gid) = (header.node, header.uid, header.gid);
        match *operation {
            Operation::Lookup { name } => self.lookup(header.pid, dir, name),
            Operation::ReadLink => self.read_link(header.pid, dir),
            Operation::SymLink { name, target } => {
                let dir = self.writable(dir)?;
                as_user(uid, gid, || symlinkat(target, dir.fd(), name.bytes()))?;
                self.found(&dir, name)
            }
            Operation::MkNod {
                name,
                mode,
                rdev: _,
            } => {
                let dir = self.writable(dir)?;
                let kind = FileType::from_raw_mode(mode);
                let harmless = [FileType::RegularFile, FileType::Fifo, FileType::Socket];
                if !harmless.contains(&kind) {
                    // A device node would be one of the host.
                    return Err(Errno::PERM);
                }
                as_user(uid, gid, || {
                    mknodat(dir.fd(), name.bytes(), kind, mode_of(mode), 0)
                })?;
                self.found(&dir, name)
            }
            Operation::MkDir { name, mode } => {
                let dir = self.writable(dir)?;
                as_user(uid, gid, || mkdirat(dir.fd(), name.bytes(), mode_of(mode)))?;
                self.found(&dir, name)
            }
            Operation::Unlink { name } => {
                let dir = self.writable(dir)?;
                unlinkat(dir.fd(), name.bytes(), AtFlags::empty())?;
                Ok(Reply::Body(Vec::new()))
            }
            Operation::RmDir { name } => {
                let dir = self.writable(dir)?;
                unlinkat(dir.fd(), name.bytes(), AtFlags::REMOVEDIR)?;
                Ok(Reply::Body(Vec::new()))
            }
            Operation::Rename {
                name,
                new_parent,
                new_name,
                flags,
            } => self.rename((dir, name), (new_parent, new_name), flags),
            Operation::Link { node, name } => self.link(node, dir, name),
            _ => Err(Errno::NOSYS),
        }
    }

    fn lookup(&self, thread: u32, dir: u64, name: Name<'_>) -> Result<Reply, Errno> {
        if dir == ROOT_NODE {
            let share = self.table().look_up_share(name.bytes())?;
            return self.entry(&share);
        }
        let dir = self.node(dir)?;
        match self.found(&dir, name) {
            Err(Errno::NOENT) => Err(self.missing(thread, &dir, name)),
            other => other,
        }
    }

    fn read_link(&self, thread: u32, node: u64) -> Result<Reply, Errno> {
        let node = self.node(node)?;
        let target = readlinkat(node.fd(), c"", Vec::new())?.into_bytes();
        self.table().link_is_read(thread, node.id, &target);
        Ok(Reply::Body(target))
    }

    /// Answers with what `name` is now.
    fn found(&self, dir: &Arc<Node>, name: Name<'_>) -> Result<Reply, Errno> {
        let fd = host_file::lookup(dir.fd(), name)?;
        let (node, attr) = self.remember(dir, fd)?;
        self.table().found_at(node.id, dir.id, name.bytes());
        Ok(Body::default().entry(node.id, &attr).into())
    }

    /// The answer about a name that is not there: STALE if the thread came by a
    /// link that says something else by now (see [`super::links`]).
    fn missing(&self, thread: u32, dir: &Node, name: Name<'_>) -> Errno {
        let links = self.table().links_leading_to(thread, dir.id, name.bytes());
        for (link_dir, link) in links {
            let now = readlinkat(link_dir.fd(), &*link.place.1, Vec::new());
            if now.is_ok_and(|target| *target.as_bytes() == *link.target) {
                continue;
            }
            self.table().answered_stale(&link, dir.id, name.bytes());
            return Errno::STALE;
        }
        Errno::NOENT
    }

    /// Puts a file found in `dir` into the table.
    pub(super) fn remember(&self, dir: &Node, fd: OwnedFd) -> Result<(Arc<Node>, Attr), Errno> {
        let status = Status::of(fd.as_fd())?;
        let attr = self.guest_attr(&status);
        let node = self.table().remember(&dir.share, fd, &status)?;
        Ok((node, attr))
    }

    fn entry(&self, node: &Node) -> Result<Reply, Errno> {
        let attr = self.guest_attr(&Status::of(node.fd())?);
        Ok(Body::default().entry(node.id, &attr).into())
    }

    fn rename(
        &self,
        from: (u64, Name<'_>),
        to: (u64, Name<'_>),
        flags: u32,
    ) -> Result<Reply, Errno> {
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        if flags.contains(RenameFlags::WHITEOUT) {
            // A whiteout is a device node.
            return Err(Errno::INVAL);
        }
        let (from_dir, to_dir) = (self.writable(from.0)?, self.writable(to.0)?);
        if !from_dir.share.is(&to_dir.share) {
            return Err(Errno::XDEV);
        }
        let (old, new) = (from.1.bytes(), to.1.bytes());
        renameat_with(from_dir.fd(), old, to_dir.fd(), new, flags)?;
        Ok(Reply::Body(Vec::new()))
    }

    fn link(&self, node: u64, dir: u64, name: Name<'_>) -> Result<Reply, Errno> {
        let (node, dir) = (self.node(node)?, self.writable(dir)?);
        if !node.share.is(&dir.share) {
            return Err(Errno::XDEV);
        }
        check_writable(&node)?;
        let (fds, old) = (self.descriptors.dir(), Descriptors::name(node.fd()));
        // Follows to the file behind the descriptor; a link there is not followed.
        linkat(fds, old, dir.fd(), name.bytes(), AtFlags::SYMLINK_FOLLOW)?;
        self.found(&dir, name)
    }
}
