//! A copy of a mount in which later mounts of the host do not appear.
#![expect(unsafe_code, reason = "raw system call")]
// UNSAFETY: neither rustix nor nix has mount_setattr.

use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Copies what `path` (an O_PATH descriptor) refers to, with what is mounted below
/// it now. The copy is attached nowhere and ends with its descriptor; the host may
/// unmount the original meanwhile.
pub(crate) fn copy(path: impl AsFd) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let copy = open_tree(path, c"", flags)?;
    // A copy of a shared mount is its peer.
    make_private(&copy)?;
    Ok(copy)
}

fn make_private(mount: &OwnedFd) -> Result<(), Errno> {
    let attr = libc::mount_attr {
        attr_set: 0,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    // SAFETY: the path is an empty C string, `attr` a whole mount_attr whose size
    // is passed; the kernel only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        return Ok(());
    }
    // SAFETY: the address of the calling thread's own errno.
    Err(Errno::from_raw_os_error(unsafe {
        *libc::__errno_location()
    }))
}
