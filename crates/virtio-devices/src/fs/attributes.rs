//! Requests about attributes: plain, extended, and those of the file system.

use super::abi::{Attr, Body, ROOT_NODE, setattr};
use super::credentials::killing_suid;
use super::host_file::{Descriptors, Status};
use super::names::mode_of;
use super::request::SetAttr;
use super::server::{Reply, Server, check_writable};
use super::table::Node;
use rustix::fs::{
    AtFlags, FileType, Gid, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid, XattrFlags,
    chmodat, chownat, fgetxattr, flistxattr, fremovexattr, fsetxattr, fstatvfs, ftruncate,
    utimensat,
};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::AsFd;

/// Largest list of names or value of an extended attribute.
const MAX_XATTR: usize = 64 << 10;

/// The root of all: a directory that nobody can write into.
fn root_attr() -> Attr {
    Attr {
        ino: ROOT_NODE,
        mode: 0o40_555,
        nlink: 2,
        blksize: 4096,
        ..Attr::default()
    }
}

/// Which extended attributes the guest reads and writes: those that a process
/// without rights over the host may. "trusted." and the labels of the host's
/// security modules are none of the guest's affair. Nor are access lists: the guest's
/// kernel would store them and go by the mode alone, which shows their mask, so that a
/// group could do more than its list says.
fn is_shared(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name == b"security.capability"
}

impl Server {
    pub(super) fn get_attr(&self, node: u64, fh: Option<u64>) -> Result<Reply, Errno> {
        if node == ROOT_NODE {
            return Ok(attr_out(&root_attr()));
        }
        let status = match fh {
            Some(fh) => {
                let handle = self.table().handle(fh)?;
                Status::of(handle.file.as_fd())?
            }
            None => Status::of(self.node(node)?.fd())?,
        };
        Ok(attr_out(&self.guest_attr(&status)))
    }

