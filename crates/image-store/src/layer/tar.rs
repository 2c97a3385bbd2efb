//! A strict, streaming reader of tar archives: v7, ustar, GNU and PAX.
//!
//! It reads what Go's `archive/tar` reads, since that is what containerd and
//! docker unpack with: PAX records over header fields, GNU long names over
//! both, no size for types that have no contents, global PAX headers skipped.
//! Nothing of an archive is trusted: every length has a limit before it is
//! read, and no arithmetic can overflow.

mod header;
mod pax;

use std::io::{self, BufRead};

use super::sparse::{self, Segment, SparseError};
use header::RawHeader;
use pax::Records;

pub(super) use pax::decimal;

pub(super) const BLOCK: usize = 512;
/// The most that a PAX header or a long name may take, as in Go.
const MAX_SPECIAL_LEN: u64 = 1 << 20;
/// The longest path or link target, as in Linux.
const MAX_PATH_LEN: usize = 4096;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream below failed: I/O, decompression, a limit.
    #[error("the archive cannot be read")]
    Read(#[source] io::Error),
    /// It ends within a member.
    #[error("the archive ends in the middle of a member")]
    Truncated,
    /// A block where a header should be that is none.
    #[error("the archive is damaged: a header's checksum does not match")]
    Checksum,
    /// A number that is none, or out of range.
    #[error("the header's field {field} is not a number in range")]
    Number {
        /// The field's name.
        field: &'static str,
    },
    /// A PAX extended header that does not follow its grammar.
    #[error("the PAX extended header is malformed")]
    Pax,
    /// A long name or PAX header beyond its limit.
    #[error("an extended header of {len} bytes is over the limit of {limit}")]
    SpecialTooLong {
        /// Its length.
        len: u64,
        /// The limit.
        limit: u64,
    },
    /// A path or link target that Linux could not use.
    #[error("a path is longer than {MAX_PATH_LEN} bytes or has a zero byte in it")]
    Path,
    /// A member of a kind images do not have.
    #[error("members of type {type_flag:?} are not supported")]
    Type {
        /// The type flag.
        type_flag: char,
    },
    /// A sparse member whose map makes no sense.
    #[error("the sparse member cannot be read")]
    Sparse(#[source] SparseError),
    /// Data after the end-of-archive mark.
    #[error("there is data behind the end of the archive")]
    TrailingData,
}

/// What kind of file a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemberKind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One member's header, all extensions applied.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: MemberKind,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: (i64, u32),
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Length of the file that comes out.
    pub(crate) size: u64,
    /// Where its stored bytes belong, if not simply one after another.
    pub(crate) sparse: Option<Vec<Segment>>,
}

/// Reads members one by one; a member's data is read, or skipped, before the
/// next one.
pub(crate) struct TarReader<R> {
    input: R,
    /// Bytes of the current member not yet read, and of its padding.
    data_left: u64,
    padding_left: u64,
}

