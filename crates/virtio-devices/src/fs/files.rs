//! Requests about opened files and directories.

use super::abi::{self, Body, ROOT_NODE};
use super::credentials::{as_user, killing_suid};
use super::host_file;
use super::names::mode_of;
use super::request::{CopyRange, Header, Name, Operation, Write};
use super::server::{Data, Reply, Server, check_type, check_writable};
use super::table::{Handle, Node};
use crate::guest_io;
use rustix::fs::{
    FallocateFlags, FileType, OFlags, RawDir, SeekFrom, copy_file_range, fallocate, fdatasync,
    fsync, seek,
};
use rustix::io::Errno;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::sync::Arc;

/// The handle of the root directory, which is no file.
const ROOT_HANDLE: u64 = 0;
/// Most bytes copied by one request, so that none takes long.
const MAX_COPY: u64 = 16 << 20;
/// Most bytes of directory entries in one answer.
const MAX_ENTRIES: usize = 64 << 10;
/// Flags of open(2) that go through to the host. O_APPEND does not: the driver
/// says with each write whether it appends. Neither does O_DIRECT: nothing is
/// cached in the guest, and the host's page cache is coherent.
const OPEN_FLAGS: OFlags = OFlags::RWMODE
    .union(OFlags::TRUNC)
    .union(OFlags::SYNC)
    .union(OFlags::DSYNC)
    .union(OFlags::NOATIME);

impl Server {
    pub(super) fn perform_on_files(
        &self,
        header: &Header,
        operation: &Operation<'_>,
        data: &Data<'_>,
    ) -> Result<Reply, Errno> {
        let done = Reply::Body(Vec::new());
        match *operation {
            Operation::Open { flags, open_flags } => {
                let node = self.node(header.node)?;
                let kill = open_flags & abi::OPEN_KILL_SUIDGID != 0;
                let file = self.open(&node, flags, kill)?;
                let handle = self.table().add_handle(file, node)?;
                Ok(opened(Body::default(), handle))
            }
            Operation::Create {
                name, flags, mode, ..
            } => self.create(header, name, flags, mode),
            Operation::Read { fh, offset, size } => {
                let handle = self.table().handle(fh)?;
                check_type(&handle.node, FileType::RegularFile)?;
                let mut room = data.room.clone();
                drop(room.split_off(usize::try_from(size).unwrap_or(usize::MAX)));
                let got = guest_io::read_at(handle.file.as_fd(), &room, offset);
                Ok(Reply::InPlace(got.map_err(|e| errno(&e))?))
            }
            Operation::Write(write) => self.write(&write, data),
            Operation::Release { fh } | Operation::ReleaseDir { fh } => {
                // Closed after the table's lock is gone: that may take a while.
                let handle = self.table().release(fh);
                drop(handle);
                Ok(done)
            }
            Operation::FSync { fh, data_only } | Operation::FSyncDir { fh, data_only } => {
                if fh == ROOT_HANDLE {
                    return Ok(done);
                }
                let handle = self.table().handle(fh)?;
                if data_only {
                    fdatasync(&handle.file)?;
                } else {
                    fsync(&handle.file)?;
                }
                Ok(done)
            }
            Operation::OpenDir { .. } => self.open_dir(header.node),
            Operation::ReadDir { fh, offset, size } => self.read_dir(fh, offset, size, data),
            Operation::FAllocate {
                fh,
                offset,
                len,
                mode,
            } => {
                let handle = self.changeable(fh)?;
                let mode = FallocateFlags::from_bits(mode).ok_or(Errno::OPNOTSUPP)?;
                fallocate(&handle.file, mode, offset, len)?;
                Ok(done)
            }
            Operation::LSeek { fh, offset, whence } => {
                let handle = self.table().handle(fh)?;
                check_type(&handle.node, FileType::RegularFile)?;
                let at = seek(&handle.file, seek_to(whence, offset)?)?;
                Ok(Body::default().u64(at).into())
            }
            Operation::CopyFileRange(range) => self.copy(&range),
            _ => Err(Errno::NOSYS),
        }
    }

