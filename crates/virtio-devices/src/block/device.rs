//! The virtio-blk device of a bay.
//!
//! Requests are done one at a time, in the order in which the driver made them
//! available, but for those of an extent that has used up what it may do: these
//! wait in a line of their own, and others overtake them.

use super::bay::{Backing, Bay, BayHandle, CAPACITY, VOLUMES_CAPACITY};
use super::limiter::Cost;
use super::request::{MAX_RANGES, Operation, Range, Request, SECTOR};
use super::storage;
use crate::chain::{Buffers, Chain, MAX_DESCRIPTORS, RawChain};
use crate::device::{DeviceError, Queues, VirtQueue, VirtioDevice};
use crate::guest_io;
use crate::serve::{Answer, MAX_BYTES_PER_TURN, Turn, serve_or_keep};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
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
    /// Requests that wait, by the extent that holds them up.
    waiting: BTreeMap<u64, VecDeque<RawChain>>,
    /// When the first of them may go on, on the bay's clock.
    earliest: Option<Duration>,
}

/// What became of a request.
enum Outcome {
    Done(Answer),
    /// This extent may do no more before then.
    Wait {
        id: u64,
        until: Duration,
    },
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
        Self::with_capacity(name, device_id, read_only, CAPACITY)
    }

    /// An empty bay of 1 PiB for volumes, which may grow.
    pub fn for_volumes(name: &'static str, device_id: &str) -> (DiskBay, BayHandle) {
        Self::with_capacity(name, device_id, false, VOLUMES_CAPACITY)
    }

    fn with_capacity(
        name: &'static str,
        device_id: &str,
        read_only: bool,
        capacity: u64,
    ) -> (DiskBay, BayHandle) {
        let bay = Arc::new(Bay::new(read_only, capacity));
        let handle = BayHandle {
            bay: Arc::clone(&bay),
        };
        let device = DiskBay {
            name,
            id: padded(device_id),
            bay,
            write_back: false,
            waiting: BTreeMap::new(),
            earliest: None,
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
        let bay = Arc::clone(&self.bay);
        let alarm = &bay.alarm;
        loop {
            alarm.begin_turn();
            self.earliest = None;
            let mut turn = Turn::Idle;
            if queue.queue().ready() {
                turn = self.go_on(memory, *queue)?;
            }
            if turn == Turn::Idle {
                turn = serve_or_keep(0, memory, *queue, |raw| self.answer_or_keep(memory, raw))?;
            }
            if turn == Turn::Idle || alarm.works() {
                let spent = (turn == Turn::Spent).then_some(Duration::ZERO);
                let wait = self.earliest.map(|at| at.saturating_sub(bay.now()));
                alarm.end_turn(spent.or(wait));
                return Ok(());
            }
        }
    }

    /// Does what waited and may go on.
    fn go_on(
        &mut self,
        memory: &GuestMemoryMmap,
        queue: &mut dyn VirtQueue,
    ) -> Result<Turn, DeviceError> {
        let broken = |source| DeviceError::Queue { queue: 0, source };
        let mut bytes = 0;
        let mut heard = true;
        let ids: Vec<u64> = self.waiting.keys().copied().collect();
        'extents: for id in ids {
            while let Some(raw) = self.waiting.get_mut(&id).and_then(VecDeque::pop_front) {
                let head = raw.head;
                match self.try_answer(raw.resolve(memory).map_err(broken)?, false) {
                    Outcome::Done(Answer { written, moved }) => {
                        let queue = queue.queue();
                        queue.add_used(memory, head, written).map_err(broken)?;
                        heard = false;
                        bytes += moved;
                        if bytes >= MAX_BYTES_PER_TURN {
                            break 'extents;
                        }
                    }
                    Outcome::Wait { until, .. } => {
                        self.waiting.entry(id).or_default().push_front(raw);
                        self.wait_until(until);
                        break;
                    }
                }
            }
        }
        self.waiting.retain(|_, line| !line.is_empty());
        if !heard {
            queue.signal()?;
        }
        Ok(if bytes >= MAX_BYTES_PER_TURN {
            Turn::Spent
        } else {
            Turn::Idle
        })
    }

    fn wait_until(&mut self, until: Duration) {
        self.earliest = Some(self.earliest.map_or(until, |other| other.min(until)));
    }

    /// Does a request that just came, or keeps it in a line.
    fn answer_or_keep(
        &mut self,
        memory: &GuestMemoryMmap,
        raw: RawChain,
    ) -> Result<Option<Answer>, virtio_queue::Error> {
        match self.try_answer(raw.resolve(memory)?, true) {
            Outcome::Done(answer) => Ok(Some(answer)),
            Outcome::Wait { id, until } => {
                // More than any queue has were made available twice.
                let waiting: usize = self.waiting.values().map(VecDeque::len).sum();
                if waiting >= MAX_DESCRIPTORS {
                    return Err(virtio_queue::Error::InvalidAvailRingIndex);
                }
                self.waiting.entry(id).or_default().push_back(raw);
                self.wait_until(until);
                Ok(None)
            }
        }
    }

    /// Does one request and writes its status, unless it has to wait. One that is
    /// `new` goes behind those of its extent that wait.
    fn try_answer(&self, chain: Chain<'_>, new: bool) -> Outcome {
        let Some(request) = Request::parse(chain) else {
            return Outcome::Done(Answer {
                written: 0,
                moved: 0,
            });
        };
        if let Err(wait) = self.admit(&request.operation, new) {
            return wait;
        }
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
        Outcome::Done(Answer { written, moved })
    }

    /// Takes what a request costs the extents that it touches, or says which of
    /// them it has to wait for. A request outside of all costs nothing: it fails.
    fn admit(&self, operation: &Operation<'_>, new: bool) -> Result<(), Outcome> {
        if !self.bay.has_limits() {
            return Ok(());
        }
        let costs: Vec<(Arc<Backing>, Cost)> = match operation {
            Operation::Read { offset, data } | Operation::Write { offset, data } => {
                let bytes = data.len() as u64;
                self.cost(*offset, bytes, bytes).into_iter().collect()
            }
            Operation::Discard { ranges } => {
                let costs = ranges.iter().map(|r| self.cost(r.offset, r.length, 0));
                costs.flatten().collect()
            }
            Operation::WriteZeroes { ranges } => {
                let costs = ranges
                    .iter()
                    .map(|r| self.cost(r.offset, r.length, r.length));
                costs.flatten().collect()
            }
            Operation::Flush
            | Operation::GetId { .. }
            | Operation::Unsupported
            | Operation::Malformed => return Ok(()),
        };
        let now = self.bay.now();
        for (backing, _) in &costs {
            let behind = new && self.waiting.contains_key(&backing.id);
            let wait = backing.wait(now);
            // The first of the line says when.
            let until = match behind {
                true => Duration::MAX,
                false => now.saturating_add(wait),
            };
            if until > now {
                let id = backing.id;
                return Err(Outcome::Wait { id, until });
            }
        }
        for (backing, cost) in costs {
            backing.charge(cost);
        }
        Ok(())
    }

    /// What a range that lies in an extent costs it.
    fn cost(&self, offset: u64, length: u64, bytes: u64) -> Option<(Arc<Backing>, Cost)> {
        let (backing, _) = self.bay.find(offset, length)?;
        let cost = Cost {
            bytes,
            operations: 1,
        };
        Some((backing, cost))
    }

    /// Bytes moved, or what they cost.
    fn perform(&self, operation: &Operation<'_>) -> Result<usize, Failure> {
        match operation {
            Operation::Read { offset, data } => self.read(*offset, data),
            Operation::Write { offset, data } => self.write(*offset, data),
            Operation::Flush => self.flush(),
            Operation::GetId { data } => {
                data.fill_zero();
                let own = self.bay.serial().map(|serial| padded(&serial));
                Ok(data.copy_from(&own.unwrap_or(self.id)))
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
            if at + (got as u64) < backing.size() {
                return Err(Failure::Io);
            }
            data.clone().split_off(got).fill_zero();
        }
        Ok(len)
    }

    fn write(&self, offset: u64, data: &Buffers<'_>) -> Result<usize, Failure> {
        let (backing, at) = self.writable(offset, data.len() as u64)?;
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
            let length = backing.clamp(at, range.length);
            backing
                .with_file(|file| storage::discard(file, backing.is_block_device, at, length))?;
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
        let wrote = backing.with_file(|file| storage::zero(file, at, length, unmap))?;
        self.write_through(&backing)?;
        Ok(DISCARD_COST + wrote)
    }

    /// The file behind a range that the driver wants to change.
    fn writable(&self, offset: u64, length: u64) -> Result<(Arc<Backing>, u64), Failure> {
        if length == 0 {
            return Err(Failure::Io);
        }
        let found = self.bay.find(offset, length).ok_or(Failure::Io)?;
        if found.0.read_only {
            return Err(Failure::Io);
        }
        Ok(found)
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
        put(0, &(self.bay.capacity() / SECTOR).to_le_bytes());
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

/// A serial number as the driver gets it: its first bytes, then zeroes.
fn padded(serial: &str) -> [u8; VIRTIO_BLK_ID_BYTES as usize] {
    let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
    for (to, from) in id.iter_mut().zip(serial.bytes()) {
        *to = from;
    }
    id
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
        // The driver has forgotten them.
        self.waiting.clear();
        self.bay.alarm.end_turn(None);
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
        self.bay.alarm.fd()
    }

    fn host_event(
        &mut self,
        memory: &GuestMemoryMmap,
        queues: &mut Queues<'_>,
    ) -> Result<(), DeviceError> {
        self.turn(memory, queues)
    }
}
