//! Partitions made by hand on a virtio disk (the BLKPG ioctl), and what grows with
//! them.
#![expect(unsafe_code, reason = "ioctl with pointers to our own structures")]
// UNSAFETY: BLKPG passes a structure that points to a second one; rustix has none of
// the others.

use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd};

/// linux/blkpg.h
const BLKPG: libc::Ioctl = 0x1269;
const BLKPG_ADD_PARTITION: libc::c_int = 1;
const BLKPG_DEL_PARTITION: libc::c_int = 2;
const BLKPG_RESIZE_PARTITION: libc::c_int = 3;
/// linux/fs.h
const BLKROSET: libc::Ioctl = 0x125d;
/// linux/ext4.h: `_IOW('f', 16, __u64)`
const EXT4_IOC_RESIZE_FS: libc::Ioctl = 0x4008_6610;
/// linux/ext4.h: `_IOW('f', 43, __u32)`, and to discard what is written back
const EXT4_IOC_CHECKPOINT: libc::Ioctl = 0x4004_662b;
const EXT4_IOC_CHECKPOINT_FLAG_DISCARD: u32 = 1;
/// xfs_fs.h: `_IOR('X', 100, struct xfs_fsop_geom_v1)`
const XFS_IOC_FSGEOMETRY_V1: libc::Ioctl = 0x8070_5864;
/// xfs_fs.h: `_IOW('X', 110, struct xfs_growfs_data)`
const XFS_IOC_FSGROWFSDATA: libc::Ioctl = 0x4010_586e;

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

/// Has partition `number`, which begins at byte `start`, have `length` bytes; it may
/// be in use.
pub(crate) fn resize_partition(
    disk: impl AsFd,
    number: u8,
    start: i64,
    length: i64,
) -> Result<(), Errno> {
    blkpg(disk, BLKPG_RESIZE_PARTITION, number, start, length)
}

/// Marks a block device as one that is not written.
pub(crate) fn set_read_only(device: impl AsFd) -> Result<(), Errno> {
    let mut yes: libc::c_int = 1;
    // SAFETY: the kernel reads an int at the address, which lives through the call.
    unsafe { ioctl(device, BLKROSET, &raw mut yes) }
}

/// Grows a mounted ext4 file system to `blocks`; `top` is its directory.
pub(crate) fn grow_ext4(top: impl AsFd, blocks: u64) -> Result<(), Errno> {
    let mut blocks = blocks;
    // SAFETY: the kernel reads a 64-bit number at the address, which lives through
    // the call.
    unsafe { ioctl(top, EXT4_IOC_RESIZE_FS, &raw mut blocks) }
}

/// Writes all that is in the journal of a mounted ext4 file system to its place, and
/// discards the journal's blocks; `top` is its directory. Waits for the disk.
pub(crate) fn discard_journal(top: impl AsFd) -> Result<(), Errno> {
    let mut flags = EXT4_IOC_CHECKPOINT_FLAG_DISCARD;
    // SAFETY: the kernel reads a 32-bit number at the address, which lives through
    // the call.
    unsafe { ioctl(top, EXT4_IOC_CHECKPOINT, &raw mut flags) }
}

/// Grows a mounted XFS file system to `length` bytes; `top` is its directory.
pub(crate) fn grow_xfs(top: impl AsFd, length: u64) -> Result<(), Errno> {
    /// struct xfs_fsop_geom_v1: block size first, imaxpct eighth of its words.
    #[repr(C, align(8))]
    struct Geometry([u32; 28]);
    #[repr(C)]
    struct Growth {
        blocks: u64,
        imaxpct: u32,
    }
    let mut geometry = Geometry([0; 28]);
    // SAFETY: the kernel writes the 112 bytes that the call's number names, which
    // the structure has.
    unsafe { ioctl(&top, XFS_IOC_FSGEOMETRY_V1, &raw mut geometry)? };
    let block = u64::from(geometry.0[0].max(1));
    let mut growth = Growth {
        blocks: length / block,
        imaxpct: geometry.0[7],
    };
    // SAFETY: the kernel reads the 16 bytes that the call's number names, which the
    // structure has.
    unsafe { ioctl(&top, XFS_IOC_FSGROWFSDATA, &raw mut growth) }
}

/// # Safety
/// `argument` points to what the kernel reads or writes for `request`.
unsafe fn ioctl<T>(file: impl AsFd, request: libc::Ioctl, argument: *mut T) -> Result<(), Errno> {
    // SAFETY: the caller's.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), request, argument) };
    super::check(result.into()).map(drop)
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
