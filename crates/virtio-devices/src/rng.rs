//! The entropy device (virtio 1.2, 5.4): fills the guest's buffers from the
//! host kernel's generator.

use crate::chain::Chain;
use crate::device::{DeviceError, Queues, VirtioDevice};
use crate::serve::{Answer, Turn, serve};
use crate::wakeup::Wakeup;
use rustix::rand::{GetRandomFlags, getrandom};
use std::io;
use std::os::fd::BorrowedFd;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::GuestMemoryMmap;

/// Most bytes for one chain. Linux asks for 32 to a few hundred; the driver
/// sees from the used length what it got.
const MAX_BYTES_PER_CHAIN: usize = 64 << 10;
/// Bytes taken from the host kernel at once: it fills up to 256 without being
/// interrupted, and a page is cheap on the stack.
const PIECE: usize = 4096;

/// The entropy device.
#[derive(Debug)]
pub struct Rng {
    wakeup: Wakeup,
}

impl Rng {
    /// A device that draws from getrandom(2).
    ///
    /// # Errors
    /// If the host has no entropy to give (getrandom is refused).
    pub fn new() -> io::Result<Rng> {
        let mut probe = [0; 1];
        getrandom(&mut probe, GetRandomFlags::empty())?;
        Ok(Rng {
            wakeup: Wakeup::new(),
        })
    }

    fn turn(
        &mut self,
        memory: &GuestMemoryMmap,
        queues: &mut Queues<'_>,
    ) -> Result<(), DeviceError> {
        let Some(queue) = queues.first_mut() else {
            return Ok(());
        };
        while serve(0, memory, *queue, |chain| fill(&chain))? == Turn::Spent {
            if self.wakeup.raise() {
                break;
            }
        }
        Ok(())
    }
}

/// Fills the writable part of a chain.
fn fill(chain: &Chain<'_>) -> Answer {
    let mut rest = chain.writable.clone();
    drop(rest.split_off(MAX_BYTES_PER_CHAIN));
    let mut done = 0;
    let mut piece = [0; PIECE];
    while !rest.is_empty() {
        let len = rest.len().min(PIECE);
        // It worked when the device was made. Should it fail all the same, the
        // used length says what the guest has; random is never faked.
        let Ok(got) = getrandom(&mut piece[..len], GetRandomFlags::empty()) else {
            break;
        };
        done += rest.copy_from(&piece[..got]);
        rest = rest.split_off(got);
    }
    Answer {
        // At most 64 KiB.
        written: u32::try_from(done).unwrap_or(0),
        moved: done,
    }
}

impl VirtioDevice for Rng {
    fn name(&self) -> &'static str {
        "rng"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, _features: u64) {}

    fn reset(&mut self) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Buffer, Harness};

    fn harness() -> Harness<Rng> {
        Harness::new(Rng::new().expect("a device"), 64, 4)
    }

    #[test]
    fn fills_what_the_driver_offers() {
        let mut harness = harness();
        let first = harness.allocate(5000);
        let second = harness.allocate(300);
        harness.rings[0]
            .push(&[Buffer::writable(first, 5000), Buffer::writable(second, 300)])
            .expect("room");
        harness.run(0).expect("the device works");
        assert_eq!(harness.rings[0].pop_used().map(|(_, len)| len), Some(5300));
        // Of 64 random bytes not all are the zeroes that were there.
        for addr in [first, first + 4936, second, second + 236] {
            assert_ne!(harness.load(addr, 64), [0; 64]);
        }
        assert_eq!(harness.load(second + 300, 8), [0; 8]);
    }

    #[test]
    fn a_huge_buffer_gets_a_part() {
        let mut harness = harness();
        let addr = harness.allocate(1 << 20);
        harness.rings[0]
            .push(&[Buffer::writable(addr, 1 << 20)])
            .expect("room");
        harness.run(0).expect("the device works");
        assert_eq!(
            harness.rings[0].pop_used().map(|(_, len)| len),
            Some(64 << 10)
        );
        assert_eq!(harness.load(addr + (64 << 10), 64), [0; 64]);
    }

    #[test]
    fn a_chain_without_room_gets_nothing() {
        let mut harness = harness();
        let addr = harness.store(&[1; 64]);
        harness.rings[0]
            .push(&[Buffer::readable(addr, 64)])
            .expect("room");
        harness.run(0).expect("the device works");
        assert_eq!(harness.rings[0].pop_used().map(|(_, len)| len), Some(0));
        assert_eq!(harness.load(addr, 64), [1; 64]);
    }
}
