//! Guest memory: where RAM lies, and its mapping into the VM.
//!
//! RAM below the hole that ends at 4 GiB starts at 0; what does not fit lies
//! from 4 GiB on. The hole holds the interrupt controllers and virtio windows.
#![expect(unsafe_code)]
// UNSAFETY: KVM maps this process's memory into the guest by address.

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Where the hole for devices starts: RAM below it is "low memory".
pub(super) const HOLE_START: u64 = 3 << 30;
/// Where RAM goes on above the hole.
pub(super) const HOLE_END: u64 = 4 << 30;

/// Guest memory could not be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum MemoryError {
    /// More than an address space holds.
    #[error("{mib} MiB of guest memory do not fit this host's address space")]
    TooLarge {
        /// What was asked for.
        mib: u64,
    },
    /// The mapping failed.
    #[error("cannot map {mib} MiB of guest memory; give the VM less")]
    Map {
        /// What was asked for.
        mib: u64,
        /// What mmap said.
        #[source]
        source: vm_memory::mmap::FromRangesError,
    },
    /// KVM refused the slot.
    #[error("KVM refuses the memory slot at {gpa:#x} of {bytes} bytes")]
    Slot {
        /// Guest physical address.
        gpa: u64,
        /// Length of the slot.
        bytes: u64,
        /// What KVM said.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// Address ranges (start, length in bytes) of `mib` MiB of RAM.
pub(super) fn ranges(mib: u64) -> Result<Vec<(GuestAddress, usize)>, MemoryError> {
    let too_large = || MemoryError::TooLarge { mib };
    let bytes = mib.checked_mul(1 << 20).ok_or_else(too_large)?;
    let length = |n: u64| usize::try_from(n).map_err(|_| too_large());
    let mut ranges = vec![(GuestAddress(0), length(bytes.min(HOLE_START))?)];
    if bytes > HOLE_START {
        let high = bytes - HOLE_START;
        HOLE_END.checked_add(high).ok_or_else(too_large)?;
        ranges.push((GuestAddress(HOLE_END), length(high)?));
    }
    Ok(ranges)
}

/// Maps `mib` MiB of memory that costs nothing until the guest touches it.
pub(super) fn allocate(mib: u64) -> Result<GuestMemoryMmap, MemoryError> {
    GuestMemoryMmap::from_ranges(&ranges(mib)?).map_err(|source| MemoryError::Map { mib, source })
}

/// Makes each region of `memory` a slot of the VM, numbered from `first_slot`.
///
/// The caller keeps `memory` mapped for as long as a vCPU of `vm` may run.
pub(super) fn register(
    vm: &VmFd,
    memory: &GuestMemoryMmap,
    first_slot: u32,
) -> Result<(), MemoryError> {
    for (slot, region) in (first_slot..).zip(memory.iter()) {
        let gpa = region.start_addr().raw_value();
        let bytes = region.len();
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: gpa,
            memory_size: bytes,
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the address range is a mapping of exactly this length, which
        // `memory` owns; the engine drops it after the VM's last vCPU.
        unsafe { vm.set_user_memory_region(slot) }.map_err(|source| MemoryError::Slot {
            gpa,
            bytes,
            source,
        })?;
    }
    Ok(())
}

/// End of the low memory: the address after its last byte.
pub(super) fn low_end(memory: &GuestMemoryMmap) -> u64 {
    memory
        .iter()
        .map(|region| region.start_addr().raw_value() + region.len())
        .filter(|&end| end <= HOLE_START)
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_up_to_the_hole_is_one_range() {
        assert_eq!(ranges(48).unwrap(), [(GuestAddress(0), 48 << 20)]);
        assert_eq!(ranges(3072).unwrap(), [(GuestAddress(0), 3 << 30)]);
    }

    #[test]
    fn memory_beyond_the_hole_goes_on_above_it() {
        let split = [
            (GuestAddress(0), 3 << 30),
            (GuestAddress(HOLE_END), 1 << 20),
        ];
        assert_eq!(ranges(3073).unwrap(), split);
    }

    #[test]
    fn sizes_past_the_address_space_are_refused() {
        assert!(matches!(
            ranges(u64::MAX),
            Err(MemoryError::TooLarge { .. })
        ));
        assert!(matches!(
            ranges(u64::MAX >> 20),
            Err(MemoryError::TooLarge { .. })
        ));
    }

    #[test]
    fn large_memory_costs_nothing_until_touched() {
        let memory = allocate(64 << 10).unwrap();
        assert_eq!(low_end(&memory), HOLE_START);
        assert_eq!(memory.iter().count(), 2);
    }
}
