//! The virtio-blk device of a bay.

use super::bay::{Backing, Bay, BayHandle, CAPACITY};
use super::request::{MAX_RANGES, Operation, Range, Request, SECTOR};
use crate::chain::{Buffers, Chain};
use crate::device::{DeviceError, Queues, VirtioDevice};
use crate::guest_io;
use crate::serve::{Answer, Turn, serve};
use crate::wakeup::Wakeup;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::GuestMemoryMmap;

/// Chains in the queue; with indirect descriptors a request takes one.
const QUEUE_SIZE: u16 = 256;
/// Data segments in a request: fits a queue of 128, which is QEMU's default,
/// with header and status even without indirect descriptors.
const SEG_MAX: u32 = 126;
/// The logical block, in bytes.
const BLK_SIZE: u32 = 512;
/// The physical block is 2^3 sectors: file systems choose 4 KiB.
const PHYSICAL_BLOCK_EXP: u8 = 3;
/// Most bytes in a discarded range.
const MAX_DISCARD: u64 = 2 << 30;
/// Most bytes in a zeroed range, of which there is one in a request: where the
/// host's file system cannot do it, zeroes are written.
const MAX_WRITE_ZEROES: u64 = 64 << 20;
/// What a discard costs of a turn: about as much as moving this many bytes.
const DISCARD_COST: usize = 1 << 20;

/// A virtio-blk device whose contents are files attached by a [`BayHandle`].
#[derive(Debug)]
pub struct DiskBay {
    name: &'static str,
    id: [u8; VIRTIO_BLK_ID_BYTES as usize],
    bay: Arc<Bay>,
    /// The driver flushes; otherwise every write is brought to storage at once
    /// (virtio 1.2, 5.2.5.2).
    write_back: bool,
    wakeup: Wakeup,
}

/// A request that was not done, as the driver shall hear of it.
enum Failure {
    Io,
    Unsupported,
}

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Self {
        Failure::Io
    }
}

impl DiskBay {
    /// An empty bay of 16 TiB. `name` is for logs and threads; `device_id` is
    /// the serial number that the guest sees (its first 20 bytes).
    pub fn new(name: &'static str, device_id: &str, read_only: bool) -> (DiskBay, BayHandle) {
        let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
        for (to, from) in id.iter_mut().zip(device_id.bytes()) {
            *to = from;
        }
        let bay = Arc::new(Bay::new(read_only));
        let handle = BayHandle {
            bay: Arc::clone(&bay),
        };
        let device = DiskBay {
            name,
            id,
            bay,
            write_back: false,
            wakeup: Wakeup::new(),
        };
        (device, handle)
    }

    fn turn(
        &mut self,
        memory: &GuestMemoryMmap,
        queues: &mut Queues<'_>,
    ) -> Result<(), DeviceError> {
        let Some(queue) = queues.first_mut() else {
            return Ok(());
        };
        while serve(0, memory, *queue, |chain| self.answer(chain))? == Turn::Spent {
            if self.wakeup.raise() {
                break;
            }
        }
        Ok(())
    }

