//! CMPXCHG16B on guest memory, as one atomic access of this processor.
#![expect(unsafe_code)]
// UNSAFETY: std has no stable 128-bit atomics.

use std::arch::asm;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Replaces `expected` at physical address `at` (a multiple of 16) by `new`;
/// returns what was there. `None` where there is no RAM, or if this processor
/// has no such instruction.
pub(super) fn compare_exchange(
    memory: &GuestMemoryMmap,
    at: u64,
    expected: u128,
    new: u128,
) -> Option<u128> {
    if !std::arch::is_x86_feature_detected!("cmpxchg16b") || !at.is_multiple_of(16) {
        return None;
    }
    let slice = memory.get_slice(GuestAddress(at), 16).ok()?;
    let guard = slice.ptr_guard_mut();
    let target = guard.as_ptr().cast::<u128>();
    // SAFETY: the feature is there; the guard keeps 16 bytes of a mapping of
    // guest memory alive; regions start at page borders, so the address is
    // aligned; others access guest memory as volatile or atomically only.
    Some(unsafe { exchange(target, expected, new) })
}

/// One locked CMPXCHG16B.
///
/// # Safety
/// `target` is valid for reads and writes and a multiple of 16; the processor
/// has the instruction.
unsafe fn exchange(target: *mut u128, expected: u128, new: u128) -> u128 {
    let [mut low, mut high] = halves(expected);
    let [new_low, new_high] = halves(new);
    // SAFETY: as the caller promises. The compiler keeps RBX for itself, so it
    // is swapped in and out.
    unsafe {
        asm!(
            "xchg {new_low}, rbx",
            "lock cmpxchg16b [{target}]",
            "mov rbx, {new_low}",
            new_low = inout(reg) new_low => _,
            target = in(reg) target,
            inout("rax") low,
            inout("rdx") high,
            in("rcx") new_high,
            options(nostack),
        );
    }
    u128::from(high) << 64 | u128::from(low)
}

/// Low and high 64 bits.
pub(super) fn halves(value: u128) -> [u64; 2] {
    let bytes = value.to_le_bytes();
    [0, 8].map(|at| {
        let mut half = [0; 8];
        half.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(half)
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::memory::allocate;
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn exchanges_only_what_was_expected() {
        let memory = allocate(1).unwrap();
        let at = GuestAddress(0x100);
        memory.write_obj(7u128, at).unwrap();
        assert_eq!(compare_exchange(&memory, at.0, 6, 9), Some(7));
        assert_eq!(memory.read_obj::<u128>(at).unwrap(), 7);
        assert_eq!(compare_exchange(&memory, at.0, 7, u128::MAX), Some(7));
        assert_eq!(memory.read_obj::<u128>(at).unwrap(), u128::MAX);
    }

    #[test]
    fn refuses_what_it_cannot_reach() {
        let memory = allocate(1).unwrap();
        assert_eq!(compare_exchange(&memory, 0x108, 0, 0), None);
        assert_eq!(compare_exchange(&memory, 1 << 20, 0, 0), None);
    }
}
