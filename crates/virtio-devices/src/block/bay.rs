//! The files in a bay, and the handle by which they come and go.

use super::extent::{AddressSpace, Extent};
use rustix::fs::{FileType, OFlags};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// Bytes in a bay's address space (16 TiB). It costs neither host nor guest
/// anything: Linux keeps no table by capacity.
pub(super) const CAPACITY: u64 = 16 << 40;

/// Why a file could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum BayError {
    /// An extent of this name is there already.
    #[error("the bay has an extent named {0:?} already")]
    NameTaken(String),
    /// No extent has this name.
    #[error("the bay has no extent named {0:?}")]
    NoSuchExtent(String),
    /// The descriptor is neither a regular file nor a block device.
    #[error("{0:?} is neither a regular file nor a block device")]
    NotADisk(String),
    /// There is nothing to attach.
    #[error("{0:?} is empty")]
    Empty(String),
    /// The descriptor cannot be read.
    #[error("{0:?} is not open for reading")]
    NotReadable(String),
    /// The bay is writable and the descriptor is not.
    #[error("{0:?} is not open for writing, which this bay needs")]
    NotWritable(String),
    /// The address space has no gap of that size.
    #[error("the bay has no room for the {length} bytes of {name:?}; detach something first")]
    Full {
        /// The extent asked for.
        name: String,
        /// Its size in bytes.
        length: u64,
    },
    /// The host refused to tell about the file.
    #[error("the size or state of {name:?} cannot be read")]
    Inspect {
        /// The extent asked for.
        name: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// An extent and its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedExtent {
    /// The name given to [`BayHandle::attach`].
    pub name: String,
    /// Where it lies.
    pub extent: Extent,
}

/// Attaches files to a bay and takes them away, from any thread.
#[derive(Clone, Debug)]
pub struct BayHandle {
    pub(super) bay: Arc<Bay>,
}

impl BayHandle {
    /// Gives `file` the first free range of addresses that holds it (at a
    /// multiple of 1 MiB, its length rounded up to 4096). The guest reads
    /// zeroes between the file's end and the extent's.
    ///
    /// # Errors
    /// If the name is taken, the bay is full, or `file` is no regular file or
    /// block device, is empty, or is not open for what the bay needs.
    pub fn attach(&self, name: &str, file: File) -> Result<Extent, BayError> {
        let (size, is_block_device) = self.inspect(name, &file)?;
        let mut table = self.bay.table();
        if table.iter().any(|(_, entry)| entry.name == name) {
            return Err(BayError::NameTaken(name.to_owned()));
        }
        let entry = Entry {
            name: name.to_owned(),
            backing: Arc::new(Backing {
                gate: RwLock::new(Some(file)),
                size,
                fixed_size: is_block_device,
                dirty: AtomicBool::new(false),
            }),
        };
        table.insert(size, entry).ok_or_else(|| BayError::Full {
            name: name.to_owned(),
            length: size,
        })
    }

    /// Takes an extent away, after the requests on it that are under way.
    /// Nothing is flushed: what the guest wrote and did not flush is in the
    /// host's page cache. From now on its addresses answer an I/O error, and
    /// the next file may get them.
    ///
    /// # Errors
    /// If there is no extent of that name.
    pub fn detach(&self, name: &str) -> Result<(), BayError> {
        let mut table = self.bay.table();
        let offset = table
            .iter()
            .find(|(_, entry)| entry.name == name)
            .map(|(extent, _)| extent.offset);
        let entry = offset
            .and_then(|offset| table.remove(offset))
            .ok_or_else(|| BayError::NoSuchExtent(name.to_owned()))?;
        drop(table);
        // Waits for requests inside the gate. One that found the extent before
        // and is not inside yet finds no file there.
        let file = entry
            .backing
            .gate
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(file);
        Ok(())
    }

    /// What is attached, by address.
    pub fn extents(&self) -> Vec<NamedExtent> {
        self.bay
            .table()
            .iter()
            .map(|(extent, entry)| NamedExtent {
                name: entry.name.clone(),
                extent,
            })
            .collect()
    }