    /// Does one request and writes its status.
    fn answer(&self, chain: Chain<'_>) -> Answer {
        let Some(request) = Request::parse(chain) else {
            return Answer {
                written: 0,
                moved: 0,
            };
        };
        let done = self.perform(&request.operation);
        let (status, moved) = match done {
            Ok(moved) => (VIRTIO_BLK_S_OK, moved),
            Err(Failure::Io) => (VIRTIO_BLK_S_IOERR, 0),
            Err(Failure::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
        };
        // The values are 0, 1 and 2.
        request.status.copy_from(&status.to_le_bytes()[..1]);
        // A prefix that the device has written for certain: all if the request
        // succeeded, else only a status that nothing stands before.
        let written = if status == VIRTIO_BLK_S_OK || request.writable_data == 0 {
            u32::try_from(request.writable_data + 1).unwrap_or(u32::MAX)
        } else {
            0
        };
        Answer { written, moved }
    }

    /// Bytes moved, or what they cost.
    fn perform(&self, operation: &Operation<'_>) -> Result<usize, Failure> {
        match operation {
            Operation::Read { offset, data } => self.read(*offset, data),
            Operation::Write { offset, data } => self.write(*offset, data),
            Operation::Flush => self.flush(),
            Operation::GetId { data } => {
                data.fill_zero();
                Ok(data.copy_from(&self.id))
            }
            Operation::Discard { ranges } => self.discard(ranges),
            Operation::WriteZeroes { ranges } => self.write_zeroes(ranges),
            Operation::Unsupported => Err(Failure::Unsupported),
            Operation::Malformed => Err(Failure::Io),
        }
    }

    fn read(&self, offset: u64, data: &Buffers<'_>) -> Result<usize, Failure> {
        let len = data.len();
        let (backing, at) = self.bay.find(offset, len as u64).ok_or(Failure::Io)?;
        let got = backing.with_file(|file| guest_io::read_at(file.as_fd(), data, at))?;
        if got < len {
            // Past the file's end lies the rest of the extent's last 4096
            // bytes. A file that ends earlier than it did has lost data.
            if at + (got as u64) < backing.size {
                return Err(Failure::Io);
            }
            data.clone().split_off(got).fill_zero();
        }
        Ok(len)
    }

    fn write(&self, offset: u64, data: &Buffers<'_>) -> Result<usize, Failure> {
        let backing_at = self.writable(offset, data.len() as u64)?;
        let (backing, at) = backing_at;
        backing.mark_dirty();
        backing.with_file(|file| guest_io::write_at(file.as_fd(), data, at))?;
        self.write_through(&backing)?;
        Ok(data.len())
    }

    fn flush(&self) -> Result<usize, Failure> {
        // Every file is tried, so that one bad disk costs the others nothing.
        let mut outcome = Ok(0);
        for backing in self.bay.dirty() {
            if backing.flush().is_err() {
                outcome = Err(Failure::Io);
            }
        }
        outcome
    }

    fn discard(&self, ranges: &[Range]) -> Result<usize, Failure> {
        for range in ranges {
            if range.flags != 0 {
                return Err(Failure::Unsupported);
            }
            if range.length > MAX_DISCARD {
                return Err(Failure::Io);
            }
            let (backing, at) = self.writable(range.offset, range.length)?;
            backing.mark_dirty();
            match backing.with_file(|file| {
                let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                Ok(fallocate(file, mode, at, backing.clamp(at, range.length))?)
            }) {
                // Discard is advice (5.2.6.2): a file that cannot have holes
                // keeps its blocks.
                Err(error) if is_unsupported(&error) => {}
                other => other?,
            }
            self.write_through(&backing)?;
        }
        Ok(ranges.len() * DISCARD_COST)
    }

    fn write_zeroes(&self, ranges: &[Range]) -> Result<usize, Failure> {
        let [range] = ranges else {
            return Err(Failure::Io);
        };
        if range.flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
            return Err(Failure::Unsupported);
        }
        if range.length > MAX_WRITE_ZEROES {
            return Err(Failure::Io);
        }
        let (backing, at) = self.writable(range.offset, range.length)?;
        let unmap = range.flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        backing.mark_dirty();
        let length = backing.clamp(at, range.length);
        let wrote = backing.with_file(|file| zero(file, at, length, unmap))?;
        self.write_through(&backing)?;
        Ok(DISCARD_COST + wrote)
    }

    /// The file behind a range that the driver wants to change.
    fn writable(&self, offset: u64, length: u64) -> Result<(Arc<Backing>, u64), Failure> {
        if self.bay.read_only || length == 0 {
            return Err(Failure::Io);
        }
        self.bay.find(offset, length).ok_or(Failure::Io)
    }