/// What extension headers said about the member that follows them.
#[derive(Default)]
struct Extensions {
    pax: Option<Records>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: BufRead> TarReader<R> {
    pub(crate) fn new(input: R) -> Self {
        Self {
            input,
            data_left: 0,
            padding_left: 0,
        }
    }

    /// The next member, or `None` at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Member>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_rest()?;
            let Some(block) = self.read_header_block()? else {
                return Ok(None);
            };
            let header = RawHeader::parse(&block)?;
            match header.type_flag() {
                b'x' => {
                    let bytes = self.read_special(&header)?;
                    extensions.pax = Some(Records::parse(&bytes).ok_or(TarError::Pax)?);
                }
                b'g' => self.begin_data(header.size()?),
                b'L' => extensions.name = Some(until_zero(self.read_special(&header)?)),
                b'K' => extensions.link = Some(until_zero(self.read_special(&header)?)),
                _ => return self.member(&header, extensions).map(Some),
            }
        }
    }

    /// The next part of the member's stored data; empty at its end. Follow with
    /// [`TarReader::consume`].
    pub(crate) fn fill_data(&mut self) -> Result<&[u8], TarError> {
        if self.data_left == 0 {
            return Ok(&[]);
        }
        let bytes = loop {
            match self.input.fill_buf() {
                // The borrow checker wants the buffer fetched once more below.
                Ok(_) => break self.input.fill_buf().map_err(TarError::Read)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TarError::Read(error)),
            }
        };
        if bytes.is_empty() {
            return Err(TarError::Truncated);
        }
        let len = usize::try_from(self.data_left).map_or(bytes.len(), |n| n.min(bytes.len()));
        Ok(&bytes[..len])
    }

    /// Marks bytes of [`TarReader::fill_data`] as read.
    pub(crate) fn consume(&mut self, len: usize) {
        self.data_left -= len as u64;
        self.input.consume(len);
    }

    /// Reads on to the end of the stream; only zeros may be left.
    pub(crate) fn finish(mut self) -> Result<R, TarError> {
        loop {
            let bytes = self.input.fill_buf().map_err(TarError::Read)?;
            if bytes.is_empty() {
                return Ok(self.input);
            }
            if bytes.iter().any(|byte| *byte != 0) {
                return Err(TarError::TrailingData);
            }
            let len = bytes.len();
            self.input.consume(len);
        }
    }

    fn begin_data(&mut self, len: u64) {
        self.data_left = len;
        self.padding_left = len.wrapping_neg() % BLOCK as u64;
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        loop {
            let len = self.fill_data()?.len();
            if len == 0 {
                break;
            }
            self.consume(len);
        }
        self.data_left = std::mem::take(&mut self.padding_left);
        while self.data_left > 0 {
            let len = self.fill_data()?.len();
            self.consume(len);
        }
        Ok(())
    }

    /// A header's block; `None` at the end mark or where the stream ends
    /// between two members, which archives without the mark do.
    fn read_header_block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            match self.input.read(&mut block[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(TarError::Truncated),
                Ok(len) => have += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TarError::Read(error)),
            }
        }
        Ok((block != [0; BLOCK]).then_some(block))
    }

    fn read_special(&mut self, header: &RawHeader<'_>) -> Result<Vec<u8>, TarError> {
        let len = header.size()?;
        if len > MAX_SPECIAL_LEN {
            return Err(TarError::SpecialTooLong {
                len,
                limit: MAX_SPECIAL_LEN,
            });
        }
        self.begin_data(len);
        let mut bytes = Vec::new();
        loop {
            let part = self.fill_data()?;
            if part.is_empty() {
                return Ok(bytes);
            }
            bytes.extend_from_slice(part);
            let len = part.len();
            self.consume(len);
        }
    }

    fn member(
        &mut self,
        header: &RawHeader<'_>,
        extensions: Extensions,
    ) -> Result<Member, TarError> {
        let pax = extensions.pax.unwrap_or_default();
        let path = extensions
            .name
            .or_else(|| pax.get("path"))
            .unwrap_or_else(|| header.path());
        let link = extensions
            .link
            .or_else(|| pax.get("linkpath"))
            .unwrap_or_else(|| header.link().to_vec());
        let kind = member_kind(header.type_flag(), &path)?;
        let stored = match pax.number("size")? {
            Some(size) => size,
            None => header.size()?,
        };
        let stored = if kind == MemberKind::File { stored } else { 0 };
        let mut member = Member {
            path,
            link,
            kind,
            mode: header.mode()?,
            uid: pax.number("uid")?.map_or_else(|| header.uid(), Ok)?,
            gid: pax.number("gid")?.map_or_else(|| header.gid(), Ok)?,
            mtime: pax
                .time("mtime")?
                .map_or_else(|| header.mtime().map(|s| (s, 0)), Ok)?,
            device: match kind {
                MemberKind::CharDevice | MemberKind::BlockDevice => header.device()?,
                _ => (0, 0),
            },
            xattrs: pax.xattrs(),
            size: stored,
            sparse: None,
        };
        self.begin_data(stored);
        if kind == MemberKind::File {
            self.apply_sparse(header, &pax, &mut member)?;
        }
        for path in [&member.path, &member.link] {
            if path.len() > MAX_PATH_LEN || path.contains(&0) {
                return Err(TarError::Path);
            }
        }
        Ok(member)
    }

    /// Finds a sparse member's map, in whichever of its four places it is.
    fn apply_sparse(
        &mut self,
        header: &RawHeader<'_>,
        pax: &Records,
        member: &mut Member,
    ) -> Result<(), TarError> {
        let (segments, size) = if header.type_flag() == b'S' {
            let mut numbers = header.sparse_numbers()?;
            let mut more = header.sparse_is_extended();
            while more {
                // Such blocks stand between the header and the data.
                let Some(block) = self.read_header_block()? else {
                    return Err(TarError::Truncated);
                };
                more = header::append_extended_sparse(&block, &mut numbers)?;
                sparse::check_count(numbers.len() / 2).map_err(TarError::Sparse)?;
            }
            (numbers, header.sparse_size()?)
        } else if let Some(map) = pax.sparse()? {
            if let Some(name) = map.name {
                member.path = name;
            }
            let numbers = match map.numbers {
                Some(numbers) => numbers,
                None => self.read_sparse_map()?,
            };
            (numbers, map.size)
        } else {
            return Ok(());
        };
        let segments =
            sparse::segments(&segments, size, self.data_left).map_err(TarError::Sparse)?;
        member.size = size;
        member.sparse = Some(segments);
        Ok(())
    }

    /// The map of PAX format 1.0: decimal lines before the data, padded to a block.
    fn read_sparse_map(&mut self) -> Result<Vec<u64>, TarError> {
        let mut parser = sparse::MapParser::default();
        loop {
            if self.data_left < BLOCK as u64 {
                return Err(TarError::Sparse(SparseError::Map));
            }
            let Some(block) = self.read_block_of_data()? else {
                return Err(TarError::Truncated);
            };
            if parser.push(&block).map_err(TarError::Sparse)? {
                return Ok(parser.into_numbers());
            }
        }
    }

    fn read_block_of_data(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            let part = self.fill_data()?;
            let len = part.len().min(BLOCK - have);
            if len == 0 {
                return Ok(None);
            }
            block[have..have + len].copy_from_slice(&part[..len]);
            have += len;
            self.consume(len);
        }
        Ok(Some(block))
    }
}

fn member_kind(type_flag: u8, path: &[u8]) -> Result<MemberKind, TarError> {
    Ok(match type_flag {
        // Before POSIX a directory was a file whose name ends in a slash.
        0 if path.ends_with(b"/") => MemberKind::Directory,
        0 | b'0' | b'7' | b'S' => MemberKind::File,
        b'1' => MemberKind::HardLink,
        b'2' => MemberKind::Symlink,
        b'3' => MemberKind::CharDevice,
        b'4' => MemberKind::BlockDevice,
        b'5' => MemberKind::Directory,
        b'6' => MemberKind::Fifo,
        other => {
            return Err(TarError::Type {
                type_flag: char::from(other),
            });
        }
    })
}

fn until_zero(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

#[cfg(test)]
mod tests;