    /// Opens a regular file as the driver asks.
    fn open(&self, node: &Node, flags: u32, kill_suid: bool) -> Result<File, Errno> {
        check_type(node, FileType::RegularFile)?;
        let flags = OFlags::from_bits_retain(flags) & OPEN_FLAGS;
        let access = flags & OFlags::RWMODE;
        if access == OFlags::RWMODE {
            return Err(Errno::INVAL);
        }
        if access != OFlags::RDONLY || flags.contains(OFlags::TRUNC) {
            check_writable(node)?;
        }
        self.table().check_handles()?;
        killing_suid(kill_suid, || self.descriptors.reopen(node.fd(), flags))
    }

    fn create(
        &self,
        header: &Header,
        name: Name<'_>,
        flags: u32,
        mode: u32,
    ) -> Result<Reply, Errno> {
        let dir = self.writable(header.node)?;
        self.table().check_handles()?;
        let asked = OFlags::from_bits_retain(flags);
        let wanted = asked & OPEN_FLAGS;
        if wanted & OFlags::RWMODE == OFlags::RWMODE {
            return Err(Errno::INVAL);
        }
        let made = as_user(header.uid, header.gid, || {
            host_file::create(dir.fd(), name, wanted, mode_of(mode))
        });
        let (file, node, attr) = match made {
            Ok(fd) => {
                let path = self.descriptors.reopen(fd.as_fd(), OFlags::PATH)?;
                let (node, attr) = self.remember(&dir, path.into())?;
                (File::from(fd), node, attr)
            }
            // The host was faster, and the guest takes what there is.
            Err(Errno::EXIST) if !asked.contains(OFlags::EXCL) => {
                let found = host_file::lookup(dir.fd(), name)?;
                let (node, attr) = self.remember(&dir, found)?;
                match self.open(&node, flags, false) {
                    Ok(file) => (file, node, attr),
                    Err(error) => {
                        // The driver hears nothing of this lookup.
                        self.table().forget(node.id, 1);
                        return Err(error);
                    }
                }
            }
            Err(error) => return Err(error),
        };
        let id = node.id;
        let handle = self.table().add_handle(file, node)?;
        Ok(opened(Body::default().entry(id, &attr), handle))
    }

    fn write(&self, write: &Write, data: &Data<'_>) -> Result<Reply, Errno> {
        let handle = self.changeable(write.fh)?;
        let mut sent = data.sent.clone();
        drop(sent.split_off(usize::try_from(write.size).unwrap_or(usize::MAX)));
        // Pages of a mapping have their place, whatever the file's flags.
        let mapped = write.write_flags & abi::WRITE_CACHE != 0;
        let append = !mapped && OFlags::from_bits_retain(write.flags).contains(OFlags::APPEND);
        let kill = write.write_flags & abi::WRITE_KILL_SUIDGID != 0;
        let written = killing_suid(kill, || {
            let file = handle.file.as_fd();
            guest_io::write_some(file, &sent, write.offset, append).map_err(|e| errno(&e))
        })?;
        let written = u32::try_from(written).unwrap_or(u32::MAX);
        Ok(Body::default().u32(written).u32(0).into())
    }

    /// An opened file whose contents may be changed.
    fn changeable(&self, fh: u64) -> Result<Arc<Handle>, Errno> {
        let handle = self.table().handle(fh)?;
        check_type(&handle.node, FileType::RegularFile)?;
        check_writable(&handle.node)?;
        Ok(handle)
    }

    fn copy(&self, range: &CopyRange) -> Result<Reply, Errno> {
        let from = self.table().handle(range.fh_in)?;
        check_type(&from.node, FileType::RegularFile)?;
        let to = self.changeable(range.fh_out)?;
        let len = usize::try_from(range.len.min(MAX_COPY)).unwrap_or(0);
        let (mut offset_in, mut offset_out) = (range.offset_in, range.offset_out);
        let (at_in, at_out) = (Some(&mut offset_in), Some(&mut offset_out));
        let copied = copy_file_range(&from.file, at_in, &to.file, at_out, len)?;
        let copied = u32::try_from(copied).unwrap_or(u32::MAX);
        Ok(Body::default().u32(copied).u32(0).into())
    }

