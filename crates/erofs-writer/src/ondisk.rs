//! The structures of the format (`fs/erofs/erofs_fs.h` in Linux), as bytes.

use crate::{BLOCK_SIZE, tree::EntryKind};

/// Where the superblock begins within block 0.
pub(crate) const SUPERBLOCK_OFFSET: usize = 1024;
const SUPERBLOCK_LEN: usize = 128;
const MAGIC: u32 = 0xe0f5_e1e2;
const BLOCK_SIZE_BITS: u8 = 12;
/// Superblock checksum, and inode times being modification times.
const FEATURE_COMPAT: u32 = 0x1 | 0x2;

/// Inodes begin at multiples of this many bytes; a nid counts them.
pub(crate) const SLOT_LEN: u64 = 32;
pub(crate) const COMPACT_LEN: usize = 32;
pub(crate) const EXTENDED_LEN: usize = 64;
pub(crate) const DIRENT_LEN: usize = 12;

const _: () = assert!(1 << BLOCK_SIZE_BITS == BLOCK_SIZE);

/// How an inode's data is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DataLayout {
    /// Whole blocks only.
    Plain = 0,
    /// Whole blocks, and the rest right behind the inode.
    Inline = 2,
}

/// The fields of the superblock that differ between images.
pub(crate) struct Superblock {
    pub(crate) root_nid: u16,
    pub(crate) inodes: u64,
    pub(crate) build_time: i64,
    pub(crate) blocks: u32,
    pub(crate) meta_blkaddr: u32,
    pub(crate) xattr_blkaddr: u32,
    pub(crate) uuid: [u8; 16],
}

impl Superblock {
    /// Block 0: the superblock with its checksum, zeros around it.
    pub(crate) fn block(&self) -> Vec<u8> {
        let mut sb = Vec::with_capacity(SUPERBLOCK_LEN);
        sb.extend_from_slice(&MAGIC.to_le_bytes());
        sb.extend_from_slice(&0u32.to_le_bytes()); // checksum, below
        sb.extend_from_slice(&FEATURE_COMPAT.to_le_bytes());
        sb.extend_from_slice(&[BLOCK_SIZE_BITS, 0]); // no extension slots
        sb.extend_from_slice(&self.root_nid.to_le_bytes());
        sb.extend_from_slice(&self.inodes.to_le_bytes());
        sb.extend_from_slice(&self.build_time.to_le_bytes());
        sb.extend_from_slice(&0u32.to_le_bytes()); // its nanoseconds
        sb.extend_from_slice(&self.blocks.to_le_bytes());
        sb.extend_from_slice(&self.meta_blkaddr.to_le_bytes());
        sb.extend_from_slice(&self.xattr_blkaddr.to_le_bytes());
        sb.extend_from_slice(&self.uuid);
        // No volume name, no incompatible feature, nothing of later formats.
        sb.resize(SUPERBLOCK_LEN, 0);

        let mut block = vec![0; SUPERBLOCK_OFFSET];
        block.extend_from_slice(&sb);
        block.resize(1 << BLOCK_SIZE_BITS, 0);
        let checksum = crc32c(&block[SUPERBLOCK_OFFSET..]);
        block[SUPERBLOCK_OFFSET + 4..SUPERBLOCK_OFFSET + 8]
            .copy_from_slice(&checksum.to_le_bytes());
        block
    }
}

/// An inode as it stands on disk, without attributes and data.
pub(crate) struct InodeHeader {
    pub(crate) layout: DataLayout,
    pub(crate) xattr_icount: u16,
    /// Type and permission bits.
    pub(crate) mode: u16,
    pub(crate) nlink: u32,
    pub(crate) size: u64,
    /// First block of the data, or the device number.
    pub(crate) block_or_device: u32,
    /// A running number; only 32-bit `stat` shows it.
    pub(crate) ino: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime_sec: i64,
    pub(crate) mtime_nsec: u32,
}

impl InodeHeader {
    /// Whether the short form can express it, which has no time of its own.
    pub(crate) fn fits_compact(&self, build_time: i64) -> bool {
        self.mtime_sec == build_time
            && self.mtime_nsec == 0
            && u16::try_from(self.nlink).is_ok()
            && u32::try_from(self.size).is_ok()
            && u16::try_from(self.uid).is_ok()
            && u16::try_from(self.gid).is_ok()
    }

    pub(crate) fn append_to(&self, build_time: i64, out: &mut Vec<u8>) {
        let layout = (self.layout as u16) << 1;
        let mut field = |bytes: &[u8]| out.extend_from_slice(bytes);
        let compact = (
            u16::try_from(self.nlink),
            u32::try_from(self.size),
            u16::try_from(self.uid),
            u16::try_from(self.gid),
        );
        if let ((Ok(nlink), Ok(size), Ok(uid), Ok(gid)), true) =
            (compact, self.fits_compact(build_time))
        {
            field(&layout.to_le_bytes());
            field(&self.xattr_icount.to_le_bytes());
            field(&self.mode.to_le_bytes());
            field(&nlink.to_le_bytes());
            field(&size.to_le_bytes());
            field(&[0; 4]);
            field(&self.block_or_device.to_le_bytes());
            field(&self.ino.to_le_bytes());
            field(&uid.to_le_bytes());
            field(&gid.to_le_bytes());
            field(&[0; 4]);
            return;
        }
        field(&(layout | 1).to_le_bytes());
        field(&self.xattr_icount.to_le_bytes());
        field(&self.mode.to_le_bytes());
        field(&[0; 2]);
        field(&self.size.to_le_bytes());
        field(&self.block_or_device.to_le_bytes());
        field(&self.ino.to_le_bytes());
        field(&self.uid.to_le_bytes());
        field(&self.gid.to_le_bytes());
        field(&self.mtime_sec.to_le_bytes());
        field(&self.mtime_nsec.to_le_bytes());
        field(&self.nlink.to_le_bytes());
        field(&[0; 16]);
    }
}

/// The type bits of `st_mode`.
pub(crate) fn mode_type(kind: EntryKind) -> u16 {
    match kind {
        EntryKind::Fifo => 0o010_000,
        EntryKind::CharDevice => 0o020_000,
        EntryKind::Directory => 0o040_000,
        EntryKind::BlockDevice => 0o060_000,
        EntryKind::File => 0o100_000,
        EntryKind::Symlink => 0o120_000,
        EntryKind::Socket => 0o140_000,
    }
}

/// The type byte of a directory entry.
pub(crate) fn dirent_type(kind: EntryKind) -> u8 {
    match kind {
        EntryKind::File => 1,
        EntryKind::Directory => 2,
        EntryKind::CharDevice => 3,
        EntryKind::BlockDevice => 4,
        EntryKind::Fifo => 5,
        EntryKind::Socket => 6,
        EntryKind::Symlink => 7,
    }
}

/// A device number as Linux stores it; `None` if it does not fit.
pub(crate) fn encode_device(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20)
        .then_some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// CRC-32C as EROFS uses it: seeded with ones, not inverted at the end. Three
/// kilobytes an image do not need a table.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_matches_the_standard_check_value() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn device_numbers_are_encoded_as_linux_does() {
        assert_eq!(encode_device(1, 3), Some(0x103));
        assert_eq!(encode_device(0xfff, 0xf_ffff), Some(u32::MAX));
        assert_eq!(encode_device(8, 0x100), Some(0x10_0800));
        assert_eq!(encode_device(0x1000, 0), None);
        assert_eq!(encode_device(0, 0x10_0000), None);
    }
}
