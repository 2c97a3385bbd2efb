//! The queues of the socket device.

use super::muxer::{Limits, Muxer};
use super::packet::{HEADER_SIZE, Header};
use crate::chain::{self, Buffers};
use crate::device::{DeviceError, Queues, VirtQueue, VirtioDevice};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;

/// Index of the queue of packets for the guest.
const RX: u16 = 0;
/// Index of the queue of packets from the guest. The third, of events, is
/// never used: its one event tells of a migrated transport. QEMU keeps it to
/// itself and lends two.
const TX: u16 = 1;
/// Size of each queue.
const QUEUE_SIZE: u16 = 256;
/// VIRTIO_VSOCK_F_STREAM.
const FEATURE_STREAM: u64 = 1 << 0;
/// Packets moved in one turn, both ways together.
const PACKETS_PER_TURN: usize = 1024;

/// The socket device; the module's documentation has its host side.
#[derive(Debug)]
pub struct Vsock {
    guest_cid: u64,
    muxer: Muxer,
}

impl Vsock {
    /// A device for the guest `guest_cid` (3 or more) whose host clients connect
    /// to `socket_path`. The path is absolute, or relative to a working
    /// directory that does not change, and at most 96 bytes long.
    ///
    /// # Errors
    /// If nothing can be bound there: the path is too long, its directory is
    /// missing, or somebody listens there already.
    pub fn new(guest_cid: u64, socket_path: PathBuf) -> io::Result<Vsock> {
        Self::with_limits(guest_cid, socket_path, Limits::default())
    }

    pub(super) fn with_limits(
        guest_cid: u64,
        socket_path: PathBuf,
        limits: Limits,
    ) -> io::Result<Vsock> {
        Ok(Vsock {
            guest_cid,
            muxer: Muxer::new(guest_cid, socket_path, limits)?,
        })
    }

    /// Moves packets both ways until neither can go on or the turn is over.
    fn turn(
        &mut self,
        memory: &GuestMemoryMmap,
        queues: &mut Queues<'_>,
    ) -> Result<(), DeviceError> {
        let [rx, tx, ..] = queues else {
            return Ok(());
        };
        let (mut rx_used, mut tx_used) = (false, false);
        let mut left = PACKETS_PER_TURN;
        loop {
            let sent = self.take_packets(memory, *tx, &mut left)?;
            let got = self.give_packets(memory, *rx, &mut left)?;
            tx_used |= sent;
            rx_used |= got;
            // Refusals may have held packets of the guest's back.
            if !sent && !got {
                break;
            }
            if left == 0 {
                if self.muxer.call_again() {
                    break;
                }
                left = PACKETS_PER_TURN;
            }
        }
        self.muxer.arm();
        if tx_used {
            tx.signal()?;
        }
        if rx_used {
            rx.signal()?;
        }
        Ok(())
    }

    /// Takes packets from the guest; whether there were any.
    fn take_packets(
        &mut self,
        memory: &GuestMemoryMmap,
        queue: &mut dyn VirtQueue,
        left: &mut usize,
    ) -> Result<bool, DeviceError> {
        let broken = |source| DeviceError::Queue { queue: TX, source };
        let queue = queue.queue();
        if !queue.ready() {
            return Ok(false);
        }
        let mut used = false;
        loop {
            queue.disable_notification(memory).map_err(broken)?;
            loop {
                // Without a bell later: the receive queue's starts the next
                // turn when refusals went, a call to itself when time is up.
                if *left == 0 || self.muxer.is_congested() {
                    return Ok(used);
                }
                let Some(chain) = chain::pop(queue, memory).map_err(broken)? else {
                    break;
                };
                self.take(chain.readable);
                queue.add_used(memory, chain.head, 0).map_err(broken)?;
                used = true;
                *left -= 1;
            }
            if !queue.enable_notification(memory).map_err(broken)? {
                return Ok(used);
            }
        }
    }

    fn take(&mut self, mut packet: Buffers<'_>) {
        let data = packet.split_off(HEADER_SIZE);
        let mut bytes = [0; HEADER_SIZE];
        // A packet too short for its header is dropped.
        if packet.copy_to(&mut bytes) == HEADER_SIZE {
            self.muxer.receive(&Header::decode(&bytes), data);
        }
    }

    /// Gives packets to the guest; whether there were any.
    fn give_packets(
        &mut self,
        memory: &GuestMemoryMmap,
        queue: &mut dyn VirtQueue,
        left: &mut usize,
    ) -> Result<bool, DeviceError> {
        let broken = |source| DeviceError::Queue { queue: RX, source };
        let queue = queue.queue();
        if !queue.ready() {
            return Ok(false);
        }
        let mut used = false;
        while *left > 0 && self.muxer.has_packets() {
            queue.disable_notification(memory).map_err(broken)?;
            let Some(chain) = chain::pop(queue, memory).map_err(broken)? else {
                // The guest is out of buffers, and rings when it has some.
                if queue.enable_notification(memory).map_err(broken)? {
                    continue;
                }
                break;
            };
            let mut header_space = chain.writable;
            let data_space = header_space.split_off(HEADER_SIZE);
            let size = if data_space.is_empty() {
                // No packet fits: the guest gets it back as it is.
                0
            } else if let Some(size) = self.muxer.next_packet(&header_space, &data_space) {
                // At most 64 KiB and a header.
                u32::try_from(size).unwrap_or(u32::MAX)
            } else {
                queue.set_next_avail(queue.next_avail().wrapping_sub(1));
                break;
            };
            queue.add_used(memory, chain.head, size).map_err(broken)?;
            used = true;
            *left -= 1;
        }
        Ok(used)
    }
}

impl VirtioDevice for Vsock {
    fn name(&self) -> &'static str {
        "vsock"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | FEATURE_STREAM
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 3]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.guest_cid.to_le_bytes();
        let from = usize::try_from(offset).map_or(config.len(), |at| at.min(config.len()));
        let len = data.len().min(config.len() - from);
        data.fill(0);
        data[..len].copy_from_slice(&config[from..from + len]);
    }

    fn activate(&mut self, _features: u64) {}

    fn reset(&mut self) {
        self.muxer.reset();
    }

    fn queue_event(
        &mut self,
        index: u16,
        memory: &GuestMemoryMmap,
        queues: &mut Queues<'_>,
    ) -> Result<(), DeviceError> {
        if index == RX || index == TX {
            self.turn(memory, queues)?;
        }
        Ok(())
    }

    fn host_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.muxer.fd())
    }

    fn host_event(
        &mut self,
        memory: &GuestMemoryMmap,
        queues: &mut Queues<'_>,
    ) -> Result<(), DeviceError> {
        self.muxer.poll()?;
        self.turn(memory, queues)
    }
}