    pub(super) fn set_attr(&self, node: u64, change: &SetAttr) -> Result<Reply, Errno> {
        let node = self.writable(node)?;
        let has = |bit| change.valid & bit != 0;
        if has(setattr::MODE) {
            if node.file_type == FileType::Symlink {
                return Err(Errno::OPNOTSUPP);
            }
            let (fds, name) = (self.descriptors.dir(), Descriptors::name(node.fd()));
            chmodat(fds, name, mode_of(change.mode), AtFlags::empty())?;
        }
        if has(setattr::UID) || has(setattr::GID) {
            if change.uid == u32::MAX && has(setattr::UID)
                || change.gid == u32::MAX && has(setattr::GID)
            {
                return Err(Errno::INVAL);
            }
            let uid = has(setattr::UID).then(|| Uid::from_raw(change.uid));
            let gid = has(setattr::GID).then(|| Gid::from_raw(change.gid));
            chownat(node.fd(), c"", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if has(setattr::SIZE) {
            killing_suid(has(setattr::KILL_SUIDGID), || self.truncate(&node, change))?;
        }
        if has(setattr::ATIME) || has(setattr::MTIME) {
            let times = Timestamps {
                last_access: time(change, change.atime, setattr::ATIME, setattr::ATIME_NOW),
                last_modification: time(change, change.mtime, setattr::MTIME, setattr::MTIME_NOW),
            };
            utimensat(node.fd(), c"", &times, AtFlags::EMPTY_PATH)?;
        }
        let status = Status::of(node.fd())?;
        Ok(attr_out(&self.guest_attr(&status)))
    }

    fn truncate(&self, node: &Node, change: &SetAttr) -> Result<(), Errno> {
        if change.valid & setattr::FH != 0 {
            let handle = self.table().handle(change.fh)?;
            check_writable(&handle.node)?;
            return ftruncate(&handle.file, change.size);
        }
        super::server::check_type(node, FileType::RegularFile)?;
        let file = self.descriptors.reopen(node.fd(), OFlags::WRONLY)?;
        ftruncate(&file, change.size)
    }

    /// Of the host's file system that the node is on.
    pub(super) fn stat_fs(&self, node: u64) -> Result<Reply, Errno> {
        let body = Body::default();
        if node == ROOT_NODE {
            return Ok(body
                .zeroes(40)
                .u32(4096)
                .u32(255)
                .u32(4096)
                .zeroes(28)
                .into());
        }
        let stat = fstatvfs(self.node(node)?.fd())?;
        let small = |value| u32::try_from(value).unwrap_or(u32::MAX);
        Ok(body
            .u64(stat.f_blocks)
            .u64(stat.f_bfree)
            .u64(stat.f_bavail)
            .u64(stat.f_files)
            .u64(stat.f_ffree)
            .u32(small(stat.f_bsize))
            .u32(small(stat.f_namemax))
            .u32(small(stat.f_frsize))
            .zeroes(28)
            .into())
    }

    pub(super) fn get_xattr(&self, node: u64, name: &[u8], size: u32) -> Result<Reply, Errno> {
        if !is_shared(name) || node == ROOT_NODE {
            return Err(Errno::OPNOTSUPP);
        }
        let file = self.open_for_xattr(&*self.node(node)?)?;
        let mut value = vec![0; MAX_XATTR];
        let len = fgetxattr(&file, name, &mut value[..])?;
        value.truncate(len);
        sized(value, size)
    }

    pub(super) fn list_xattr(&self, node: u64, size: u32) -> Result<Reply, Errno> {
        if node == ROOT_NODE {
            return sized(Vec::new(), size);
        }
        let file = self.open_for_xattr(&*self.node(node)?)?;
        let mut list = vec![0; MAX_XATTR];
        let len = flistxattr(&file, &mut list[..])?;
        let shown = list[..len]
            .split_inclusive(|byte| *byte == 0)
            .filter(|name| is_shared(name.strip_suffix(b"\0").unwrap_or(name)))
            .flatten()
            .copied()
            .collect();
        sized(shown, size)
    }

    pub(super) fn set_xattr(
        &self,
        node: u64,
        name: &[u8],
        value: &[u8],
        flags: u32,
    ) -> Result<Reply, Errno> {
        if !is_shared(name) {
            return Err(Errno::OPNOTSUPP);
        }
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        let file = self.open_for_xattr(&*self.writable(node)?)?;
        fsetxattr(&file, name, value, flags)?;
        Ok(Reply::Body(Vec::new()))
    }

    pub(super) fn remove_xattr(&self, node: u64, name: &[u8]) -> Result<Reply, Errno> {
        if !is_shared(name) {
            return Err(Errno::OPNOTSUPP);
        }
        let file = self.open_for_xattr(&*self.writable(node)?)?;
        fremovexattr(&file, name)?;
        Ok(Reply::Body(Vec::new()))
    }

    /// The kernel reads attributes of opened files only.
    fn open_for_xattr(&self, node: &Node) -> Result<File, Errno> {
        match node.file_type {
            FileType::RegularFile | FileType::Directory => {
                self.descriptors.reopen(node.fd(), OFlags::RDONLY)
            }
            _ => Err(Errno::OPNOTSUPP),
        }
    }
}

/// struct fuse_attr_out; the attributes may not be cached.
fn attr_out(attr: &Attr) -> Reply {
    Body::default().zeroes(16).attr(attr).into()
}

/// A value, or only its length if the driver gave no room.
fn sized(value: Vec<u8>, size: u32) -> Result<Reply, Errno> {
    if size == 0 {
        let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
        return Ok(Body::default().u32(len).u32(0).into());
    }
    if value.len() > usize::try_from(size).unwrap_or(usize::MAX) {
        return Err(Errno::RANGE);
    }
    Ok(Reply::Body(value))
}

fn time(change: &SetAttr, (seconds, nanoseconds): (u64, u32), set: u32, now: u32) -> Timespec {
    let special = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    if change.valid & set == 0 {
        special(UTIME_OMIT)
    } else if change.valid & now != 0 {
        special(UTIME_NOW)
    } else {
        Timespec {
            tv_sec: seconds.cast_signed(),
            // Larger ones have meanings of their own.
            tv_nsec: nanoseconds.min(999_999_999).into(),
        }
    }
}
