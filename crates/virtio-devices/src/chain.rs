//! Descriptor chains, checked whole before a device looks at them.
//!
//! virtio-queue walks a chain and ends silently at the first fault in it. Here
//! a fault is an error, and every descriptor is translated at once, so that a
//! device holds two lists of slices of guest memory (virtio 1.2, 2.7.4.2: first
//! what the device reads, then what it writes) and no guest address at all.

use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::bitmap::BS;
use vm_memory::{GuestMemory, GuestMemoryMmap, Permissions, VolatileSlice};

use std::sync::atomic::Ordering;

/// Most descriptors in one chain. The driver is bound to the queue's size
/// (virtio 1.2, 2.7.5.2), which no device here sets higher.
pub(crate) const MAX_DESCRIPTORS: usize = 1024;

/// A piece of guest memory.
pub(crate) type Slice<'a> = VolatileSlice<'a, BS<'a, <GuestMemoryMmap as GuestMemory>::Bitmap>>;

/// Takes the next chain that the driver made available.
pub(crate) fn pop<'a>(
    queue: &mut Queue,
    memory: &'a GuestMemoryMmap,
) -> Result<Option<Chain<'a>>, Error> {
    if !queue.ready() {
        return Ok(None);
    }
    let available = queue.avail_idx(memory, Ordering::Acquire)?;
    if available.0 == queue.next_avail() {
        return Ok(None);
    }
    // There is a chain, so `None` is a ring that cannot be read or an index
    // that runs backwards. To call it "empty" would make a caller that looks
    // again after enabling notifications spin for ever.
    let chain = queue
        .iter(memory)?
        .next()
        .ok_or(Error::InvalidAvailRingIndex)?;
    Chain::parse(memory, chain).map(Some)
}

/// A well-formed descriptor chain.
#[derive(Debug)]
pub(crate) struct Chain<'a> {
    /// Index of the first descriptor: the chain's name in the used ring.
    pub(crate) head: u16,
    /// What the driver wrote for the device.
    pub(crate) readable: Buffers<'a>,
    /// What the device may write.
    pub(crate) writable: Buffers<'a>,
}

impl<'a> Chain<'a> {
    fn parse(
        memory: &'a GuestMemoryMmap,
        chain: DescriptorChain<&'a GuestMemoryMmap>,
    ) -> Result<Self, Error> {
        let head = chain.head_index();
        let mut readable = Vec::new();
        let mut writable = Vec::new();
        let mut writing = false;
        // The walk ends early, without saying so, at a loop, a bad index, a bad
        // indirect table or at 4 GiB in all; the last descriptor then still
        // promises another one.
        let mut promised = true;
        for (count, descriptor) in chain.enumerate() {
            if count == MAX_DESCRIPTORS {
                return Err(Error::InvalidChain);
            }
            promised = descriptor.has_next();
            if writing && !descriptor.is_write_only() {
                return Err(Error::InvalidChain);
            }
            writing = descriptor.is_write_only();
            let (list, access) = if writing {
                (&mut writable, Permissions::Write)
            } else {
                (&mut readable, Permissions::Read)
            };
            let len =
                usize::try_from(descriptor.len()).map_err(|_| Error::DescriptorChainOverflow)?;
            let slices = memory
                .get_slices(descriptor.addr(), len, access)
                .map_err(Error::GuestMemory)?;
            for slice in slices {
                list.push(slice.map_err(Error::GuestMemory)?);
            }
        }
        if promised {
            return Err(Error::InvalidChain);
        }
        Ok(Chain {
            head,
            readable: Buffers { slices: readable },
            writable: Buffers { slices: writable },
        })
    }
}

/// Guest memory in the order of a chain.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffers<'a> {
    slices: Vec<Slice<'a>>,
}

impl<'a> Buffers<'a> {
    /// Bytes in all; below 4 GiB.
    pub(crate) fn len(&self) -> usize {
        self.slices.iter().map(Slice::len).sum()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slices.iter().all(Slice::is_empty)
    }

    pub(crate) fn slices(&self) -> &[Slice<'a>] {
        &self.slices
    }

    /// Takes the bytes from `at` on; `self` keeps those before. Nothing is left
    /// to take past the end.
    pub(crate) fn split_off(&mut self, at: usize) -> Buffers<'a> {
        let mut before = at;
        for index in 0..self.slices.len() {
            let len = self.slices[index].len();
            if before >= len {
                before -= len;
                continue;
            }
            let mut rest = self.slices.split_off(index);
            // In range: `before` is smaller than this slice.
            if let Ok((front, back)) = rest[0].split_at(before) {
                rest[0] = back;
                if !front.is_empty() {
                    self.slices.push(front);
                }
            }
            return Buffers { slices: rest };
        }
        Buffers::default()
    }

    /// Copies the first bytes into `target`; the number copied is smaller than
    /// its length only if there are no more.
    pub(crate) fn copy_to(&self, target: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            if done == target.len() {
                break;
            }
            done += slice.copy_to(&mut target[done..]);
        }
        done
    }

    /// Copies `source` over the first bytes, as far as they go.
    pub(crate) fn copy_from(&self, source: &[u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            if done == source.len() {
                break;
            }
            let len = slice.len().min(source.len() - done);
            slice.copy_from(&source[done..done + len]);
            done += len;
        }
        done
    }

    /// Overwrites everything with zeroes.
    pub(crate) fn fill_zero(&self) {
        const ZEROES: [u8; 4096] = [0; 4096];
        for slice in &self.slices {
            let mut offset = 0;
            while let Ok(rest) = slice.offset(offset)
                && !rest.is_empty()
            {
                let len = rest.len().min(ZEROES.len());
                rest.copy_from(&ZEROES[..len]);
                offset += len;
            }
        }
    }
}
