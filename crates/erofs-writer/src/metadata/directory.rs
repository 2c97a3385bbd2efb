//! Packing of a directory's entries into blocks.
//!
//! Each block is an array of fixed entries and behind it their names, so that
//! the first entry's name offset tells how many there are. Names are sorted
//! over the whole directory, `.` and `..` among them: the kernel searches them
//! by bisection.

use std::collections::BTreeMap;

use crate::{
    BLOCK_SIZE, EntryKind,
    ondisk::{DIRENT_LEN, dirent_type},
    tree::Dentry,
};

const BLOCK: usize = 4096;

/// All names of a directory in order, `.` and `..` included.
pub(super) fn child_names(children: &BTreeMap<Box<[u8]>, Dentry>) -> impl Iterator<Item = &[u8]> {
    let dots: [&[u8]; 2] = [b".", b".."];
    let mut dots = dots.into_iter().peekable();
    let mut names = children.keys().map(|name| &**name).peekable();
    std::iter::from_fn(move || match (dots.peek(), names.peek()) {
        (Some(dot), Some(name)) if name < dot => names.next(),
        (Some(_), _) => dots.next(),
        (None, _) => names.next(),
    })
}

/// Bytes the entries take: whole blocks, and what the last one uses.
pub(super) fn directory_size<'n>(names: impl Iterator<Item = &'n [u8]>) -> u64 {
    let (mut blocks, mut used) = (0, 0);
    for name in names {
        let need = DIRENT_LEN + name.len();
        if used + need > BLOCK {
            blocks += 1;
            used = 0;
        }
        used += need;
    }
    blocks * BLOCK_SIZE + used as u64
}

/// Appends entries block by block.
pub(super) struct Packer<'a> {
    out: &'a mut Vec<u8>,
    entries: Vec<(u64, u8)>,
    names: Vec<u8>,
    lengths: Vec<usize>,
}

impl<'a> Packer<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        Self {
            out,
            entries: Vec::new(),
            names: Vec::new(),
            lengths: Vec::new(),
        }
    }

    /// Adds an entry; names come in order.
    pub(super) fn push(&mut self, name: &[u8], nid: u64, kind: EntryKind) {
        let used = self.entries.len() * DIRENT_LEN + self.names.len();
        if used + DIRENT_LEN + name.len() > BLOCK {
            self.end_block();
            self.out.resize(self.out.len().next_multiple_of(BLOCK), 0);
        }
        self.entries.push((nid, dirent_type(kind)));
        self.lengths.push(name.len());
        self.names.extend_from_slice(name);
    }

    pub(super) fn finish(mut self) {
        self.end_block();
    }

    fn end_block(&mut self) {
        let mut name_offset = self.entries.len() * DIRENT_LEN;
        for ((nid, kind), name_len) in self.entries.drain(..).zip(self.lengths.drain(..)) {
            self.out.extend_from_slice(&nid.to_le_bytes());
            // Below the block size, as the entry would have begun a new block.
            let offset = u16::try_from(name_offset).unwrap_or(u16::MAX);
            self.out.extend_from_slice(&offset.to_le_bytes());
            self.out.extend_from_slice(&[kind, 0]);
            name_offset += name_len;
        }
        self.out.append(&mut self.names);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads entries back as the kernel does.
    fn unpack(bytes: &[u8]) -> Vec<(Vec<u8>, u64, u8)> {
        let mut entries = Vec::new();
        for block in bytes.chunks(BLOCK) {
            let word = |at: usize| usize::from(u16::from_le_bytes([block[at], block[at + 1]]));
            let count = word(8) / DIRENT_LEN;
            for index in 0..count {
                let at = index * DIRENT_LEN;
                let nid = u64::from_le_bytes(block[at..at + 8].try_into().unwrap());
                let start = word(at + 8);
                let end = if index + 1 < count {
                    word(at + DIRENT_LEN + 8)
                } else {
                    block.len()
                };
                let name = block[start..end].split(|byte| *byte == 0).next().unwrap();
                entries.push((name.to_vec(), nid, block[at + 10]));
            }
        }
        entries
    }

    proptest! {
        #[test]
        fn packed_entries_read_back_in_order(
            names in proptest::collection::btree_set("[!-~]{1,255}", 0..400)
        ) {
            let mut packed = Vec::new();
            let mut packer = Packer::new(&mut packed);
            for (nid, name) in names.iter().enumerate() {
                packer.push(name.as_bytes(), nid as u64, EntryKind::Fifo);
            }
            packer.finish();
            let size = directory_size(names.iter().map(String::as_bytes));
            prop_assert_eq!(packed.len() as u64, size);
            let expected: Vec<_> = names
                .iter()
                .enumerate()
                .map(|(nid, name)| (name.clone().into_bytes(), nid as u64, 5))
                .collect();
            prop_assert_eq!(unpack(&packed), expected);
        }
    }
}
