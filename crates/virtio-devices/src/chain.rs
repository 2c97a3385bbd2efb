//! Descriptor chains, checked whole before a device looks at them.
//!
//! virtio-queue walks a chain and ends silently at the first fault in it. Here
//! a fault is an error, and every descriptor is translated at once, so that a
//! device holds two lists of slices of guest memory (virtio 1.2, 2.7.4.2: first
//! what the device reads, then what it writes) and no guest address at all.

use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::bitmap::BS;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions, VolatileSlice};

use std::sync::atomic::Ordering;

/// Most descriptors in one chain. The driver is bound to the queue's size
/// (virtio 1.2, 2.7.5.3.1), which no device here sets higher; QEMU's virtio-mmio
/// lets every driver have 1024 entries.
pub(crate) const MAX_DESCRIPTORS: usize = 1024;

/// A piece of guest memory.
pub(crate) type Slice<'a> = VolatileSlice<'a, BS<'a, <GuestMemoryMmap as GuestMemory>::Bitmap>>;

/// Takes the next chain that the driver made available.
pub(crate) fn pop<'a>(
    queue: &mut Queue,
    memory: &'a GuestMemoryMmap,
) -> Result<Option<Chain<'a>>, Error> {
    match pop_raw(queue, memory)? {
        Some(raw) => raw.resolve(memory).map(Some),
        None => Ok(None),
    }
}

/// As [`pop`], for a device that may keep the chain for later.
pub(crate) fn pop_raw(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
) -> Result<Option<RawChain>, Error> {
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
    RawChain::parse(chain).map(Some)
}

/// A chain with its order checked, its addresses not translated: they may be
/// translated anew when guest memory is mapped elsewhere.
#[derive(Debug)]
pub(crate) struct RawChain {
    /// Index of the first descriptor: the chain's name in the used ring.
    pub(crate) head: u16,
    segments: Vec<Segment>,
}

#[derive(Debug)]
struct Segment {
    addr: GuestAddress,
    len: usize,
    writable: bool,
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

impl RawChain {
    fn parse(chain: DescriptorChain<&GuestMemoryMmap>) -> Result<Self, Error> {
        let head = chain.head_index();
        let mut segments = Vec::new();
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
            segments.push(Segment {
                addr: descriptor.addr(),
                len: usize::try_from(descriptor.len())
                    .map_err(|_| Error::DescriptorChainOverflow)?,
                writable: writing,
            });
        }
        if promised {
            return Err(Error::InvalidChain);
        }
        Ok(RawChain { head, segments })
    }

