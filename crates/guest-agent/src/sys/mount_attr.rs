//! mount_setattr(2).
#![expect(unsafe_code, reason = "raw system call")]
// UNSAFETY: neither rustix nor nix has mount_setattr.

use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Adds `flags` to the mount that `mount` refers to (of itself, an O_PATH
/// descriptor of its root, or a detached one), and below it where `recursive`.
pub(crate) fn add(mount: impl AsFd, flags: MountAttrFlags, recursive: bool) -> Result<(), Errno> {
    set(mount, flags, 0, None, recursive)
}

/// The owners of files on a detached mount (and on those below it, where
/// `recursive`) become ids of a user namespace.
pub(crate) fn map_ids(
    mount: impl AsFd,
    namespace: BorrowedFd<'_>,
    recursive: bool,
) -> Result<(), Errno> {
    let flags = MountAttrFlags::MOUNT_ATTR_IDMAP;
    set(mount, flags, 0, Some(namespace), recursive)
}

/// What is mounted on other copies of the mount (and of those below it, where
/// `recursive`) no longer appears in it.
pub(crate) fn make_private(mount: impl AsFd, recursive: bool) -> Result<(), Errno> {
    let flags = MountAttrFlags::empty();
    set(mount, flags, libc::MS_PRIVATE, None, recursive)
}

fn set(
    mount: impl AsFd,
    flags: MountAttrFlags,
    propagation: u64,
    namespace: Option<BorrowedFd<'_>>,
    recursive: bool,
) -> Result<(), Errno> {
    let attr = libc::mount_attr {
        attr_set: flags.bits().into(),
        attr_clr: 0,
        propagation,
        userns_fd: namespace.map_or(0, |fd| u64::from(fd.as_raw_fd().cast_unsigned())),
    };
    let mut at = libc::AT_EMPTY_PATH;
    if recursive {
        at |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is an empty C string, `attr` a whole mount_attr whose size
    // is passed; the kernel only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            at,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    super::check(result).map(drop)
}
