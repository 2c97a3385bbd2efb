//! Writes an EROFS image from a stack of file-system layers, in one pass.
//!
//! File contents go straight to the image as they arrive, block aligned, from
//! block 1 on; only names and attributes are held in memory. [`Builder::finish`]
//! then appends the metadata and writes the superblock, so a file that was not
//! finished has no valid superblock and cannot be mistaken for an image.
//!
//! The tree knows the layers it was built from ([`Builder::begin_layer`]): a
//! whiteout removes what came from the layers below and nothing of its own
//! layer, and a symbolic link is followed only where its own layer made it.
//! This is what an overlay of directories unpacked one by one would show, but
//! nothing is ever unpacked on the host: a hostile tree is only bytes in memory.
//!
//! # Layout of the image
//!
//! | blocks of 4 KiB         | content                                        |
//! |-------------------------|------------------------------------------------|
//! | 0                       | 1 KiB of zeros, superblock, zeros              |
//! | 1 .. `xattr_blkaddr`    | file contents, each file contiguous            |
//! | .. `meta_blkaddr`       | extended attributes that several inodes share  |
//! | ..                      | inodes with their own attributes and tails     |
//! | .. end                  | whole directory blocks                         |
//!
//! Blocks of zeros are not written (the host file is sparse there), and the
//! contents of files that a later layer removes are punched out. The format is
//! the one every kernel since 5.4 reads: no compression, no chunks, no
//! incompatible feature. The same calls give the same bytes.

mod builder;
mod data;
mod error;
mod metadata;
mod ondisk;
mod tree;
mod xattr;

pub use builder::{Builder, Limits, Options, Summary};
pub use data::FileWriter;
pub use error::WriteError;
pub use tree::{Attributes, EntryKind, FileData, NodeKind, Timestamp};
pub use xattr::Xattr;

/// The block size, in bytes.
pub const BLOCK_SIZE: u64 = 4096;