    /// The guest memory that the chain names.
    pub(crate) fn resolve<'a>(&self, memory: &'a GuestMemoryMmap) -> Result<Chain<'a>, Error> {
        let mut readable = Vec::new();
        let mut writable = Vec::new();
        for segment in &self.segments {
            let (list, access) = if segment.writable {
                (&mut writable, Permissions::Write)
            } else {
                (&mut readable, Permissions::Read)
            };
            let slices = memory
                .get_slices(segment.addr, segment.len, access)
                .map_err(Error::GuestMemory)?;
            for slice in slices {
                list.push(slice.map_err(Error::GuestMemory)?);
            }
        }
        Ok(Chain {
            head: self.head,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::VirtQueue;
    use crate::testing::{Buffer, Harness, INDIRECT, NEXT, WRITE};
    use crate::{Rng, VirtioDevice};
    use proptest::prelude::*;
    use vm_memory::Bytes;

    const SIZE: u16 = 8;
    const DATA: u64 = 2 << 20;

    /// Some device's first queue: what is tested is the queue.
    fn harness() -> Harness<Rng> {
        let device = Rng::new().expect("a device");
        assert_eq!(device.queue_sizes().len(), 1);
        Harness::new(device, SIZE, 4)
    }

    /// The lengths of the next chain's halves.
    fn parse(harness: &mut Harness<Rng>) -> Result<Option<(usize, usize)>, Error> {
        let chain = pop(harness.queues[0].queue(), &harness.memory)?;
        Ok(chain.map(|chain| (chain.readable.len(), chain.writable.len())))
    }

    /// One descriptor for each entry, offered as a chain that begins at 0.
    fn parse_raw(entries: &[(u64, u32, u16, u16)]) -> Result<Option<(usize, usize)>, Error> {
        let mut harness = harness();
        for (index, &(addr, len, flags, next)) in (0..).zip(entries) {
            harness.rings[0].write_descriptor(index, addr, len, flags, next);
        }
        harness.rings[0].offer(0);
        parse(&mut harness)
    }

    #[test]
    fn an_empty_ring_has_no_chain() {
        assert!(matches!(parse(&mut harness()), Ok(None)));
    }

    #[test]
    fn a_queue_that_is_not_ready_has_no_chain() {
        let mut harness = harness();
        harness.rings[0]
            .push(&[Buffer::readable(DATA, 16)])
            .expect("room");
        harness.queues[0].queue().set_ready(false);
        assert!(matches!(parse(&mut harness), Ok(None)));
    }

    #[test]
    fn a_chain_is_split_by_direction() {
        let mut harness = harness();
        harness.rings[0]
            .push(&[
                Buffer::readable(DATA, 16),
                Buffer::readable(DATA, 0),
                Buffer::writable(DATA + 64, 100),
                Buffer::writable(DATA + 512, 1),
            ])
            .expect("room");
        assert!(matches!(parse(&mut harness), Ok(Some((16, 101)))));
    }

    #[test]
    fn an_indirect_table_is_followed() {
        let mut harness = harness();
        let table = harness.allocate(4096);
        harness.rings[0]
            .push_indirect(
                table,
                &[Buffer::readable(DATA, 16), Buffer::writable(DATA, 512)],
            )
            .expect("room");
        assert!(matches!(parse(&mut harness), Ok(Some((16, 512)))));
    }

    #[test]
    fn loops_are_refused() {
        assert!(parse_raw(&[(DATA, 1, NEXT, 0)]).is_err());
        assert!(parse_raw(&[(DATA, 1, NEXT, 1), (DATA, 1, NEXT, 0)]).is_err());
    }

    #[test]
    fn indices_past_the_table_are_refused() {
        assert!(parse_raw(&[(DATA, 1, NEXT, SIZE)]).is_err());
        let mut harness = harness();
        harness.rings[0].offer(SIZE);
        assert!(parse(&mut harness).is_err());
    }

    #[test]
    fn memory_that_is_not_there_is_refused() {
        assert!(parse_raw(&[(4 << 20, 1, 0, 0)]).is_err());
        assert!(parse_raw(&[((4 << 20) - 1, 2, 0, 0)]).is_err());
        assert!(parse_raw(&[(u64::MAX, 2, WRITE, 0)]).is_err());
        assert!(parse_raw(&[(DATA, u32::MAX, WRITE, 0)]).is_err());
        assert!(matches!(
            parse_raw(&[((4 << 20) - 1, 1, 0, 0)]),
            Ok(Some((1, 0)))
        ));
    }

    #[test]
    fn reading_after_writing_is_refused() {
        assert!(parse_raw(&[(DATA, 1, WRITE | NEXT, 1), (DATA, 1, 0, 0)]).is_err());
    }

    #[test]
    fn bad_indirect_tables_are_refused() {
        // No whole descriptors; none at all; not in memory.
        assert!(parse_raw(&[(DATA, 17, INDIRECT, 0)]).is_err());
        assert!(parse_raw(&[(DATA, 0, INDIRECT, 0)]).is_err());
        assert!(parse_raw(&[(4 << 20, 16, INDIRECT, 0)]).is_err());
        // A table in a table: the memory at DATA is all zeroes but for this.
        let mut harness = harness();
        let table = harness.allocate(64);
        let nested = harness.allocate(64);
        harness.rings[0].write_descriptor(0, table, 16, INDIRECT, 0);
        for (at, word) in [(0, nested), (8, 16 | u64::from(INDIRECT) << 32)] {
            harness
                .memory
                .write_obj(word, GuestAddress(table + at))
                .expect("in memory");
        }
        harness.rings[0].offer(0);
        assert!(parse(&mut harness).is_err());
    }

    #[test]
    fn more_descriptors_than_any_driver_may_use_are_refused() {
        for (count, accepted) in [(MAX_DESCRIPTORS, true), (MAX_DESCRIPTORS + 1, false)] {
            let mut harness = harness();
            let table = harness.allocate(64 << 10);
            let buffers = vec![Buffer::readable(DATA, 1); count];
            harness.rings[0]
                .push_indirect(table, &buffers)
                .expect("room");
            assert_eq!(parse(&mut harness).is_ok(), accepted);
        }
    }

    #[test]
    fn an_available_index_that_jumps_is_refused() {
        let mut harness = harness();
        harness.rings[0].set_available_index(SIZE + 1);
        assert!(parse(&mut harness).is_err());
        harness.rings[0].set_available_index(u16::MAX);
        assert!(parse(&mut harness).is_err());
    }

    #[test]
    fn the_available_index_wraps() {
        let mut harness = harness();
        for _ in 0..70_000 {
            harness.rings[0]
                .push(&[Buffer::writable(DATA, 1)])
                .expect("room");
            harness.kick(0).expect("the device works");
            harness.rings[0].pop_used().expect("an answer");
        }
    }

    proptest! {
        #[test]
        fn pieces_are_the_whole(
            lens in prop::collection::vec(0..20u32, 1..6),
            cut in 0..120usize,
        ) {
            let mut harness = harness();
            let total: u32 = lens.iter().sum();
            let bytes: Vec<u8> = (0..).take(total as usize).collect();
            let addr = harness.store(&bytes);
            let mut at = addr;
            let buffers: Vec<_> = lens.iter().map(|&len| {
                at += u64::from(len);
                Buffer::writable(at - u64::from(len), len)
            }).collect();
            harness.rings[0].push(&buffers).expect("room");
            let chain = pop(harness.queues[0].queue(), &harness.memory)
                .expect("well-formed").expect("a chain");
            let mut front = chain.writable;
            let back = front.split_off(cut);
            let cut = cut.min(bytes.len());
            prop_assert_eq!(front.len(), cut);
            prop_assert_eq!(back.is_empty(), cut == bytes.len());
            let mut found = vec![0; bytes.len() + 1];
            prop_assert_eq!(front.copy_to(&mut found), cut);
            prop_assert_eq!(back.copy_to(&mut found[cut..]), bytes.len() - cut);
            prop_assert_eq!(&found[..bytes.len()], &bytes[..]);
            // And back into memory.
            let other: Vec<u8> = bytes.iter().map(|byte| !byte).collect();
            prop_assert_eq!(front.copy_from(&other), cut);
            back.fill_zero();
            let mut expected = other[..cut].to_vec();
            expected.resize(bytes.len(), 0);
            prop_assert_eq!(harness.load(addr, bytes.len()), expected);
        }
    }
}
