//! Which part of a bay's address space belongs to whom.

use std::collections::BTreeMap;

/// Extents start at multiples of this: file systems and discard like it, and a
/// partition shows no odd alignment.
pub(super) const EXTENT_ALIGN: u64 = 1 << 20;

/// A part of a bay's address space, in bytes; both are multiples of 512.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// The extents in use, by address.
#[derive(Debug)]
pub(super) struct AddressSpace<T> {
    capacity: u64,
    used: BTreeMap<u64, Used<T>>,
}

#[derive(Debug)]
struct Used<T> {
    length: u64,
    /// Bytes kept for it: at least its length.
    reserved: u64,
    value: T,
}

impl<T> AddressSpace<T> {
    /// An empty address space of `capacity` bytes.
    pub(super) fn new(capacity: u64) -> Self {
        AddressSpace {
            capacity,
            used: BTreeMap::new(),
        }
    }

    /// Its bytes.
    pub(super) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Gives `value` `length` bytes in the first gap that holds them and room to
    /// grow to `room` bytes in all. `None` if there is no such gap.
    pub(super) fn insert(&mut self, length: u64, room: u64, value: T) -> Option<Extent> {
        let reserved = room.max(length);
        let mut offset = 0u64;
        for (&start, used) in &self.used {
            if start.checked_sub(offset).is_some_and(|gap| gap >= reserved) {
                break;
            }
            offset = (start + used.reserved).checked_next_multiple_of(EXTENT_ALIGN)?;
        }
        if offset.checked_add(reserved)? > self.capacity {
            return None;
        }
        let used = Used {
            length,
            reserved,
            value,
        };
        self.used.insert(offset, used);
        Some(Extent { offset, length })
    }

    /// Frees the extent that starts at `offset`.
    pub(super) fn remove(&mut self, offset: u64) -> Option<T> {
        self.used.remove(&offset).map(|used| used.value)
    }

    /// Changes the length of the extent that starts at `offset`. `None` if there is
    /// none or it has no room for that.
    pub(super) fn resize(&mut self, offset: u64, length: u64) -> Option<Extent> {
        let used = self.used.get_mut(&offset)?;
        if length > used.reserved {
            return None;
        }
        used.length = length;
        Some(Extent { offset, length })
    }

    /// The extent that holds all of `length` bytes at `offset`.
    pub(super) fn find(&self, offset: u64, length: u64) -> Option<(Extent, &T)> {
        let end = offset.checked_add(length)?;
        let (&start, used) = self.used.range(..=offset).next_back()?;
        // Cannot overflow: it was within the capacity when it was inserted.
        (end <= start + used.length).then_some((
            Extent {
                offset: start,
                length: used.length,
            },
            &used.value,
        ))
    }

    /// All extents, by address.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Extent, &T)> {
        self.used.iter().map(|(&offset, used)| {
            (
                Extent {
                    offset,
                    length: used.length,
                },
                &used.value,
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn extents_are_aligned() {
        let mut space = AddressSpace::new(16 * MIB);
        let first = space.insert(4096, 0, "a").expect("room");
        let second = space.insert(MIB + 4096, 0, "b").expect("room");
        let third = space.insert(4096, 0, "c").expect("room");
        assert_eq!((first.offset, first.length), (0, 4096));
        assert_eq!((second.offset, second.length), (MIB, MIB + 4096));
        assert_eq!((third.offset, third.length), (3 * MIB, 4096));
    }

    #[test]
    fn reuses_the_first_gap_that_fits() {
        let mut space = AddressSpace::new(16 * MIB);
        for _ in 0..4 {
            space.insert(2 * MIB, 0, ()).expect("room");
        }
        space.remove(2 * MIB).expect("was there");
        assert_eq!(space.insert(3 * MIB, 0, ()).expect("room").offset, 8 * MIB);
        assert_eq!(space.insert(2 * MIB, 0, ()).expect("room").offset, 2 * MIB);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let mut space = AddressSpace::new(4 * MIB);
        assert!(space.insert(4 * MIB + 1, 0, ()).is_none());
        assert!(space.insert(u64::MAX, 0, ()).is_none());
        assert!(space.insert(4 * MIB, 0, ()).is_some());
        assert!(space.insert(1, 0, ()).is_none());
    }

    #[test]
    fn finds_only_what_lies_in_one_extent() {
        let mut space = AddressSpace::new(4 * MIB);
        space.insert(MIB, 0, "a").expect("room");
        space.insert(MIB, 0, "b").expect("room");
        assert_eq!(space.find(0, MIB).map(|(_, v)| *v), Some("a"));
        assert_eq!(space.find(MIB, 512).map(|(_, v)| *v), Some("b"));
        assert!(space.find(MIB - 512, 1024).is_none());
        assert!(space.find(2 * MIB, 512).is_none());
        assert!(space.find(u64::MAX, 512).is_none());
    }

    #[test]
    fn an_extent_grows_into_its_room_and_no_further() {
        let mut space = AddressSpace::new(8 * MIB);
        let first = space.insert(MIB, 3 * MIB, "a").expect("room");
        let second = space.insert(MIB, 0, "b").expect("room");
        assert_eq!((first.length, second.offset), (MIB, 3 * MIB));
        assert!(space.find(2 * MIB, 512).is_none(), "not yet its");
        let grown = space.resize(0, 3 * MIB).expect("room");
        assert_eq!((grown.offset, grown.length), (0, 3 * MIB));
        assert_eq!(space.find(2 * MIB, MIB).map(|(_, v)| *v), Some("a"));
        assert!(space.resize(0, 3 * MIB + 512).is_none());
        assert!(space.resize(3 * MIB, 2 * MIB).is_none(), "has no room");
        assert!(space.resize(MIB, 512).is_none(), "no extent");
        assert!(space.insert(MIB, 5 * MIB, "c").is_none(), "no such room");
    }

    proptest! {
        #[test]
        fn extents_never_overlap(ops in prop::collection::vec((any::<bool>(), 1..6 * MIB), 1..60)) {
            let mut space = AddressSpace::new(32 * MIB);
            let mut held = Vec::new();
            for (remove, number) in ops {
                if remove && !held.is_empty() {
                    let at = usize::try_from(number).unwrap_or(0) % held.len();
                    let extent: Extent = held.swap_remove(at);
                    prop_assert!(space.remove(extent.offset).is_some());
                } else if let Some(extent) = space.insert(number, 0, ()) {
                    prop_assert!(extent.length >= number);
                    held.push(extent);
                }
                held.sort_by_key(|extent| extent.offset);
                for pair in held.windows(2) {
                    prop_assert!(pair[0].offset + pair[0].length <= pair[1].offset);
                }
                for extent in &held {
                    prop_assert_eq!(extent.offset % EXTENT_ALIGN, 0);
                    prop_assert!(extent.offset + extent.length <= 32 * MIB);
                }
                prop_assert_eq!(space.iter().map(|(e, ())| e).collect::<Vec<_>>(), held.clone());
            }
        }
    }
}
