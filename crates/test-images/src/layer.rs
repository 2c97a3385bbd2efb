//! One layer: a tar archive put together member by member.

use std::io;
use tar::{Builder, EntryType, Header};

/// A layer under construction. Members come out in the order they were added,
/// with fixed owners and times, so that equal layers have equal digests.
pub struct Layer(Builder<Vec<u8>>);

impl Default for Layer {
    fn default() -> Self {
        Self(Builder::new(Vec::new()))
    }
}

impl Layer {
    fn member(
        mut self,
        path: &str,
        kind: EntryType,
        mode: u32,
        link: Option<&str>,
        content: &[u8],
    ) -> io::Result<Self> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        match link {
            Some(target) => self.0.append_link(&mut header, path, target)?,
            None => self.0.append_data(&mut header, path, content)?,
        }
        Ok(self)
    }

    /// Adds a directory.
    pub fn dir(self, path: &str, mode: u32) -> io::Result<Self> {
        self.member(path, EntryType::Directory, mode, None, &[])
    }

    /// Adds a regular file.
    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> io::Result<Self> {
        self.member(path, EntryType::Regular, mode, None, content)
    }

    /// Adds a symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> io::Result<Self> {
        self.member(path, EntryType::Symlink, 0o777, Some(target), &[])
    }

    /// Adds a hard link to an earlier member.
    pub fn hard_link(self, path: &str, target: &str) -> io::Result<Self> {
        self.member(path, EntryType::Link, 0o755, Some(target), &[])
    }

    /// The tar archive's bytes.
    pub fn into_bytes(self) -> io::Result<Vec<u8>> {
        self.0.into_inner()
    }
}
