//! Project quotas: a directory tree's share of a file system.
#![expect(unsafe_code, reason = "ioctl and quotactl_fd")]
// UNSAFETY: rustix and nix have neither FS_IOC_FSSETXATTR nor quotactl_fd.

use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd};

/// struct fsxattr of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct Fsxattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

/// _IOR('X', 31, struct fsxattr) and _IOW('X', 32, struct fsxattr)
const FS_IOC_FSGETXATTR: libc::Ioctl = 0x801c_581f;
const FS_IOC_FSSETXATTR: libc::Ioctl = 0x401c_5820;
const FS_XFLAG_PROJINHERIT: u32 = 0x200;
const PRJQUOTA: u32 = 2;
const Q_GETQUOTA: u32 = 0x80_0007;
const Q_SETQUOTA: u32 = 0x80_0008;
const QIF_BLIMITS: u32 = 1;
/// Bytes of a quota block, whatever the file system's own block size.
const QUOTA_BLOCK: u64 = 1024;

/// Puts the directory `dir`, and all that is made below it, into `project`.
pub(crate) fn assign_project(dir: impl AsFd, project: u32) -> Result<(), Errno> {
    let fd = dir.as_fd().as_raw_fd();
    let mut attr = Fsxattr::default();
    // SAFETY: `attr` is laid out as struct fsxattr (28 bytes, the size in the
    // request number) and lives until the call returns.
    super::check(unsafe { libc::ioctl(fd, FS_IOC_FSGETXATTR, &raw mut attr) }.into())?;
    attr.projid = project;
    attr.xflags |= FS_XFLAG_PROJINHERIT;
    // SAFETY: as above; the kernel only reads it.
    super::check(unsafe { libc::ioctl(fd, FS_IOC_FSSETXATTR, &raw const attr) }.into()).map(drop)
}

/// Bounds `project` to `bytes` on the file system of `any_file`.
pub(crate) fn limit_project(any_file: impl AsFd, project: u32, bytes: u64) -> Result<(), Errno> {
    // SAFETY: all-zero bytes are a valid dqblk: plain integers.
    let mut block: libc::dqblk = unsafe { std::mem::zeroed() };
    block.dqb_bhardlimit = bytes.div_ceil(QUOTA_BLOCK);
    block.dqb_bsoftlimit = block.dqb_bhardlimit;
    block.dqb_valid = QIF_BLIMITS;
    // SAFETY: `block` is a whole dqblk that the kernel only reads; the other
    // arguments are integers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            any_file.as_fd().as_raw_fd(),
            (Q_SETQUOTA << 8) | PRJQUOTA,
            project,
            &raw const block,
        )
    };
    super::check(result).map(drop)
}

/// What helps where a limit cannot be set.
pub(crate) fn remedy(error: Errno) -> &'static str {
    match error {
        Errno::OPNOTSUPP | Errno::NOTTY | Errno::SRCH | Errno::NOSYS => {
            "make the scratch disk with mkfs.ext4 -O quota,project"
        }
        _ => "",
    }
}

/// The project of a file or directory; 0 is none.
pub(crate) fn project_of(file: impl AsFd) -> Result<u32, Errno> {
    let mut attr = Fsxattr::default();
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: `attr` is laid out as struct fsxattr (28 bytes, the size in the
    // request number) and lives until the call returns.
    super::check(unsafe { libc::ioctl(fd, FS_IOC_FSGETXATTR, &raw mut attr) }.into())?;
    Ok(attr.projid)
}

/// What `project` uses of the file system of `any_file`: bytes and inodes.
pub(crate) fn project_usage(any_file: impl AsFd, project: u32) -> Result<(u64, u64), Errno> {
    // SAFETY: all-zero bytes are a valid dqblk: plain integers.
    let mut block: libc::dqblk = unsafe { std::mem::zeroed() };
    // SAFETY: `block` is a whole dqblk that lives until the call returns; the
    // other arguments are integers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            any_file.as_fd().as_raw_fd(),
            (Q_GETQUOTA << 8) | PRJQUOTA,
            project,
            &raw mut block,
        )
    };
    super::check(result)?;
    Ok((block.dqb_curspace, block.dqb_curinodes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fsxattr_has_the_size_its_request_numbers_carry() {
        assert_eq!(size_of::<Fsxattr>(), 28);
        assert_eq!((FS_IOC_FSGETXATTR >> 16) & 0x3fff, 28);
    }
}