    /// Checks that `file` fits the bay; its size in bytes and whether it is a
    /// block device.
    fn inspect(&self, name: &str, file: &File) -> Result<(u64, bool), BayError> {
        let failed = |source: io::Error| BayError::Inspect {
            name: name.to_owned(),
            source,
        };
        let stat = rustix::fs::fstat(file).map_err(|e| failed(e.into()))?;
        let is_block_device = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => false,
            FileType::BlockDevice => true,
            _ => return Err(BayError::NotADisk(name.to_owned())),
        };
        let flags = rustix::fs::fcntl_getfl(file).map_err(|e| failed(e.into()))?;
        let access = flags & OFlags::RWMODE;
        if access == OFlags::WRONLY || flags.contains(OFlags::PATH) {
            return Err(BayError::NotReadable(name.to_owned()));
        }
        if !self.bay.read_only && access != OFlags::RDWR {
            return Err(BayError::NotWritable(name.to_owned()));
        }
        // Metadata has no size for a block device; its end is what both have.
        let size = (&*file).seek(SeekFrom::End(0)).map_err(failed)?;
        if size == 0 {
            return Err(BayError::Empty(name.to_owned()));
        }
        Ok((size, is_block_device))
    }
}

/// What the handles and the device share.
#[derive(Debug)]
pub(super) struct Bay {
    pub(super) read_only: bool,
    table: Mutex<AddressSpace<Entry>>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    backing: Arc<Backing>,
}

impl Bay {
    pub(super) fn new(read_only: bool) -> Self {
        Bay {
            read_only,
            table: Mutex::new(AddressSpace::new(CAPACITY)),
        }
    }

    /// The file behind all of `length` bytes at `offset`, and the offset in it.
    pub(super) fn find(&self, offset: u64, length: u64) -> Option<(Arc<Backing>, u64)> {
        let table = self.table();
        let (extent, entry) = table.find(offset, length)?;
        Some((Arc::clone(&entry.backing), offset - extent.offset))
    }

    /// The files that were written to since they were last flushed.
    pub(super) fn dirty(&self) -> Vec<Arc<Backing>> {
        self.table()
            .iter()
            .filter(|(_, entry)| entry.backing.dirty.load(Ordering::Acquire))
            .map(|(_, entry)| Arc::clone(&entry.backing))
            .collect()
    }

    fn table(&self) -> MutexGuard<'_, AddressSpace<Entry>> {
        // Every change to the table is one call: it is whole after a panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file in a bay.
#[derive(Debug)]
pub(super) struct Backing {
    /// `None` once detached. Held for reading during I/O.
    gate: RwLock<Option<File>>,
    /// Bytes in the file when it was attached.
    pub(super) size: u64,
    /// The file cannot grow into the rest of its extent.
    fixed_size: bool,
    /// Written to since the last flush.
    dirty: AtomicBool,
}

impl Backing {
    #[cfg(test)]
    pub(super) fn for_test(file: File) -> Self {
        Backing {
            gate: RwLock::new(Some(file)),
            size: 4096,
            fixed_size: false,
            dirty: AtomicBool::new(false),
        }
    }

    /// Does I/O on the file, which stays attached meanwhile.
    ///
    /// # Errors
    /// Those of `io`, and `NotFound` if it was detached.
    pub(super) fn with_file<T>(&self, io: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        io(gate.as_ref().ok_or(io::ErrorKind::NotFound)?)
    }

    /// The part of `length` bytes at `offset` that lies in the file or can.
    pub(super) fn clamp(&self, offset: u64, length: u64) -> u64 {
        if self.fixed_size {
            length.min(self.size.saturating_sub(offset))
        } else {
            length
        }
    }

    /// Says that the file is about to be changed.
    pub(super) fn mark_dirty(&self) {
        self.dirty.store(true, Ordering::Release);
    }

    /// Brings what was written to stable storage.
    pub(super) fn flush(&self) -> io::Result<()> {
        // Taken back before the flush, so that a write during it counts for the
        // next one.
        if !self.dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        match self.with_file(|file| Ok(rustix::fs::fdatasync(file)?)) {
            // Detached: no longer the guest's to flush.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => {
                self.mark_dirty();
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }
}
