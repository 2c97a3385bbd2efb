//! The metadata behind the file contents: planned as a whole first, since
//! directory entries name the places of inodes, then written in one go.

mod directory;

use std::{collections::HashMap, fs::File, os::unix::fs::FileExt};

use crate::{
    BLOCK_SIZE, EntryKind, WriteError, Xattr,
    data::too_many_blocks,
    ondisk::{COMPACT_LEN, DataLayout, EXTENDED_LEN, InodeHeader, SLOT_LEN, Superblock, mode_type},
    tree::{Content, Inode, InodeId, ROOT, Tree},
};
use directory::{Packer, child_names, directory_size};

const WRITE_LEN: usize = 1 << 20;
/// Nids 0 and 1 stay unused: an inode number of 0 means "no file" to programs.
const FIRST_NID: u64 = 2;
const XATTR_HEADER_LEN: usize = 12;
/// Shared attributes an inode can refer to.
const MAX_SHARED: usize = 255;

/// Where an inode stands, and what stands with it.
#[derive(Clone, Copy, Default)]
struct Place {
    nid: u64,
    /// Bytes of directory entries or link target.
    size: u64,
    /// First of its own whole blocks (directories and very long links).
    block: u32,
    inline: bool,
    subdirs: u32,
    parent: InodeId,
}

/// Where all metadata goes.
pub(crate) struct Metadata<'a> {
    tree: &'a Tree,
    /// Inodes in the order they are written: directory by directory.
    order: Vec<InodeId>,
    /// By inode number.
    places: Vec<Place>,
    /// Attributes that several inodes share, and their ids.
    shared: HashMap<&'a Xattr, u32>,
    shared_bytes: Vec<u8>,
    build_time: i64,
    xattr_block: u32,
    meta_block: u32,
    dir_block: u32,
    end_block: u32,
}

impl<'a> Metadata<'a> {
    /// Decides the place of everything, from block `first_free` on.
    pub(crate) fn plan(tree: &'a Tree, first_free: u64) -> Result<Self, WriteError> {
        let mut plan = Self {
            tree,
            order: Vec::new(),
            places: vec![Place::default(); tree.inode_slots()],
            shared: HashMap::new(),
            shared_bytes: Vec::new(),
            build_time: 0,
            xattr_block: block_number(first_free)?,
            meta_block: 0,
            dir_block: 0,
            end_block: 0,
        };
        plan.walk();
        plan.choose_build_time();
        plan.share_xattrs()?;
        let shared_len = plan.shared_bytes.len() as u64;
        plan.meta_block = block_number(first_free + shared_len.div_ceil(BLOCK_SIZE))?;
        plan.place()?;
        Ok(plan)
    }

    pub(crate) fn inodes(&self) -> u64 {
        self.order.len() as u64
    }

    /// Orders the inodes, siblings together, and notes parents.
    fn walk(&mut self) {
        let mut seen = vec![false; self.places.len()];
        seen[ROOT as usize] = true;
        self.order.push(ROOT);
        let mut next = 0;
        while let Some(&id) = self.order.get(next) {
            next += 1;
            let Content::Directory(children) = &self.tree.inode(id).content else {
                continue;
            };
            for dentry in children.values() {
                let child = dentry.inode as usize;
                if std::mem::replace(&mut seen[child], true) {
                    continue;
                }
                self.order.push(dentry.inode);
                if self.tree.inode(dentry.inode).kind() == EntryKind::Directory {
                    self.places[child].parent = id;
                    self.places[id as usize].subdirs += 1;
                }
            }
        }
    }

    /// Inodes of this time can take the short form: the most common one, of
    /// several such the earliest.
    fn choose_build_time(&mut self) {
        let mut counts: HashMap<i64, u32> = HashMap::new();
        for id in &self.order {
            let mtime = self.tree.inode(*id).attributes.mtime;
            if mtime.nanoseconds == 0 && mtime.seconds >= 0 {
                *counts.entry(mtime.seconds).or_default() += 1;
            }
        }
        self.build_time = counts
            .into_iter()
            .max_by_key(|(seconds, count)| (*count, std::cmp::Reverse(*seconds)))
            .map_or(0, |(seconds, _)| seconds);
    }

    fn share_xattrs(&mut self) -> Result<(), WriteError> {
        let mut counts: HashMap<&Xattr, u32> = HashMap::new();
        for id in &self.order {
            for xattr in &self.tree.inode(*id).attributes.xattrs {
                *counts.entry(xattr).or_default() += 1;
            }
        }
        let mut shared: Vec<_> = counts
            .into_iter()
            .filter(|(_, count)| *count > 1)
            .map(|(xattr, _)| xattr)
            .collect();
        shared.sort_unstable();
        for xattr in shared {
            let id = u32::try_from(self.shared_bytes.len() / 4).map_err(|_| too_many_blocks())?;
            xattr.append_to(&mut self.shared_bytes);
            self.shared.insert(xattr, id);
        }
        Ok(())
    }

