//! Files by handles that nobody gave.
#![expect(unsafe_code, reason = "open_by_handle_at")]
// UNSAFETY: no crate here has the call.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// struct file_handle of a 64-bit inode number and its generation
/// (FILEID_INO64_GEN), as FUSE makes them.
#[repr(C)]
struct FileHandle {
    bytes: u32,
    kind: c_int,
    inode: [u32; 2],
    generation: u32,
}

unsafe extern "C" {
    fn open_by_handle_at(mount: c_int, handle: *mut FileHandle, flags: c_int) -> c_int;
}

/// Opens what would have this inode number on the file system of a file.
pub(super) fn open(on: BorrowedFd<'_>, inode: u64, flags: c_int) -> io::Result<OwnedFd> {
    let [a, b, c, d, e, f, g, h] = inode.to_be_bytes();
    let mut handle = FileHandle {
        bytes: 12,
        kind: 0x81,
        inode: [[a, b, c, d], [e, f, g, h]].map(u32::from_be_bytes),
        generation: 0,
    };
    // SAFETY: the handle has as many bytes behind its head as it says; the kernel
    // writes none.
    let fd = unsafe { open_by_handle_at(on.as_fd().as_raw_fd(), &raw mut handle, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor, nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
