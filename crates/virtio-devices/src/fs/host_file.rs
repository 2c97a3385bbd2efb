//! What the server does with host files, always by descriptor: an inode is held
//! as an O_PATH descriptor, and every name is resolved as one component beneath
//! one. Nothing here follows a symbolic link.

use super::abi::Attr;
use super::request::Name;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, makedev, openat, openat2,
    statx,
};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// A device number below that fits fuse_attr.rdev (new_encode_dev).
fn rdev(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// One file of the host, whatever its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// Device number of the file system.
    pub(super) dev: u64,
    pub(super) ino: u64,
    /// The mount that it was reached by: with it go the mount's flags and what
    /// is mounted below.
    pub(super) mount: u64,
}

impl Key {
    /// The same file, by whatever mount.
    pub(super) fn is_file(&self, other: &Self) -> bool {
        (self.dev, self.ino) == (other.dev, other.ino)
    }
}

/// What statx(2) says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Status {
    pub(super) key: Key,
    /// With the host's inode number.
    pub(super) attr: Attr,
}

impl Status {
    /// Of the file behind a descriptor, O_PATH or not.
    pub(super) fn of(fd: BorrowedFd<'_>) -> Result<Status, Errno> {
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
        let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
        Ok(Self::from_statx(&statx(fd, c"", flags, wanted)?))
    }

    fn from_statx(stat: &Statx) -> Status {
        let time = |t: &rustix::fs::StatxTimestamp| (t.tv_sec.cast_unsigned(), t.tv_nsec);
        Status {
            key: Key {
                dev: makedev(stat.stx_dev_major, stat.stx_dev_minor),
                ino: stat.stx_ino,
                mount: stat.stx_mnt_id,
            },
            attr: Attr {
                ino: stat.stx_ino,
                size: stat.stx_size,
                blocks: stat.stx_blocks,
                atime: time(&stat.stx_atime),
                mtime: time(&stat.stx_mtime),
                ctime: time(&stat.stx_ctime),
                mode: stat.stx_mode.into(),
                nlink: stat.stx_nlink,
                uid: stat.stx_uid,
                gid: stat.stx_gid,
                rdev: rdev(stat.stx_rdev_major, stat.stx_rdev_minor),
                blksize: stat.stx_blksize,
            },
        }
    }

    pub(super) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.attr.mode)
    }
}

/// The entry of a directory, itself: of a link the link.
pub(super) fn lookup(dir: BorrowedFd<'_>, name: Name<'_>) -> Result<OwnedFd, Errno> {
    open_beneath(dir, name, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())
}

/// A new regular file, opened.
pub(super) fn create(
    dir: BorrowedFd<'_>,
    name: Name<'_>,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    // Never what is there already, which might be a device or a pipe.
    let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    open_beneath(dir, name, flags, mode)
}

fn open_beneath(
    dir: BorrowedFd<'_>,
    name: Name<'_>,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    openat2(dir, name.bytes(), flags | OFlags::CLOEXEC, mode, resolve)
}

/// This process's descriptors as a directory: how the kernel lets an O_PATH
/// descriptor be opened. Kept open, so that no path is needed later.
#[derive(Debug)]
pub(super) struct Descriptors(OwnedFd);

impl Descriptors {
    pub(super) fn open() -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(c"/proc/self/fd", flags, Mode::empty())?;
        Ok(Descriptors(fd))
    }

    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The name of a descriptor in this directory.
    pub(super) fn name(fd: BorrowedFd<'_>) -> String {
        fd.as_raw_fd().to_string()
    }

    /// Opens the file behind an O_PATH descriptor. It must be known to be a
    /// regular file or a directory: anything else would be a host device.
    pub(super) fn reopen(&self, fd: BorrowedFd<'_>, flags: OFlags) -> Result<File, Errno> {
        let flags = flags - (OFlags::NOFOLLOW | OFlags::CREATE | OFlags::EXCL);
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        let opened = openat(&self.0, Self::name(fd), flags, Mode::empty())?;
        Ok(File::from(opened))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn open_dir(path: &std::path::Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).expect("open")
    }

    #[test]
    fn a_link_is_found_and_never_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        symlink("/etc", dir.path().join("out")).expect("a link");
        let fd = open_dir(dir.path());
        let name = Name::new(b"out").expect("a name");
        let link = lookup(fd.as_fd(), name).expect("there");
        let status = Status::of(link.as_fd()).expect("statx");
        assert_eq!(status.file_type(), FileType::Symlink);
        // Not a directory in which anything could be looked up.
        let inside = Name::new(b"shadow").expect("a name");
        assert!(lookup(link.as_fd(), inside).is_err());
        assert!(create(fd.as_fd(), name, OFlags::WRONLY, Mode::RWXU).is_err());
    }

    #[test]
    fn a_deleted_file_can_still_be_opened() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("f"), "text").expect("write");
        let fd = open_dir(dir.path());
        let file = lookup(fd.as_fd(), Name::new(b"f").expect("a name")).expect("there");
        std::fs::remove_file(dir.path().join("f")).expect("removed");
        let opened = Descriptors::open()
            .and_then(|d| d.reopen(file.as_fd(), OFlags::RDONLY))
            .expect("opened");
        assert_eq!(std::io::read_to_string(opened).expect("read"), "text");
    }
}
