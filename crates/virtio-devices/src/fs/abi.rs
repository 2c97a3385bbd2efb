//! Numbers and layouts of the FUSE protocol 7.38 (Linux, uapi/linux/fuse.h), of
//! those messages that a virtio-fs driver sends. All fields are little-endian:
//! host and guest are x86-64.

/// The protocol's major version.
pub(super) const MAJOR: u32 = 7;
/// The minor version spoken here. A driver takes the lower of both.
pub(super) const MINOR: u32 = 38;
/// The oldest minor version with the layouts below (INIT_EXT).
pub(super) const MIN_MINOR: u32 = 36;
/// The node that every file system has: its root.
pub(super) const ROOT_NODE: u64 = 1;

/// Bytes of struct fuse_in_header.
pub(super) const IN_HEADER: usize = 40;
/// Bytes of struct fuse_out_header.
pub(super) const OUT_HEADER: usize = 16;
/// Bytes of struct fuse_dirent before the name.
pub(super) const DIRENT: usize = 24;

/// Operations (enum fuse_opcode).
pub(super) mod opcode {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const SYMLINK: u32 = 6;
    pub(crate) const MKNOD: u32 = 8;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RMDIR: u32 = 11;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const SETXATTR: u32 = 21;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const LISTXATTR: u32 = 23;
    pub(crate) const REMOVEXATTR: u32 = 24;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const FSYNCDIR: u32 = 30;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const FALLOCATE: u32 = 43;
    pub(crate) const RENAME2: u32 = 45;
    pub(crate) const LSEEK: u32 = 46;
    pub(crate) const COPY_FILE_RANGE: u32 = 47;
}

/// Flags of INIT (fuse_init_in.flags, with flags2 in the upper half).
pub(super) mod init {
    pub(crate) const ASYNC_READ: u64 = 1 << 0;
    pub(crate) const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub(crate) const BIG_WRITES: u64 = 1 << 5;
    pub(crate) const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub(crate) const ASYNC_DIO: u64 = 1 << 15;
    pub(crate) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(crate) const MAX_PAGES: u64 = 1 << 22;
    pub(crate) const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub(crate) const INIT_EXT: u64 = 1 << 30;
    pub(crate) const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    pub(crate) const ALLOW_IDMAP: u64 = 1 << 40;
}

/// Bits of fuse_setattr_in.valid.
pub(super) mod setattr {
    pub(crate) const MODE: u32 = 1 << 0;
    pub(crate) const UID: u32 = 1 << 1;
    pub(crate) const GID: u32 = 1 << 2;
    pub(crate) const SIZE: u32 = 1 << 3;
    pub(crate) const ATIME: u32 = 1 << 4;
    pub(crate) const MTIME: u32 = 1 << 5;
    pub(crate) const FH: u32 = 1 << 6;
    pub(crate) const ATIME_NOW: u32 = 1 << 7;
    pub(crate) const MTIME_NOW: u32 = 1 << 8;
    pub(crate) const KILL_SUIDGID: u32 = 1 << 11;
}

/// fuse_getattr_in.getattr_flags: `fh` is set.
pub(super) const GETATTR_FH: u32 = 1;
/// fuse_open_in.open_flags: the set-user-id bits go.
pub(super) const OPEN_KILL_SUIDGID: u32 = 1;
/// fuse_write_in.write_flags: written back from the page cache (a mapping).
pub(super) const WRITE_CACHE: u32 = 1;
/// fuse_write_in.write_flags: the set-user-id bits go.
pub(super) const WRITE_KILL_SUIDGID: u32 = 4;
/// fuse_fsync_in.fsync_flags: no metadata.
pub(super) const FSYNC_FDATASYNC: u32 = 1;
/// fuse_open_out.open_flags: reads and writes pass the guest's page cache by.
pub(super) const FOPEN_DIRECT_IO: u32 = 1;

/// Most pages of 4 KiB in one read or write.
pub(super) const MAX_PAGES: u16 = 256;
/// Most bytes in one read or write.
pub(super) const MAX_WRITE: u32 = MAX_PAGES as u32 * 4096;

/// Takes fields off the front of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `len` bytes; `None` if there are fewer.
    pub(super) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (front, back) = self.0.split_at_checked(len)?;
        self.0 = back;
        Some(front)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.bytes(2)?.try_into().ok()?))
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes(4)?.try_into().ok()?))
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(8)?.try_into().ok()?))
    }

    /// A text that ends with a NUL, without it.
    pub(super) fn text(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let text = &self.0[..end];
        self.0 = &self.0[end + 1..];
        Some(text)
    }
}

/// Builds the body of a reply.
#[derive(Debug, Default)]
pub(super) struct Body(pub(super) Vec<u8>);

impl Body {
    pub(super) fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn zeroes(mut self, count: usize) -> Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    /// struct fuse_attr.
    pub(super) fn attr(self, attr: &Attr) -> Self {
        self.u64(attr.ino)
            .u64(attr.size)
            .u64(attr.blocks)
            .u64(attr.atime.0)
            .u64(attr.mtime.0)
            .u64(attr.ctime.0)
            .u32(attr.atime.1)
            .u32(attr.mtime.1)
            .u32(attr.ctime.1)
            .u32(attr.mode)
            .u32(attr.nlink)
            .u32(attr.uid)
            .u32(attr.gid)
            .u32(attr.rdev)
            .u32(attr.blksize)
            .u32(0)
    }

    /// struct fuse_entry_out. Neither name nor attributes may be cached: the
    /// host changes them.
    pub(super) fn entry(self, node: u64, attr: &Attr) -> Self {
        // generation, entry_valid, attr_valid and their nanoseconds.
        self.u64(node).zeroes(32).attr(attr)
    }
}

/// What is known of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attr {
    pub(super) ino: u64,
    pub(super) size: u64,
    /// Of 512 bytes.
    pub(super) blocks: u64,
    /// Seconds (two's complement) and nanoseconds.
    pub(super) atime: (u64, u32),
    pub(super) mtime: (u64, u32),
    pub(super) ctime: (u64, u32),
    pub(super) mode: u32,
    pub(super) nlink: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) rdev: u32,
    pub(super) blksize: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_the_sizes_of_the_header_file() {
        assert_eq!(Body::default().attr(&Attr::default()).0.len(), 88);
        assert_eq!(Body::default().entry(1, &Attr::default()).0.len(), 128);
    }

    #[test]
    fn fields_end_with_the_message() {
        let mut fields = Fields(&[1, 0, b'a', 0, b'b']);
        assert_eq!(fields.u16(), Some(1));
        assert_eq!(fields.text(), Some(&b"a"[..]));
        assert_eq!(fields.text(), None);
        assert_eq!(fields.u32(), None);
        assert_eq!(fields.bytes(1), Some(&b"b"[..]));
    }
}
