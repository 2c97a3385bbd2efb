//! Used descriptors that the driver has to see all at once: a frame over several
//! buffers needs "a single update of the used index" (virtio 1.2, 5.1.6.4.1),
//! which virtio-queue has no call for.

use crate::device::{DeviceError, VirtQueue};
use std::sync::atomic::{Ordering, fence};
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Bytes before the elements of both rings, and of each element.
const RING_HEADER: u64 = 4;
const USED_ELEMENT: u64 = 8;
const AVAILABLE_ELEMENT: u64 = 2;

/// A used chain: head and bytes written.
pub(super) type Done = (u16, u32);

/// Makes `done` visible to the driver, all or nothing.
pub(super) fn publish(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    done: &[Done],
) -> Result<(), Error> {
    let Some((&(head, len), before)) = done.split_last() else {
        return Ok(());
    };
    let first = queue.next_used();
    let mut at = first;
    for &(head, len) in before {
        let slot = u64::from(at % queue.size());
        let address = queue
            .used_ring()
            .checked_add(RING_HEADER + USED_ELEMENT * slot)
            .ok_or(Error::AddressOverflow)?;
        let element = u64::from(head) | u64::from(len) << 32;
        memory
            .write_obj(element.to_le(), GuestAddress(address))
            .map_err(Error::GuestMemory)?;
        at = at.wrapping_add(1);
    }
    queue.set_next_used(at);
    // Its store of the index is what releases the elements before.
    queue.add_used(memory, head, len)
}

/// Interrupts the guest if it wants to hear of what was used since `old`.
pub(super) fn signal(
    index: u16,
    queue: &mut dyn VirtQueue,
    memory: &GuestMemoryMmap,
    old: u16,
) -> Result<(), DeviceError> {
    let wanted = wants(queue.queue(), memory, old).map_err(|source| DeviceError::Queue {
        queue: index,
        source,
    })?;
    if wanted {
        queue.interrupt()?;
    }
    Ok(())
}

/// virtio 1.2, 2.7.10.1.
fn wants(queue: &Queue, memory: &GuestMemoryMmap, old: u16) -> Result<bool, Error> {
    let new = queue.next_used();
    if new == old {
        return Ok(false);
    }
    // The driver's wish is read after the used index was written.
    fence(Ordering::SeqCst);
    if !queue.event_idx_enabled() {
        let flags: u16 = memory
            .load(GuestAddress(queue.avail_ring()), Ordering::Relaxed)
            .map_err(Error::GuestMemory)?;
        return Ok(u16::from_le(flags) & 1 == 0);
    }
    let address = queue
        .avail_ring()
        .checked_add(RING_HEADER + AVAILABLE_ELEMENT * u64::from(queue.size()))
        .ok_or(Error::AddressOverflow)?;
    let event: u16 = memory
        .load(GuestAddress(address), Ordering::Relaxed)
        .map_err(Error::GuestMemory)?;
    let event = u16::from_le(event);
    Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
}