    fn write_through(&self, backing: &Backing) -> Result<(), Failure> {
        if !self.write_back {
            backing.flush()?;
        }
        Ok(())
    }

    /// struct virtio_blk_config (virtio 1.2, 5.2.4).
    fn config(&self) -> [u8; 60] {
        let mut config = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        let sectors = |bytes: u64| u32::try_from(bytes / SECTOR).unwrap_or(u32::MAX);
        put(0, &(CAPACITY / SECTOR).to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &BLK_SIZE.to_le_bytes());
        put(24, &[PHYSICAL_BLOCK_EXP, 0]);
        put(26, &(1u16 << PHYSICAL_BLOCK_EXP).to_le_bytes()); // min_io_size
        put(34, &1u16.to_le_bytes()); // num_queues
        if !self.bay.read_only {
            let ranges = u32::try_from(MAX_RANGES).unwrap_or(1);
            put(36, &sectors(MAX_DISCARD).to_le_bytes());
            put(40, &ranges.to_le_bytes());
            put(44, &(1u32 << PHYSICAL_BLOCK_EXP).to_le_bytes()); // alignment
            put(48, &sectors(MAX_WRITE_ZEROES).to_le_bytes());
            put(52, &1u32.to_le_bytes());
            put(56, &[1]); // write_zeroes_may_unmap
        }
        config
    }
}

/// Zeroes a range by the cheapest way the host's file system knows; the bytes
/// that had to be written.
fn zero(file: &File, offset: u64, length: u64, unmap: bool) -> io::Result<usize> {
    if length == 0 {
        return Ok(0);
    }
    let hole = unmap.then_some(FallocateFlags::PUNCH_HOLE);
    for mode in hole.into_iter().chain([FallocateFlags::ZERO_RANGE]) {
        match fallocate(file, mode | FallocateFlags::KEEP_SIZE, offset, length) {
            Ok(()) => return Ok(0),
            Err(error) if is_unsupported(&error.into()) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let zeroes = vec![0; 1 << 16];
    let mut done = 0;
    while done < length {
        let piece = usize::try_from(length - done)
            .unwrap_or(usize::MAX)
            .min(zeroes.len());
        file.write_all_at(&zeroes[..piece], offset + done)?;
        done += piece as u64;
    }
    Ok(usize::try_from(length).unwrap_or(usize::MAX))
}

fn is_unsupported(error: &io::Error) -> bool {
    [Errno::OPNOTSUPP, Errno::NOSYS, Errno::NODEV]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

impl VirtioDevice for DiskBay {
    fn name(&self) -> &'static str {
        self.name
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let common = 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_TOPOLOGY;
        if self.bay.read_only {
            common | 1 << VIRTIO_BLK_F_RO
        } else {
            common
                | 1 << VIRTIO_BLK_F_FLUSH
                | 1 << VIRTIO_BLK_F_DISCARD
                | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        }
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        let from = usize::try_from(offset).map_or(config.len(), |at| at.min(config.len()));
        let len = data.len().min(config.len() - from);
        data.fill(0);
        data[..len].copy_from_slice(&config[from..from + len]);
    }

    fn activate(&mut self, features: u64) {
        self.write_back = features & 1 << VIRTIO_BLK_F_FLUSH != 0;
    }

    fn reset(&mut self) {
        self.write_back = false;
        self.wakeup.clear();
    }

    fn queue_event(
        &mut self,
        _index: u16,
        memory: &GuestMemoryMmap,
        queues: &mut Queues<'_>,
    ) -> Result<(), DeviceError> {
        self.turn(memory, queues)
    }

    fn host_fd(&self) -> Option<BorrowedFd<'_>> {
        self.wakeup.fd()
    }

    fn host_event(
        &mut self,
        memory: &GuestMemoryMmap,
        queues: &mut Queues<'_>,
    ) -> Result<(), DeviceError> {
        self.wakeup.clear();
        self.turn(memory, queues)
    }
}