    fn open_dir(&self, node: u64) -> Result<Reply, Errno> {
        if node == ROOT_NODE {
            return Ok(Body::default().u64(ROOT_HANDLE).u64(0).into());
        }
        let node = self.node(node)?;
        check_type(&node, FileType::Directory)?;
        self.table().check_handles()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let file = self.descriptors.reopen(node.fd(), flags)?;
        let handle = self.table().add_handle(file, node)?;
        Ok(Body::default().u64(handle).u64(0).into())
    }

    fn read_dir(&self, fh: u64, offset: u64, size: u32, data: &Data<'_>) -> Result<Reply, Errno> {
        let room = usize::try_from(size).unwrap_or(usize::MAX);
        let mut entries = Entries {
            bytes: Vec::new(),
            room: room.min(data.room.len()).min(MAX_ENTRIES),
        };
        if fh == ROOT_HANDLE {
            self.read_root(offset, &mut entries);
            return Ok(Reply::Body(entries.bytes));
        }
        let handle = self.table().handle(fh)?;
        check_type(&handle.node, FileType::Directory)?;
        seek(&handle.file, SeekFrom::Start(offset))?;
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let mut dir = RawDir::new(&handle.file, &mut buffer);
        while let Some(entry) = dir.next() {
            let entry = entry?;
            let ino = self.table().guest_ino(handle.node.dev(), entry.ino());
            let kind = kind_of(entry.file_type());
            let name = entry.file_name().to_bytes();
            if !entries.push(ino, entry.next_entry_cookie(), kind, name) {
                break;
            }
        }
        Ok(Reply::Body(entries.bytes))
    }

    /// The root lists the shares.
    fn read_root(&self, offset: u64, entries: &mut Entries) {
        let mut table = self.table();
        let mut at = usize::try_from(offset).unwrap_or(usize::MAX);
        loop {
            let (ino, kind, name) = match at {
                0 => (ROOT_NODE, FileType::Directory, ".".to_owned()),
                1 => (ROOT_NODE, FileType::Directory, "..".to_owned()),
                at => {
                    let Some((name, root)) = table.nth_share(at - 2) else {
                        return;
                    };
                    let (name, root) = (name.to_owned(), Arc::clone(root));
                    let ino = table.guest_ino(root.dev(), root.ino());
                    (ino, root.file_type, name)
                }
            };
            at += 1;
            if !entries.push(ino, at as u64, kind_of(kind), name.as_bytes()) {
                return;
            }
        }
    }
}

/// struct fuse_open_out behind what is there.
fn opened(body: Body, handle: u64) -> Reply {
    body.u64(handle).u32(abi::FOPEN_DIRECT_IO).u32(0).into()
}

/// Directory entries that have room.
struct Entries {
    bytes: Vec<u8>,
    room: usize,
}

impl Entries {
    /// Adds an entry; `false`: there is no room for it.
    fn push(&mut self, ino: u64, next: u64, kind: u32, name: &[u8]) -> bool {
        let len = (abi::DIRENT + name.len()).next_multiple_of(8);
        if self.bytes.len() + len > self.room {
            return false;
        }
        let end = self.bytes.len() + len;
        let name_len = u32::try_from(name.len()).unwrap_or(0);
        let mut body = Body(std::mem::take(&mut self.bytes))
            .u64(ino)
            .u64(next)
            .u32(name_len)
            .u32(kind)
            .0;
        body.extend_from_slice(name);
        body.resize(end, 0);
        self.bytes = body;
        true
    }
}

/// The type as in struct dirent.
fn kind_of(kind: FileType) -> u32 {
    match kind {
        FileType::Unknown => 0,
        kind => kind.as_raw_mode() >> 12,
    }
}

fn seek_to(whence: u32, offset: u64) -> Result<SeekFrom, Errno> {
    const SEEK_DATA: u32 = 3;
    const SEEK_HOLE: u32 = 4;
    match whence {
        SEEK_DATA => Ok(SeekFrom::Data(offset)),
        SEEK_HOLE => Ok(SeekFrom::Hole(offset)),
        _ => Err(Errno::INVAL),
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
