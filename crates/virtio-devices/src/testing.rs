//! The driver's side of a device, for tests: guest memory, split rings (virtio
//! 1.2, 2.7) and a transport that calls the back end directly.
//!
//! Everything can be done right ([`Ring::push`]) or wrong
//! ([`Ring::write_descriptor`], [`Ring::offer`], plain writes to the memory).
#![expect(
    clippy::cast_possible_truncation,
    reason = "descriptor flags are u32 in the bindings and u16 in the ring"
)]

use crate::device::{DeviceError, VirtQueue, VirtioDevice};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::HashMap;
use std::io;
use std::time::Duration;
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Descriptor flag: another one follows.
pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
/// Descriptor flag: the device writes.
pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
/// Descriptor flag: a table of descriptors.
pub const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// Bytes that the rings of one queue may take.
const RING_SPACE: u64 = 1 << 20;
/// Where buffers begin; the first page stays free.
const FIRST_RING: u64 = 4096;

/// A queue as a transport lends it, with a count of interrupts.
#[derive(Debug)]
pub struct LentQueue {
    queue: Queue,
    /// How often the guest was interrupted.
    pub signals: usize,
    memory: GuestMemoryMmap,
}

impl VirtQueue for LentQueue {
    fn queue(&mut self) -> &mut Queue {
        &mut self.queue
    }

    fn signal(&mut self) -> io::Result<()> {
        let needed = self
            .queue
            .needs_notification(&self.memory)
            .map_err(io::Error::other)?;
        self.signals += usize::from(needed);
        Ok(())
    }

    fn interrupt(&mut self) -> io::Result<()> {
        self.signals += 1;
        Ok(())
    }
}

/// A buffer that the driver offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// The device writes into it.
    pub writable: bool,
}

impl Buffer {
    /// A buffer that the device reads.
    pub fn readable(addr: u64, len: u32) -> Buffer {
        Buffer {
            addr,
            len,
            writable: false,
        }
    }

    /// A buffer that the device writes.
    pub fn writable(addr: u64, len: u32) -> Buffer {
        Buffer {
            addr,
            len,
            writable: true,
        }
    }
}

/// The driver's side of one queue.
#[derive(Debug)]
pub struct Ring {
    memory: GuestMemoryMmap,
    /// Number of entries.
    pub size: u16,
    /// Address of the descriptor table.
    pub descriptors: u64,
    /// Address of the available ring.
    pub available: u64,
    /// Address of the used ring.
    pub used: u64,
    next_available: u16,
    next_used: u16,
    free: Vec<u16>,
    chains: HashMap<u16, Vec<u16>>,
}

impl Ring {
    fn new(memory: &GuestMemoryMmap, base: u64, size: u16) -> Ring {
        let available = base + 16 * u64::from(size);
        let used = (available + 6 + 2 * u64::from(size)).next_multiple_of(4096);
        Ring {
            memory: memory.clone(),
            size,
            descriptors: base,
            available,
            used,
            next_available: 0,
            next_used: 0,
            free: (0..size).rev().collect(),
            chains: HashMap::new(),
        }
    }

    fn device_side(&self, event_idx: bool) -> Queue {
        let mut queue = Queue::new(self.size).expect("a power of two");
        queue
            .try_set_desc_table_address(GuestAddress(self.descriptors))
            .expect("aligned");
        queue
            .try_set_avail_ring_address(GuestAddress(self.available))
            .expect("aligned");
        queue
            .try_set_used_ring_address(GuestAddress(self.used))
            .expect("aligned");
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        queue
    }

    /// Writes one descriptor, whatever it says.
    pub fn write_descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = GuestAddress(self.descriptors + 16 * u64::from(index));
        self.memory
            .write_obj(Descriptor::new(addr, len, flags, next), at)
            .expect("in memory");
    }

    /// Puts a head into the available ring, whatever it is.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.next_available % self.size);
        self.memory
            .write_obj(head, GuestAddress(self.available + 4 + 2 * slot))
            .expect("in memory");
        self.next_available = self.next_available.wrapping_add(1);
        self.set_available_index(self.next_available);
    }

    /// Sets the index of the available ring, whatever it is.
    pub fn set_available_index(&self, index: u16) {
        self.memory
            .store(
                index,
                GuestAddress(self.available + 2),
                std::sync::atomic::Ordering::Release,
            )
            .expect("in memory");
    }

    /// Offers a chain; its head, or `None` if the table has no room.
    pub fn push(&mut self, buffers: &[Buffer]) -> Option<u16> {
        if buffers.is_empty() || self.free.len() < buffers.len() {
            return None;
        }
        let indices = self.free.split_off(self.free.len() - buffers.len());
        for (position, buffer) in buffers.iter().enumerate() {
            let next = indices.get(position + 1).copied();
            let flags = next.map_or(0, |_| NEXT) | if buffer.writable { WRITE } else { 0 };
            self.write_descriptor(
                indices[position],
                buffer.addr,
                buffer.len,
                flags,
                next.unwrap_or(0),
            );
        }
        let head = indices[0];
        self.chains.insert(head, indices);
        self.offer(head);
        Some(head)
    }

    /// Offers a chain by an indirect table that is written to `table`.
    pub fn push_indirect(&mut self, table: u64, buffers: &[Buffer]) -> Option<u16> {
        let head = self.free.pop()?;
        let mut next = 0;
        for buffer in buffers {
            next += 1;
            let more = usize::from(next) < buffers.len();
            let flags = if more { NEXT } else { 0 } | if buffer.writable { WRITE } else { 0 };
            self.memory
                .write_obj(
                    Descriptor::new(buffer.addr, buffer.len, flags, next),
                    GuestAddress(table + 16 * u64::from(next - 1)),
                )
                .expect("in memory");
        }
        self.write_descriptor(head, table, 16 * u32::from(next), INDIRECT, 0);
        self.chains.insert(head, vec![head]);
        self.offer(head);
        Some(head)
    }

    /// The next chain that the device is done with: head and used length.
    pub fn pop_used(&mut self) -> Option<(u16, u32)> {
        let index: u16 = self
            .memory
            .load(
                GuestAddress(self.used + 2),
                std::sync::atomic::Ordering::Acquire,
            )
            .expect("in memory");
        if index == self.next_used {
            return None;
        }
        let at = self.used + 4 + 8 * u64::from(self.next_used % self.size);
        let head: u32 = self.memory.read_obj(GuestAddress(at)).expect("in memory");
        let len: u32 = self
            .memory
            .read_obj(GuestAddress(at + 4))
            .expect("in memory");
        self.next_used = self.next_used.wrapping_add(1);
        let head = u16::try_from(head).expect("an index");
        self.free
            .extend(self.chains.remove(&head).unwrap_or_default());
        Some((head, len))
    }
}

