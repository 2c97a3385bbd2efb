//! The files in a bay, and the handle by which they come and go.

use super::extent::{AddressSpace, Extent};
use super::limiter::{Cost, IoLimits, Limiter};
use super::request::SECTOR;
use crate::alarm::Alarm;
use rustix::fs::{FileType, OFlags};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Bytes in the address space of a bay whose extents do not grow (16 TiB). It
/// costs neither host nor guest anything: Linux keeps no table by capacity.
pub(super) const CAPACITY: u64 = 16 << 40;
/// Bytes in a bay of volumes (1 PiB), which keeps room for each to grow.
pub(super) const VOLUMES_CAPACITY: u64 = 1 << 50;
/// Room that each volume has at least (8 TiB).
const VOLUME_ROOM: u64 = 8 << 40;
/// Extents that are no volumes end at multiples of this, the block size that
/// ext4 and EROFS use.
const BLOCK: u64 = 4096;

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
    /// The extent is to be writable and the descriptor is not.
    #[error("{0:?} is not open for writing")]
    NotWritable(String),
    /// The file has become smaller than its extent.
    #[error("{name:?} has shrunk to {now} bytes from {before}; a volume cannot shrink")]
    Shrunk {
        /// The extent.
        name: String,
        /// Its length in bytes.
        before: u64,
        /// What is left.
        now: u64,
    },
    /// The host had no timer for the bay when it was made.
    #[error("{0:?} cannot be limited: the VM's process has run out of descriptors")]
    NoTimer(String),
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
    /// The guest can change nothing in it.
    pub read_only: bool,
}

/// How a volume is attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeOptions {
    /// The guest can change nothing in it.
    pub read_only: bool,
    /// What the bay's serial number is while nothing else is in the bay (its
    /// first 20 bytes); empty: the bay's own.
    pub serial: String,
    /// How much I/O it may do.
    pub limits: IoLimits,
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
        let options = VolumeOptions {
            read_only: self.bay.read_only,
            ..VolumeOptions::default()
        };
        let round = |size: u64| size.checked_next_multiple_of(BLOCK);
        self.insert(name, file, options, round, |_| 0)
    }

    /// As [`Self::attach`], of what lasts: its length is rounded down to 512, so
    /// that the guest never changes the file's, and there is room for it to grow.
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub fn attach_volume(
        &self,
        name: &str,
        file: File,
        options: VolumeOptions,
    ) -> Result<Extent, BayError> {
        let options = VolumeOptions {
            read_only: options.read_only || self.bay.read_only,
            ..options
        };
        let round = |size: u64| Some(size / SECTOR * SECTOR);
        let room = |size: u64| size.saturating_mul(2).max(VOLUME_ROOM);
        self.insert(name, file, options, round, room)
    }

    fn insert(
        &self,
        name: &str,
        file: File,
        options: VolumeOptions,
        round: impl FnOnce(u64) -> Option<u64>,
        room: impl FnOnce(u64) -> u64,
    ) -> Result<Extent, BayError> {
        let (size, is_block_device) = inspect(name, &file, options.read_only)?;
        let full = || BayError::Full {
            name: name.to_owned(),
            length: size,
        };
        let length = round(size).ok_or_else(full)?;
        if length == 0 {
            return Err(BayError::Empty(name.to_owned()));
        }
        self.check_timer(name, options.limits)?;
        let mut table = self.bay.table();
        if table.iter().any(|(_, entry)| entry.name == name) {
            return Err(BayError::NameTaken(name.to_owned()));
        }
        let backing = Backing {
            id: self.bay.next_id.fetch_add(1, Ordering::Relaxed),
            gate: RwLock::new(Some(file)),
            size: AtomicU64::new(size),
            is_block_device,
            read_only: options.read_only,
            dirty: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            limiter: Mutex::new(self.limiter(options.limits)),
        };
        let entry = Entry {
            name: name.to_owned(),
            serial: options.serial,
            backing: Arc::new(backing),
        };
        table.insert(length, room(length), entry).ok_or_else(full)
    }

    /// Has an extent end where its file ends now, which has grown.
    ///
    /// # Errors
    /// If there is none of that name, it was not attached as a volume, has no room
    /// for that, or its file has become smaller.
    pub fn resize(&self, name: &str) -> Result<Extent, BayError> {
        let (extent, backing) = self.named(name)?;
        let size = backing.with_file(|mut file| file.seek(SeekFrom::End(0)));
        let size = size.map_err(|source| BayError::Inspect {
            name: name.to_owned(),
            source,
        })?;
        let length = size / SECTOR * SECTOR;
        if length < extent.length {
            return Err(BayError::Shrunk {
                name: name.to_owned(),
                before: extent.length,
                now: size,
            });
        }
        // First: what the guest may read must be known to lie in the file.
        backing.size.store(size, Ordering::Release);
        let resized = self.bay.table().resize(extent.offset, length);
        resized.ok_or_else(|| BayError::Full {
            name: name.to_owned(),
            length,
        })
    }

    /// Changes how much I/O an extent may do, from now on.
    ///
    /// # Errors
    /// If there is none of that name, or the host has no timer.
    pub fn limit(&self, name: &str, limits: IoLimits) -> Result<(), BayError> {
        self.check_timer(name, limits)?;
        let (_, backing) = self.named(name)?;
        *backing.limiter() = self.limiter(limits);
        // What waits may go on.
        self.bay.alarm.call();
        Ok(())
    }

    fn limiter(&self, limits: IoLimits) -> Option<Limiter> {
        if limits == IoLimits::default() {
            return None;
        }
        self.bay.limited.store(true, Ordering::Release);
        Some(Limiter::new(limits, self.bay.now()))
    }

    fn check_timer(&self, name: &str, limits: IoLimits) -> Result<(), BayError> {
        if limits != IoLimits::default() && !self.bay.alarm.works() {
            return Err(BayError::NoTimer(name.to_owned()));
        }
        Ok(())
    }

    fn named(&self, name: &str) -> Result<(Extent, Arc<Backing>), BayError> {
        let table = self.bay.table();
        let found = table.iter().find(|(_, entry)| entry.name == name);
        let found = found.map(|(extent, entry)| (extent, Arc::clone(&entry.backing)));
        found.ok_or_else(|| BayError::NoSuchExtent(name.to_owned()))
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
        // What waits for its turn there need wait no longer.
        self.bay.alarm.call();
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
                read_only: entry.backing.read_only,
            })
            .collect()
    }
}

