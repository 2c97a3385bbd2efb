//! Reads FUSE requests out of their bytes. Nothing is believed: every length,
//! name and flag is checked here, and what a request holds afterwards is safe to
//! hand on.

use super::abi::{self, Fields, opcode};
use rustix::io::Errno;

/// Longest name of a file (NAME_MAX).
const MAX_NAME: usize = 255;
/// Longest target of a symbolic link (PATH_MAX without the NUL).
const MAX_TARGET: usize = 4095;
/// Longest name and value of an extended attribute (XATTR_NAME_MAX,
/// XATTR_SIZE_MAX).
const MAX_XATTR_NAME: usize = 255;
const MAX_XATTR_VALUE: usize = 64 << 10;
/// Most bytes of a request, without the data of a WRITE.
pub(super) const MAX_REQUEST: usize = 128 << 10;
/// Bytes of a WRITE before its data.
pub(super) const WRITE_HEADER: usize = abi::IN_HEADER + 40;

/// struct fuse_in_header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) opcode: u32,
    pub(super) unique: u64,
    pub(super) node: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The thread that asks, by its number in the guest; zero for none.
    pub(super) pid: u32,
}

impl Header {
    /// The header, and what follows it.
    pub(super) fn parse(bytes: &[u8]) -> Option<(Header, Fields<'_>)> {
        let mut fields = Fields(bytes);
        let _len = fields.u32()?;
        let header = Header {
            opcode: fields.u32()?,
            unique: fields.u64()?,
            node: fields.u64()?,
            uid: fields.u32()?,
            gid: fields.u32()?,
            pid: fields.u32()?,
        };
        let _extensions = fields.u16()?;
        let _padding = fields.u16()?;
        Some((header, fields))
    }
}

/// A name in a directory: one component, not "." or "..", without '/' and NUL,
/// of 1 to 255 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, Errno> {
        if bytes.len() > MAX_NAME {
            return Err(Errno::NAMETOOLONG);
        }
        let refused = bytes.is_empty()
            || bytes == b"."
            || bytes == b".."
            || bytes.contains(&b'/')
            || bytes.contains(&0);
        if refused {
            return Err(Errno::INVAL);
        }
        Ok(Name(bytes))
    }

    pub(super) fn bytes(&self) -> &'a [u8] {
        self.0
    }
}

/// fuse_setattr_in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SetAttr {
    pub(super) valid: u32,
    pub(super) fh: u64,
    pub(super) size: u64,
    pub(super) atime: (u64, u32),
    pub(super) mtime: (u64, u32),
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// fuse_copy_file_range_in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CopyRange {
    pub(super) fh_in: u64,
    pub(super) offset_in: u64,
    pub(super) fh_out: u64,
    pub(super) offset_out: u64,
    pub(super) len: u64,
}

/// fuse_write_in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) fh: u64,
    pub(super) offset: u64,
    pub(super) size: u32,
    pub(super) write_flags: u32,
    /// As by open(2).
    pub(super) flags: u32,
}

/// What the driver asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Operation<'a> {
    Init {
        major: u32,
        minor: u32,
        flags: u64,
        max_readahead: u32,
    },
    Destroy,
    Lookup {
        name: Name<'a>,
    },
    /// Nodes and how many lookups of each are given back.
    Forget {
        nodes: Vec<(u64, u64)>,
    },
    GetAttr {
        fh: Option<u64>,
    },
    SetAttr(SetAttr),
    ReadLink,
    SymLink {
        name: Name<'a>,
        target: &'a [u8],
    },
    MkNod {
        name: Name<'a>,
        mode: u32,
        rdev: u32,
    },
    MkDir {
        name: Name<'a>,
        mode: u32,
    },
    Unlink {
        name: Name<'a>,
    },
    RmDir {
        name: Name<'a>,
    },
    Rename {
        name: Name<'a>,
        new_parent: u64,
        new_name: Name<'a>,
        flags: u32,
    },
    Link {
        node: u64,
        name: Name<'a>,
    },
    Open {
        flags: u32,
        open_flags: u32,
    },
    Create {
        name: Name<'a>,
        flags: u32,
        mode: u32,
        open_flags: u32,
    },
    Read {
        fh: u64,
        offset: u64,
        size: u32,
    },
    Write(Write),
    StatFs,
    Release {
        fh: u64,
    },
    FSync {
        fh: u64,
        data_only: bool,
    },
    SetXattr {
        name: &'a [u8],
        value: &'a [u8],
        flags: u32,
    },
    GetXattr {
        name: &'a [u8],
        size: u32,
    },
    ListXattr {
        size: u32,
    },
    RemoveXattr {
        name: &'a [u8],
    },
    OpenDir {
        flags: u32,
    },
    ReadDir {
        fh: u64,
        offset: u64,
        size: u32,
    },
    ReleaseDir {
        fh: u64,
    },
    FSyncDir {
        fh: u64,
        data_only: bool,
    },
    FAllocate {
        fh: u64,
        offset: u64,
        len: u64,
        mode: u32,
    },
    LSeek {
        fh: u64,
        offset: u64,
        whence: u32,
    },
    CopyFileRange(CopyRange),
    /// Has no answer and no effect: requests are short.
    Interrupt,
}

