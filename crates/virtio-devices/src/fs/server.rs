//! Answers FUSE requests. Each is done at once, on the device's thread.

use super::abi::{self, Attr, Body, ROOT_NODE, init};
use super::credentials;
use super::host_file::{Descriptors, Status};
use super::request::{Header, Operation};
use super::table::{Node, Table};
use crate::chain::Buffers;
use rustix::fs::FileType;
use rustix::io::Errno;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Of what the driver offers, what is used. No cache of names or attributes is
/// ever granted, and data is read and written past the guest's page cache, which
/// only mappings use: host and guests see each other's changes at once.
const FEATURES: u64 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::AUTO_INVAL_DATA
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::MAX_PAGES
    | init::HANDLE_KILLPRIV_V2
    | init::INIT_EXT
    | init::DIRECT_IO_ALLOW_MMAP
    // Users are named in requests that make files only, where they are used.
    | init::ALLOW_IDMAP;

/// What a request brought beside its fields, and where its data goes.
pub(super) struct Data<'a> {
    /// What a WRITE writes.
    pub(super) sent: Buffers<'a>,
    /// Room for a reply after its header.
    pub(super) room: Buffers<'a>,
}

/// How a request is answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// Not at all.
    None,
    /// By these bytes after the header.
    Body(Vec<u8>),
    /// By as many bytes that are in their place already.
    InPlace(usize),
}

impl From<Body> for Reply {
    fn from(body: Body) -> Self {
        Reply::Body(body.0)
    }
}

/// The file system that the shares make up.
#[derive(Debug)]
pub(super) struct Server {
    table: Arc<Mutex<Table>>,
    pub(super) descriptors: Descriptors,
}

impl Server {
    pub(super) fn new(table: Arc<Mutex<Table>>) -> Result<Self, Errno> {
        Ok(Server {
            table,
            descriptors: Descriptors::open()?,
        })
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        // Every change to the table leaves it whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what a request asks for.
    pub(super) fn perform(
        &self,
        header: &Header,
        operation: &Operation<'_>,
        data: &Data<'_>,
    ) -> Result<Reply, Errno> {
        credentials::prepare_thread()?;
        let node = header.node;
        match operation {
            Operation::Init { .. } => self.init(operation),
            Operation::Destroy => {
                self.table().forget_all();
                Ok(Reply::Body(Vec::new()))
            }
            Operation::Interrupt => Ok(Reply::None),
            Operation::Forget { nodes } => {
                let mut table = self.table();
                for (node, lookups) in nodes {
                    table.forget(*node, *lookups);
                }
                Ok(Reply::None)
            }
            Operation::GetAttr { fh } => self.get_attr(node, *fh),
            Operation::SetAttr(change) => self.set_attr(node, change),
            Operation::StatFs => self.stat_fs(node),
            Operation::SetXattr { name, value, flags } => self.set_xattr(node, name, value, *flags),
            Operation::GetXattr { name, size } => self.get_xattr(node, name, *size),
            Operation::ListXattr { size } => self.list_xattr(node, *size),
            Operation::RemoveXattr { name } => self.remove_xattr(node, name),
            Operation::Lookup { .. }
            | Operation::ReadLink
            | Operation::SymLink { .. }
            | Operation::MkNod { .. }
            | Operation::MkDir { .. }
            | Operation::Unlink { .. }
            | Operation::RmDir { .. }
            | Operation::Rename { .. }
            | Operation::Link { .. } => self.perform_on_names(header, operation),
            _ => self.perform_on_files(header, operation, data),
        }
    }

    fn init(&self, operation: &Operation<'_>) -> Result<Reply, Errno> {
        let Operation::Init {
            major,
            minor,
            flags,
            max_readahead,
        } = operation
        else {
            return Err(Errno::INVAL);
        };
        let answer = Body::default().u32(abi::MAJOR);
        if *major > abi::MAJOR {
            // The driver asks again, by this version.
            return Ok(answer.u32(abi::MINOR).zeroes(56).into());
        }
        if *major < abi::MAJOR || *minor < abi::MIN_MINOR {
            return Err(Errno::PROTO);
        }
        // A driver that was bound anew did not say goodbye.
        self.table().forget_all();
        let flags = flags & FEATURES;
        let low = u32::try_from(flags & u64::from(u32::MAX)).unwrap_or(0);
        let high = u32::try_from(flags >> 32).unwrap_or(0);
        Ok(answer
            .u32(abi::MINOR.min(*minor))
            .u32(*max_readahead)
            .u32(low)
            // max_background and congestion_threshold: the driver's own.
            .u32(0)
            .u32(abi::MAX_WRITE)
            // Time stamps have nanoseconds.
            .u32(1)
            .u16(abi::MAX_PAGES)
            .u16(0)
            .u32(high)
            .zeroes(28)
            .into())
    }

    /// A node that is not the root of all.
    pub(super) fn node(&self, id: u64) -> Result<Arc<Node>, Errno> {
        self.table().node(id)
    }

    /// A node that may be changed.
    pub(super) fn writable(&self, id: u64) -> Result<Arc<Node>, Errno> {
        if id == ROOT_NODE {
            return Err(Errno::ROFS);
        }
        let node = self.node(id)?;
        check_writable(&node)?;
        Ok(node)
    }

    /// What the guest sees of a file.
    pub(super) fn guest_attr(&self, status: &Status) -> Attr {
        let ino = self.table().guest_ino(status.key.dev, status.key.ino);
        Attr { ino, ..status.attr }
    }
}

/// Refuses changes where the share is read-only.
pub(super) fn check_writable(node: &Node) -> Result<(), Errno> {
    if node.is_writable() {
        Ok(())
    } else {
        Err(Errno::ROFS)
    }
}

/// Refuses to open what is a device, pipe or socket of the host: the guest's
/// kernel makes its own of these and never asks.
pub(super) fn check_type(node: &Node, wanted: FileType) -> Result<(), Errno> {
    match (node.file_type, wanted) {
        (found, wanted) if found == wanted => Ok(()),
        (FileType::Directory, _) => Err(Errno::ISDIR),
        (FileType::Symlink, _) => Err(Errno::LOOP),
        (_, FileType::Directory) => Err(Errno::NOTDIR),
        _ => Err(Errno::NXIO),
    }
}