    fn place(&mut self) -> Result<(), WriteError> {
        let mut position = FIRST_NID * SLOT_LEN;
        let mut dir_blocks: u64 = 0;
        for index in 0..self.order.len() {
            let id = self.order[index];
            let inode = self.tree.inode(id);
            let mut place = self.places[id as usize];
            place.size = match &inode.content {
                Content::Directory(children) => directory_size(child_names(children)),
                Content::Symlink(target) => target.len() as u64,
                Content::File(data) => data.size,
                Content::Node(..) => 0,
            };
            let tail = match inode.content {
                Content::Directory(_) | Content::Symlink(_) => place.size % BLOCK_SIZE,
                Content::File(_) | Content::Node(..) => 0,
            };
            let xattr_len = self.xattr_len(inode)? as u64;
            let inode_len = self.header(id, inode, &place)?.1 as u64;
            let head = inode_len + xattr_len;
            // Neither an inode nor a tail may cross the end of a block.
            place.inline = tail > 0 && head + tail <= BLOCK_SIZE;
            let room = BLOCK_SIZE - position % BLOCK_SIZE;
            let together = if place.inline { head + tail } else { inode_len };
            if together > room {
                position += room;
            }
            place.nid = position / SLOT_LEN;
            position += head + if place.inline { tail } else { 0 };
            position = position.next_multiple_of(SLOT_LEN);

            if matches!(inode.content, Content::Directory(_) | Content::Symlink(_)) {
                // Relative for now; where they begin is known when all are placed.
                place.block = block_number(dir_blocks)?;
                let whole = place.size / BLOCK_SIZE;
                dir_blocks += whole + u64::from(tail > 0 && !place.inline);
            }
            self.places[id as usize] = place;
        }
        let dir_block = u64::from(self.meta_block) + position.div_ceil(BLOCK_SIZE);
        self.dir_block = block_number(dir_block)?;
        self.end_block = block_number(dir_block + dir_blocks)?;
        Ok(())
    }

    /// Splits an inode's attributes into ids of shared ones and its own.
    fn split_xattrs(&self, inode: &'a Inode) -> (Vec<u32>, Vec<&'a Xattr>) {
        let (mut ids, mut own) = (Vec::new(), Vec::new());
        for xattr in &inode.attributes.xattrs {
            match self.shared.get(xattr) {
                Some(id) if ids.len() < MAX_SHARED => ids.push(*id),
                _ => own.push(xattr),
            }
        }
        (ids, own)
    }

    fn xattr_len(&self, inode: &'a Inode) -> Result<usize, WriteError> {
        if inode.attributes.xattrs.is_empty() {
            return Ok(0);
        }
        let (ids, own) = self.split_xattrs(inode);
        let own_len: usize = own.iter().map(|xattr| xattr.disk_len()).sum();
        let len = XATTR_HEADER_LEN + ids.len() * 4 + own_len;
        xattr_icount(len).map(|_| len)
    }

    /// The inode as it will stand on disk, and its length there.
    fn header(
        &self,
        id: InodeId,
        inode: &'a Inode,
        place: &Place,
    ) -> Result<(InodeHeader, usize), WriteError> {
        let kind = inode.kind();
        let attributes = &inode.attributes;
        let block_or_device = match &inode.content {
            Content::Directory(_) | Content::Symlink(_) => self.dir_block + place.block,
            Content::File(data) if data.size > 0 => data.block,
            Content::File(_) => 0,
            Content::Node(_, device) => *device,
        };
        let header = InodeHeader {
            layout: if place.inline {
                DataLayout::Inline
            } else {
                DataLayout::Plain
            },
            xattr_icount: xattr_icount(self.xattr_len(inode)?)?,
            mode: mode_type(kind) | attributes.permissions & 0o7777,
            nlink: if kind == EntryKind::Directory {
                2 + place.subdirs
            } else {
                inode.names
            },
            size: place.size,
            block_or_device,
            ino: id + 1,
            uid: attributes.uid,
            gid: attributes.gid,
            mtime_sec: attributes.mtime.seconds,
            mtime_nsec: attributes.mtime.nanoseconds,
        };
        let compact = header.fits_compact(self.build_time);
        Ok((header, if compact { COMPACT_LEN } else { EXTENDED_LEN }))
    }