impl<'a> Operation<'a> {
    /// Reads what follows the header.
    ///
    /// # Errors
    /// NOSYS for an operation that is not served (the driver then does without),
    /// INVAL for one that is cut off, and what a name or value deserves.
    pub(super) fn parse(header: &Header, fields: Fields<'a>) -> Result<Self, Errno> {
        match header.opcode {
            opcode::LOOKUP
            | opcode::SYMLINK
            | opcode::MKNOD
            | opcode::MKDIR
            | opcode::UNLINK
            | opcode::RMDIR
            | opcode::RENAME
            | opcode::RENAME2
            | opcode::LINK
            | opcode::CREATE => by_name(header.opcode, fields),
            opcode::SETXATTR | opcode::GETXATTR | opcode::LISTXATTR | opcode::REMOVEXATTR => {
                xattr(header.opcode, fields)
            }
            opcode::FORGET | opcode::BATCH_FORGET => forget(header, fields).ok_or(Errno::INVAL),
            _ => by_node(header.opcode, fields).unwrap_or(Err(Errno::INVAL)),
        }
    }
}

fn name<'a>(fields: &mut Fields<'a>) -> Result<Name<'a>, Errno> {
    Name::new(fields.text().ok_or(Errno::INVAL)?)
}

/// Operations on names in a directory.
fn by_name(opcode: u32, mut fields: Fields<'_>) -> Result<Operation<'_>, Errno> {
    let f = &mut fields;
    let cut = Errno::INVAL;
    Ok(match opcode {
        opcode::LOOKUP => Operation::Lookup { name: name(f)? },
        opcode::UNLINK => Operation::Unlink { name: name(f)? },
        opcode::RMDIR => Operation::RmDir { name: name(f)? },
        opcode::SYMLINK => {
            let name = name(f)?;
            let target = f.text().ok_or(cut)?;
            if target.is_empty() {
                return Err(Errno::NOENT);
            }
            if target.len() > MAX_TARGET {
                return Err(Errno::NAMETOOLONG);
            }
            Operation::SymLink { name, target }
        }
        opcode::MKNOD => {
            let (mode, rdev) = (f.u32().ok_or(cut)?, f.u32().ok_or(cut)?);
            f.bytes(8).ok_or(cut)?;
            let name = name(f)?;
            Operation::MkNod { name, mode, rdev }
        }
        opcode::MKDIR => {
            let mode = f.u32().ok_or(cut)?;
            f.bytes(4).ok_or(cut)?;
            let name = name(f)?;
            Operation::MkDir { name, mode }
        }
        opcode::RENAME | opcode::RENAME2 => {
            let new_parent = f.u64().ok_or(cut)?;
            let mut flags = 0;
            if opcode == opcode::RENAME2 {
                flags = f.u32().ok_or(cut)?;
                f.bytes(4).ok_or(cut)?;
            }
            Operation::Rename {
                new_parent,
                flags,
                name: name(f)?,
                new_name: name(f)?,
            }
        }
        opcode::LINK => Operation::Link {
            node: f.u64().ok_or(cut)?,
            name: name(f)?,
        },
        _ => {
            let (flags, mode) = (f.u32().ok_or(cut)?, f.u32().ok_or(cut)?);
            f.bytes(4).ok_or(cut)?;
            Operation::Create {
                flags,
                mode,
                open_flags: f.u32().ok_or(cut)?,
                name: name(f)?,
            }
        }
    })
}

/// Operations on extended attributes.
fn xattr(opcode: u32, mut fields: Fields<'_>) -> Result<Operation<'_>, Errno> {
    let f = &mut fields;
    let cut = Errno::INVAL;
    let operation = match opcode {
        opcode::SETXATTR => {
            let (size, flags) = (f.u32().ok_or(cut)?, f.u32().ok_or(cut)?);
            let name = f.text().ok_or(cut)?;
            let size = usize::try_from(size).map_err(|_| Errno::TOOBIG)?;
            if size > MAX_XATTR_VALUE {
                return Err(Errno::TOOBIG);
            }
            let value = f.bytes(size).ok_or(cut)?;
            Operation::SetXattr { name, value, flags }
        }
        opcode::GETXATTR => {
            let size = f.u32().ok_or(cut)?;
            f.bytes(4).ok_or(cut)?;
            let name = f.text().ok_or(cut)?;
            Operation::GetXattr { name, size }
        }
        opcode::LISTXATTR => Operation::ListXattr {
            size: f.u32().ok_or(cut)?,
        },
        _ => Operation::RemoveXattr {
            name: f.text().ok_or(cut)?,
        },
    };
    match operation {
        Operation::SetXattr { name, .. }
        | Operation::GetXattr { name, .. }
        | Operation::RemoveXattr { name }
            if name.is_empty() || name.len() > MAX_XATTR_NAME =>
        {
            Err(Errno::RANGE)
        }
        operation => Ok(operation),
    }
}

/// FORGET and BATCH_FORGET. A count that promises more than there is is cut.
fn forget(header: &Header, mut fields: Fields<'_>) -> Option<Operation<'static>> {
    if header.opcode == opcode::FORGET {
        let nodes = vec![(header.node, fields.u64()?)];
        return Some(Operation::Forget { nodes });
    }
    let count = fields.u32()?;
    fields.u32()?;
    let nodes = (0..count)
        .map_while(|_| Some((fields.u64()?, fields.u64()?)))
        .collect();
    Some(Operation::Forget { nodes })
}

/// Everything else. The outer `None`: cut off.
fn by_node(opcode: u32, mut fields: Fields<'_>) -> Option<Result<Operation<'_>, Errno>> {
    let f = &mut fields;
    Some(Ok(match opcode {
        opcode::INIT => init(f)?,
        opcode::DESTROY => Operation::Destroy,
        opcode::INTERRUPT => Operation::Interrupt,
        opcode::READLINK => Operation::ReadLink,
        opcode::STATFS => Operation::StatFs,
        opcode::GETATTR => {
            let flags = f.u32()?;
            f.u32()?;
            let fh = f.u64()?;
            Operation::GetAttr {
                fh: (flags & abi::GETATTR_FH != 0).then_some(fh),
            }
        }
        opcode::SETATTR => Operation::SetAttr(set_attr(f)?),
        opcode::OPEN => Operation::Open {
            flags: f.u32()?,
            open_flags: f.u32()?,
        },
        opcode::OPENDIR => Operation::OpenDir { flags: f.u32()? },
        opcode::READ | opcode::READDIR => {
            let (fh, offset, size) = (f.u64()?, f.u64()?, f.u32()?.min(abi::MAX_WRITE));
            if opcode == opcode::READ {
                Operation::Read { fh, offset, size }
            } else {
                Operation::ReadDir { fh, offset, size }
            }
        }
        opcode::WRITE => {
            let (fh, offset, size, write_flags) = (f.u64()?, f.u64()?, f.u32()?, f.u32()?);
            let _lock_owner = f.u64()?;
            Operation::Write(Write {
                fh,
                offset,
                size,
                write_flags,
                flags: f.u32()?,
            })
        }
        opcode::RELEASE => Operation::Release { fh: f.u64()? },
        opcode::RELEASEDIR => Operation::ReleaseDir { fh: f.u64()? },
        opcode::FSYNC | opcode::FSYNCDIR => {
            let fh = f.u64()?;
            let data_only = f.u32()? & abi::FSYNC_FDATASYNC != 0;
            if opcode == opcode::FSYNC {
                Operation::FSync { fh, data_only }
            } else {
                Operation::FSyncDir { fh, data_only }
            }
        }
        opcode::FALLOCATE => Operation::FAllocate {
            fh: f.u64()?,
            offset: f.u64()?,
            len: f.u64()?,
            mode: f.u32()?,
        },
        opcode::LSEEK => Operation::LSeek {
            fh: f.u64()?,
            offset: f.u64()?,
            whence: f.u32()?,
        },
        opcode::COPY_FILE_RANGE => copy_range(f)?,
        _ => return Some(Err(Errno::NOSYS)),
    }))
}

fn init(f: &mut Fields<'_>) -> Option<Operation<'static>> {
    let (major, minor, max_readahead) = (f.u32()?, f.u32()?, f.u32()?);
    let low = u64::from(f.u32()?);
    // A driver older than 7.36 sends no more.
    let high = u64::from(f.u32().unwrap_or(0));
    Some(Operation::Init {
        major,
        minor,
        max_readahead,
        flags: low | high << 32,
    })
}

fn set_attr(f: &mut Fields<'_>) -> Option<SetAttr> {
    let valid = f.u32()?;
    f.u32()?;
    let (fh, size) = (f.u64()?, f.u64()?);
    let _lock_owner = f.u64()?;
    let (atime, mtime, _ctime) = (f.u64()?, f.u64()?, f.u64()?);
    let (atime_ns, mtime_ns, _ctime_ns) = (f.u32()?, f.u32()?, f.u32()?);
    let mode = f.u32()?;
    f.u32()?;
    Some(SetAttr {
        valid,
        fh,
        size,
        atime: (atime, atime_ns),
        mtime: (mtime, mtime_ns),
        mode,
        uid: f.u32()?,
        gid: f.u32()?,
    })
}

fn copy_range(f: &mut Fields<'_>) -> Option<Operation<'static>> {
    let (fh_in, offset_in) = (f.u64()?, f.u64()?);
    let _node_out = f.u64()?;
    Some(Operation::CopyFileRange(CopyRange {
        fh_in,
        offset_in,
        fh_out: f.u64()?,
        offset_out: f.u64()?,
        len: f.u64()?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(opcode: u32) -> Header {
        Header {
            opcode,
            unique: 1,
            node: 1,
            uid: 0,
            gid: 0,
            pid: 1,
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"/etc", b"../x", b"a\0"] {
            assert_eq!(Name::new(bad), Err(Errno::INVAL), "{bad:?}");
        }
        assert_eq!(Name::new(&[b'a'; 256]), Err(Errno::NAMETOOLONG));
        for good in [&b"a"[..], b"...", b"..data", b"a b", &[0xff; 255]] {
            assert!(Name::new(good).is_ok());
        }
    }

    #[test]
    fn both_names_of_a_rename_are_checked() {
        let rename = |names: &[u8]| {
            let mut bytes = 7u64.to_le_bytes().to_vec();
            bytes.extend(names);
            let parsed = Operation::parse(&header(opcode::RENAME), Fields(&bytes));
            parsed.map(|operation| format!("{operation:?}"))
        };
        assert!(rename(b"a\0b\0").is_ok());
        assert_eq!(rename(b"a\0..\0"), Err(Errno::INVAL));
        assert_eq!(rename(b"../a\0b\0"), Err(Errno::INVAL));
        assert_eq!(rename(b"a\0b"), Err(Errno::INVAL));
    }

    #[test]
    fn unknown_operations_are_not_served() {
        for opcode in [0, 31, 36 + 1, 48, 99, u32::MAX] {
            let parsed = Operation::parse(&header(opcode), Fields(&[0; 256]));
            assert_eq!(parsed, Err(Errno::NOSYS), "{opcode}");
        }
    }

    #[test]
    fn batch_forget_believes_no_count() {
        let mut bytes = u32::MAX.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend([1; 40]);
        let parsed = Operation::parse(&header(opcode::BATCH_FORGET), Fields(&bytes));
        let Ok(Operation::Forget { nodes }) = parsed else {
            panic!("{parsed:?}");
        };
        assert_eq!(nodes.len(), 2);
    }

    proptest! {
        #[test]
        fn whatever_is_parsed_is_within_its_limits(
            opcode in 0..60u32,
            bytes in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            match Operation::parse(&header(opcode), Fields(&bytes)) {
                Ok(Operation::Lookup { name } | Operation::Create { name, .. }) => {
                    prop_assert!(Name::new(name.bytes()).is_ok());
                }
                Ok(Operation::Read { size, .. } | Operation::ReadDir { size, .. }) => {
                    prop_assert!(size <= abi::MAX_WRITE);
                }
                Ok(Operation::Forget { nodes }) => prop_assert!(nodes.len() <= bytes.len() / 8),
                _ => {}
            }
        }
    }
}