/// A device with its driver, on one thread.
#[derive(Debug)]
pub struct Harness<D> {
    /// The guest's memory.
    pub memory: GuestMemoryMmap,
    /// The device.
    pub device: D,
    /// The driver's side of each queue.
    pub rings: Vec<Ring>,
    /// The transport's side of each queue.
    pub queues: Vec<LentQueue>,
    next_buffer: u64,
}

impl<D: VirtioDevice> Harness<D> {
    /// A device whose driver took all features, with rings of `queue_size` and
    /// `memory_mib` MiB of memory, of which the rings take one each.
    pub fn new(device: D, queue_size: u16, memory_mib: usize) -> Harness<D> {
        let features = device.features();
        Self::with_features(device, queue_size, memory_mib, features)
    }

    /// The same for a driver that took only `features`.
    pub fn with_features(
        mut device: D,
        queue_size: u16,
        memory_mib: usize,
        features: u64,
    ) -> Harness<D> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), memory_mib << 20)])
            .expect("guest memory");
        let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let mut rings = Vec::new();
        let mut queues = Vec::new();
        let mut base = FIRST_RING;
        for _ in device.queue_sizes() {
            let ring = Ring::new(&memory, base, queue_size);
            queues.push(LentQueue {
                queue: ring.device_side(event_idx),
                signals: 0,
                memory: memory.clone(),
            });
            rings.push(ring);
            base += RING_SPACE;
        }
        device.activate(features);
        Harness {
            memory,
            device,
            rings,
            queues,
            next_buffer: base,
        }
    }

    /// Takes `len` bytes of the guest's memory for good; their address.
    pub fn allocate(&mut self, len: u32) -> u64 {
        let addr = self.next_buffer;
        self.next_buffer = (addr + u64::from(len)).next_multiple_of(64);
        addr
    }

    /// Takes room for `bytes` and writes them there.
    pub fn store(&mut self, bytes: &[u8]) -> u64 {
        let addr = self.allocate(u32::try_from(bytes.len()).expect("a small buffer"));
        self.memory
            .write_slice(bytes, GuestAddress(addr))
            .expect("in memory");
        addr
    }

    /// Bytes of the guest's memory.
    pub fn load(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(addr))
            .expect("in memory");
        bytes
    }

    /// The guest rings the bell of a queue.
    ///
    /// # Errors
    /// Those of the device.
    pub fn kick(&mut self, index: u16) -> Result<(), DeviceError> {
        let mut queues: Vec<&mut dyn VirtQueue> = self
            .queues
            .iter_mut()
            .map(|queue| queue as &mut dyn VirtQueue)
            .collect();
        self.device.queue_event(index, &self.memory, &mut queues)
    }

    /// Calls the device if its descriptor is readable, or becomes so in time;
    /// whether it did.
    ///
    /// # Errors
    /// Those of the device.
    pub fn poll_host(&mut self, time: Duration) -> Result<bool, DeviceError> {
        let Some(fd) = self.device.host_fd() else {
            return Ok(false);
        };
        let time = Timespec::try_from(time).expect("a short time");
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        if poll(&mut fds, Some(&time)).map_err(io::Error::from)? == 0 {
            return Ok(false);
        }
        let mut queues: Vec<&mut dyn VirtQueue> = self
            .queues
            .iter_mut()
            .map(|queue| queue as &mut dyn VirtQueue)
            .collect();
        self.device.host_event(&self.memory, &mut queues)?;
        Ok(true)
    }

    /// Rings a bell and lets the device work until it has no more to do.
    ///
    /// # Errors
    /// Those of the device.
    pub fn run(&mut self, index: u16) -> Result<(), DeviceError> {
        self.kick(index)?;
        while self.poll_host(Duration::ZERO)? {}
        Ok(())
    }
}
