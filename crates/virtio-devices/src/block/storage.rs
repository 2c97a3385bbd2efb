//! What the kernel can do to a range of a file or block device without data.
#![expect(unsafe_code, reason = "BLKDISCARD takes a pointer to a range")]
// UNSAFETY: rustix has no BLKDISCARD.

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// linux/fs.h
const BLKDISCARD: libc::Ioctl = 0x1277;

/// Tells the host that a range holds nothing of worth. That is advice (virtio
/// 1.2, 5.2.6.2): storage that cannot take it keeps what it has.
pub(super) fn discard(
    file: &File,
    is_block_device: bool,
    offset: u64,
    length: u64,
) -> io::Result<()> {
    let done = if is_block_device {
        discard_device(file, offset, length)
    } else {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(file, mode, offset, length)
    };
    match done {
        Err(errno) if !is_unsupported(errno) => Err(errno.into()),
        _ => Ok(()),
    }
}

fn discard_device(file: &File, offset: u64, length: u64) -> Result<(), Errno> {
    let range = [offset, length];
    // SAFETY: the kernel reads two 64-bit numbers at the address, which live
    // through the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
    if result == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
}

/// Zeroes a range by the cheapest way that the storage knows; the bytes that had
/// to be written. fallocate does for devices what BLKZEROOUT does.
pub(super) fn zero(file: &File, offset: u64, length: u64, unmap: bool) -> io::Result<usize> {
    if length == 0 {
        return Ok(0);
    }
    let hole = unmap.then_some(FallocateFlags::PUNCH_HOLE);
    for mode in hole.into_iter().chain([FallocateFlags::ZERO_RANGE]) {
        match fallocate(file, mode | FallocateFlags::KEEP_SIZE, offset, length) {
            Ok(()) => return Ok(0),
            Err(errno) if is_unsupported(errno) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let zeroes = vec![0; 1 << 16];
    let mut done = 0;
    while done < length {
        let piece = usize::try_from(length - done)
            .unwrap_or(usize::MAX)
            .min(zeroes.len());
        file.write_all_at(&zeroes[..piece], offset + done)?;
        done += piece as u64;
    }
    Ok(usize::try_from(length).unwrap_or(usize::MAX))
}

/// INVAL: a device whose blocks are larger than the range's alignment.
fn is_unsupported(errno: Errno) -> bool {
    [Errno::OPNOTSUPP, Errno::NOSYS, Errno::NODEV, Errno::INVAL].contains(&errno)
}
