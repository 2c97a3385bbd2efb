//! Partitions made by hand on a virtio disk (the BLKPG ioctl).
#![expect(unsafe_code, reason = "ioctl with pointers to our own structures")]
// UNSAFETY: BLKPG passes a structure that points to a second one.

use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd};

/// linux/blkpg.h
const BLKPG: libc::Ioctl = 0x1269;
const BLKPG_ADD_PARTITION: libc::c_int = 1;
const BLKPG_DEL_PARTITION: libc::c_int = 2;

#[repr(C)]
struct BlkpgArg {
    op: libc::c_int,
    flags: libc::c_int,
    datalen: libc::c_int,
    data: *mut BlkpgPartition,
}

#[repr(C)]
struct BlkpgPartition {
    start: i64,
    length: i64,
    pno: libc::c_int,
    devname: [u8; 64],
    volname: [u8; 64],
}

/// Makes partition `number` of `length` bytes at byte `start` of `disk`.
pub(crate) fn add_partition(
    disk: impl AsFd,
    number: u8,
    start: i64,
    length: i64,
) -> Result<(), Errno> {
    blkpg(disk, BLKPG_ADD_PARTITION, number, start, length)
}

/// Deletes partition `number`; EBUSY while anything has it open or mounted.
pub(crate) fn delete_partition(disk: impl AsFd, number: u8) -> Result<(), Errno> {
    blkpg(disk, BLKPG_DEL_PARTITION, number, 0, 0)
}

fn blkpg(
    disk: impl AsFd,
    op: libc::c_int,
    number: u8,
    start: i64,
    length: i64,
) -> Result<(), Errno> {
    let mut partition = BlkpgPartition {
        start,
        length,
        pno: libc::c_int::from(number),
        devname: [0; 64],
        volname: [0; 64],
    };
    let mut arg = BlkpgArg {
        op,
        flags: 0,
        datalen: 0,
        data: &raw mut partition,
    };
    // SAFETY: `arg` and the partition it points to are laid out as linux/blkpg.h
    // says, live until the call returns, and the kernel only reads them.
    let result = unsafe { libc::ioctl(disk.as_fd().as_raw_fd(), BLKPG, &raw mut arg) };
    super::check(result.into()).map(drop)
}