/// Checks that `file` can be an extent; its size in bytes and whether it is a
/// block device.
fn inspect(name: &str, file: &File, read_only: bool) -> Result<(u64, bool), BayError> {
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
    if !read_only && access != OFlags::RDWR {
        return Err(BayError::NotWritable(name.to_owned()));
    }
    // Metadata has no size for a block device; its end is what both have.
    let size = (&*file).seek(SeekFrom::End(0)).map_err(failed)?;
    if size == 0 {
        return Err(BayError::Empty(name.to_owned()));
    }
    Ok((size, is_block_device))
}

/// What the handles and the device share.
#[derive(Debug)]
pub(super) struct Bay {
    pub(super) read_only: bool,
    pub(super) alarm: Alarm,
    started: Instant,
    /// Time that tests set, in nanoseconds.
    #[cfg(test)]
    pub(super) test_clock: Mutex<Option<Duration>>,
    next_id: AtomicU64,
    /// Some extent has, or had, limits.
    limited: AtomicBool,
    table: Mutex<AddressSpace<Entry>>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    serial: String,
    backing: Arc<Backing>,
}

impl Bay {
    pub(super) fn new(read_only: bool, capacity: u64) -> Self {
        Bay {
            read_only,
            alarm: Alarm::new(),
            started: Instant::now(),
            #[cfg(test)]
            test_clock: Mutex::new(None),
            next_id: AtomicU64::new(0),
            limited: AtomicBool::new(false),
            table: Mutex::new(AddressSpace::new(capacity)),
        }
    }

    /// The time of limiters.
    pub(super) fn now(&self) -> Duration {
        #[cfg(test)]
        if let Some(now) = *self.test_clock.lock().expect("the clock") {
            return now;
        }
        self.started.elapsed()
    }

    pub(super) fn has_limits(&self) -> bool {
        self.limited.load(Ordering::Acquire)
    }

    pub(super) fn capacity(&self) -> u64 {
        self.table().capacity()
    }

    /// The serial number of what is alone in the bay.
    pub(super) fn serial(&self) -> Option<String> {
        let table = self.table();
        let mut entries = table.iter();
        match (entries.next(), entries.next()) {
            (Some((_, one)), None) if !one.serial.is_empty() => Some(one.serial.clone()),
            _ => None,
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
    /// Tells it from all others that were ever in the bay.
    pub(super) id: u64,
    /// `None` once detached. Held for reading during I/O.
    gate: RwLock<Option<File>>,
    /// Bytes in the file when it was last looked at.
    size: AtomicU64,
    pub(super) is_block_device: bool,
    pub(super) read_only: bool,
    /// Written to since the last flush.
    dirty: AtomicBool,
    /// A flush failed: the kernel may have dropped what it was to write.
    lost: AtomicBool,
    limiter: Mutex<Option<Limiter>>,
}

impl Backing {
    #[cfg(test)]
    pub(super) fn for_test(file: File) -> Self {
        Backing {
            id: 0,
            gate: RwLock::new(Some(file)),
            size: AtomicU64::new(4096),
            is_block_device: false,
            read_only: false,
            dirty: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            limiter: Mutex::new(None),
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

    pub(super) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// The part of `length` bytes at `offset` that lies in the file or can.
    pub(super) fn clamp(&self, offset: u64, length: u64) -> u64 {
        if self.is_block_device {
            length.min(self.size().saturating_sub(offset))
        } else {
            length
        }
    }

    /// How long a request has to wait at the time `now`.
    pub(super) fn wait(&self, now: Duration) -> Duration {
        let mut limiter = self.limiter();
        limiter.as_mut().map(|l| l.wait(now)).unwrap_or_default()
    }

    /// Takes what a request costs.
    pub(super) fn charge(&self, cost: Cost) {
        if let Some(limiter) = self.limiter().as_mut() {
            limiter.charge(cost);
        }
    }

    fn limiter(&self) -> MutexGuard<'_, Option<Limiter>> {
        // Whole after a panic: it is two numbers.
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that the file is about to be changed.
    pub(super) fn mark_dirty(&self) {
        self.dirty.store(true, Ordering::Release);
    }

    /// Brings what was written to stable storage. After a failure there is no
    /// success any more: Linux reports a lost page once, and the next fdatasync
    /// succeeds without it.
    pub(super) fn flush(&self) -> io::Result<()> {
        // Taken back before the flush, so that a write during it counts for the
        // next one.
        if !self.dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let flushed = match self.lost.load(Ordering::Acquire) {
            true => Err(io::ErrorKind::BrokenPipe.into()),
            false => self.with_file(|file| Ok(rustix::fs::fdatasync(file)?)),
        };
        match flushed {
            // Detached: no longer the guest's to flush.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => {
                self.lost.store(true, Ordering::Release);
                self.mark_dirty();
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }
}