    /// Writes it all and last the superblock; returns the blocks of the image.
    pub(crate) fn write(&self, file: &File, uuid: [u8; 16]) -> Result<u64, WriteError> {
        let mut out = Output::new(file, u64::from(self.xattr_block) * BLOCK_SIZE);
        out.bytes(&self.shared_bytes)?;
        let meta = u64::from(self.meta_block) * BLOCK_SIZE;
        let mut packed = Vec::new();
        for id in &self.order {
            let (inode, place) = (self.tree.inode(*id), &self.places[*id as usize]);
            out.pad_to(meta + place.nid * SLOT_LEN)?;
            self.header(*id, inode, place)?
                .0
                .append_to(self.build_time, &mut out.buffer);
            self.write_xattrs(inode, &mut out)?;
            if place.inline {
                self.pack(*id, inode, &mut packed);
                out.bytes(&packed[packed.len() / BLOCK * BLOCK..])?;
            }
        }
        out.pad_to(u64::from(self.dir_block) * BLOCK_SIZE)?;
        for id in &self.order {
            let (inode, place) = (self.tree.inode(*id), &self.places[*id as usize]);
            let in_blocks = if place.inline {
                place.size / BLOCK_SIZE
            } else {
                place.size
            };
            if in_blocks == 0 || matches!(inode.content, Content::File(_) | Content::Node(..)) {
                continue;
            }
            out.pad_to(u64::from(self.dir_block + place.block) * BLOCK_SIZE)?;
            self.pack(*id, inode, &mut packed);
            let end = if place.inline {
                packed.len() / BLOCK * BLOCK
            } else {
                packed.len()
            };
            out.bytes(&packed[..end])?;
        }
        out.pad_to(u64::from(self.end_block) * BLOCK_SIZE)?;
        out.flush()?;
        self.write_superblock(file, uuid)?;
        Ok(u64::from(self.end_block))
    }

    fn write_superblock(&self, file: &File, uuid: [u8; 16]) -> Result<(), WriteError> {
        let superblock = Superblock {
            // The root comes first, so its nid is small.
            root_nid: u16::try_from(self.places[ROOT as usize].nid).unwrap_or(0),
            inodes: self.inodes(),
            build_time: self.build_time,
            blocks: self.end_block,
            meta_blkaddr: self.meta_block,
            xattr_blkaddr: self.xattr_block,
            uuid,
        };
        // What it refers to must not reach the disk after it.
        file.sync_data().map_err(WriteError::io("sync"))?;
        file.write_all_at(&superblock.block(), 0)
            .map_err(WriteError::io("write superblock of"))
    }

    fn write_xattrs(&self, inode: &'a Inode, out: &mut Output<'_>) -> Result<(), WriteError> {
        if inode.attributes.xattrs.is_empty() {
            return Ok(());
        }
        let (ids, own) = self.split_xattrs(inode);
        let count = u8::try_from(ids.len()).unwrap_or(u8::MAX);
        let mut bytes = vec![0, 0, 0, 0, count, 0, 0, 0, 0, 0, 0, 0];
        ids.iter()
            .for_each(|id| bytes.extend_from_slice(&id.to_le_bytes()));
        own.iter().for_each(|xattr| xattr.append_to(&mut bytes));
        out.bytes(&bytes)
    }

    /// A directory's entries or a link's target, as stored.
    fn pack(&self, id: InodeId, inode: &Inode, packed: &mut Vec<u8>) {
        packed.clear();
        match &inode.content {
            Content::Symlink(target) => packed.extend_from_slice(target),
            Content::Directory(children) => {
                let mut packer = Packer::new(packed);
                for name in child_names(children) {
                    let (target, kind) = match (children.get(name), name) {
                        (Some(dentry), _) => (dentry.inode, self.tree.inode(dentry.inode).kind()),
                        (None, b".") => (id, EntryKind::Directory),
                        (None, _) => (self.places[id as usize].parent, EntryKind::Directory),
                    };
                    packer.push(name, self.places[target as usize].nid, kind);
                }
                packer.finish();
            }
            Content::File(_) | Content::Node(..) => {}
        }
    }
}

const BLOCK: usize = 4096;

fn block_number(block: u64) -> Result<u32, WriteError> {
    // One less than all: some readers add to it.
    u32::try_from(block)
        .ok()
        .filter(|block| *block < u32::MAX)
        .ok_or_else(too_many_blocks)
}

/// The inode's field for the length of its attributes.
fn xattr_icount(len: usize) -> Result<u16, WriteError> {
    if len == 0 {
        return Ok(0);
    }
    u16::try_from((len - XATTR_HEADER_LEN) / 4 + 1).map_err(|_| WriteError::XattrsTooLarge)
}

/// Sequential output from an offset on.
struct Output<'a> {
    file: &'a File,
    buffer: Vec<u8>,
    /// Where the buffer's first byte goes.
    offset: u64,
}

impl<'a> Output<'a> {
    fn new(file: &'a File, offset: u64) -> Self {
        Self {
            file,
            buffer: Vec::with_capacity(WRITE_LEN + BLOCK),
            offset,
        }
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= WRITE_LEN {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn pad_to(&mut self, offset: u64) -> Result<(), WriteError> {
        let gap = offset.saturating_sub(self.offset + self.buffer.len() as u64);
        // Gaps are always shorter than a block.
        self.buffer
            .resize(self.buffer.len() + usize::try_from(gap).unwrap_or(0), 0);
        if self.buffer.len() >= WRITE_LEN {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> Result<(), WriteError> {
        self.file
            .write_all_at(&self.buffer, self.offset)
            .map_err(WriteError::io("write metadata to"))?;
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}
