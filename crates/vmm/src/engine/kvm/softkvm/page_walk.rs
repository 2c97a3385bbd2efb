//! Guest virtual addresses as the processor would translate them (Intel SDM
//! volume 3, 4.5), for 64-bit guests: permissions, accessed and dirty bits,
//! page faults.

use kvm_bindings::kvm_sregs;
use std::sync::atomic::{AtomicU64, Ordering};
use vm_memory::VolatileMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap};

const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_LA57: u64 = 1 << 12;
const CR4_SMAP: u64 = 1 << 21;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;
const RFLAGS_AC: u64 = 1 << 18;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// Physical address bits of an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const PAGE: u64 = 4096;

/// Bits of a page fault's error code.
const FAULT_PRESENT: u32 = 1;
const FAULT_WRITE: u32 = 1 << 1;
const FAULT_USER: u32 = 1 << 2;
const FAULT_RESERVED: u32 = 1 << 3;
const FAULT_FETCH: u32 = 1 << 4;

/// What an instruction does with an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Reads data.
    Read,
    /// Writes data.
    Write,
    /// Reads an instruction.
    Fetch,
}

/// Why an address cannot be used.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum WalkError {
    /// To be injected as #PF.
    #[error("page fault at {address:#x}, error code {error_code:#x}")]
    PageFault {
        /// For CR2.
        address: u64,
        /// Error code of the exception.
        error_code: u32,
    },
    /// To be injected as #GP(0).
    #[error("address {0:#x} is not canonical")]
    NotCanonical(u64),
    /// The vCPU is not in 64-bit mode with paging.
    #[error("the vCPU is not in 64-bit mode")]
    Mode,
    /// Page table or operand lie where no RAM is.
    #[error("no guest memory at physical address {0:#x}")]
    NoMemory(u64),
    /// Other CPUs change the tables all the time.
    #[error("page tables of {0:#x} change during every walk")]
    Unstable(u64),
    /// Guest memory.
    #[error("cannot access guest memory")]
    Memory(#[from] GuestMemoryError),
}

/// The registers that decide a translation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paging {
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    user: bool,
    alignment_check: bool,
}

impl Paging {
    /// As the vCPU has them.
    pub(super) fn of(sregs: &kvm_sregs, rflags: u64) -> Self {
        Self {
            cr0: sregs.cr0,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            efer: sregs.efer,
            user: sregs.cs.selector & 3 == 3,
            alignment_check: rflags & RFLAGS_AC != 0,
        }
    }

    fn levels(&self) -> u32 {
        if self.cr4 & CR4_LA57 == 0 { 4 } else { 5 }
    }
}

/// One step of a walk: where the entry lies, and what it was.
#[derive(Clone, Copy)]
struct Step {
    at: u64,
    entry: u64,
}

/// Guest memory as seen through page tables.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    memory: &'a GuestMemoryMmap,
    paging: Paging,
}

impl<'a> View<'a> {
    /// `memory` through the tables that `paging` names.
    pub(super) fn new(memory: &'a GuestMemoryMmap, paging: Paging) -> Self {
        Self { memory, paging }
    }

    /// The physical address of `address`; sets accessed and dirty bits.
    pub(super) fn translate(&self, address: u64, access: Access) -> Result<u64, WalkError> {
        if self.paging.cr0 & CR0_PG == 0 || self.paging.efer & EFER_LMA == 0 {
            return Err(WalkError::Mode);
        }
        let spare = 64 - (12 + 9 * self.paging.levels());
        if (address << spare).cast_signed() >> spare != address.cast_signed() {
            return Err(WalkError::NotCanonical(address));
        }
        // An entry that another vCPU changes meanwhile means: walk again.
        for _ in 0..64 {
            if let Some(physical) = self.walk(address, access)? {
                return Ok(physical);
            }
        }
        Err(WalkError::Unstable(address))
    }

    /// One walk; `None` if an entry changed under it.
    fn walk(&self, address: u64, access: Access) -> Result<Option<u64>, WalkError> {
        let mut steps = [Step { at: 0, entry: 0 }; 5];
        let mut count = 0;
        let mut table = self.paging.cr3 & ADDRESS;
        let mut rights = WRITABLE | USER;
        let mut no_execute = false;
        let mut level = self.paging.levels();
        let page_bits = loop {
            let shift = 12 + 9 * (level - 1);
            let at = table + (address >> shift & 0x1ff) * 8;
            let entry = self.with_entry(at, |entry| entry.load(Ordering::SeqCst))?;
            if entry & PRESENT == 0 {
                return Err(self.fault(address, access, 0));
            }
            let reserved = entry & LARGE != 0 && level > 3
                || entry & NO_EXECUTE != 0 && self.paging.efer & EFER_NXE == 0;
            if reserved {
                return Err(self.fault(address, access, FAULT_PRESENT | FAULT_RESERVED));
            }
            rights &= entry;
            no_execute |= entry & NO_EXECUTE != 0;
            steps[count] = Step { at, entry };
            count += 1;
            if level == 1 || entry & LARGE != 0 {
                break shift;
            }
            table = entry & ADDRESS;
            level -= 1;
        };
        if !self.allows(rights, no_execute, access) {
            return Err(self.fault(address, access, FAULT_PRESENT));
        }
        if !self.mark(&steps[..count], access)? {
            return Ok(None);
        }
        let offset_mask = (1u64 << page_bits) - 1;
        let frame = steps[count - 1].entry & ADDRESS & !offset_mask;
        Ok(Some(frame | address & offset_mask))
    }

    fn allows(&self, rights: u64, no_execute: bool, access: Access) -> bool {
        let user_page = rights & USER != 0;
        if self.paging.user && !user_page {
            return false;
        }
        let smap = self.paging.cr4 & CR4_SMAP != 0 && !self.paging.alignment_check;
        if !self.paging.user && user_page && smap && access != Access::Fetch {
            return false;
        }
        match access {
            Access::Read => true,
            Access::Write => {
                let ignores = !self.paging.user && self.paging.cr0 & CR0_WP == 0;
                rights & WRITABLE != 0 || ignores
            }
            Access::Fetch => !no_execute,
        }
    }

    /// Sets accessed and dirty bits; false if an entry changed meanwhile.
    fn mark(&self, steps: &[Step], access: Access) -> Result<bool, WalkError> {
        for (index, step) in steps.iter().enumerate() {
            let leaf = index + 1 == steps.len();
            let dirty = if leaf && access == Access::Write {
                DIRTY
            } else {
                0
            };
            let wanted = step.entry | ACCESSED | dirty;
            if wanted == step.entry {
                continue;
            }
            let swapped = self.with_entry(step.at, |entry| {
                entry.compare_exchange(step.entry, wanted, Ordering::SeqCst, Ordering::SeqCst)
            })?;
            if swapped.is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn fault(&self, address: u64, access: Access, mut error_code: u32) -> WalkError {
        if access == Access::Write {
            error_code |= FAULT_WRITE;
        }
        if access == Access::Fetch && self.paging.efer & EFER_NXE != 0 {
            error_code |= FAULT_FETCH;
        }
        if self.paging.user {
            error_code |= FAULT_USER;
        }
        WalkError::PageFault {
            address,
            error_code,
        }
    }

    /// Gives `act` the entry of a page table at physical address `at`.
    fn with_entry<R>(&self, at: u64, act: impl FnOnce(&AtomicU64) -> R) -> Result<R, WalkError> {
        let slice = self
            .memory
            .get_slice(GuestAddress(at), 8)
            .map_err(|_| WalkError::NoMemory(at))?;
        let entry = slice
            .get_atomic_ref::<AtomicU64>(0)
            .map_err(|_| WalkError::NoMemory(at))?;
        Ok(act(entry))
    }

    /// Splits at page borders and translates each piece first, so that a fault
    /// comes before any byte has moved.
    fn pieces(
        &self,
        address: u64,
        length: usize,
        access: Access,
    ) -> Result<Vec<(GuestAddress, usize)>, WalkError> {
        let mut pieces = Vec::new();
        let mut at = address;
        let mut left = length;
        while left > 0 {
            let physical = self.translate(at, access)?;
            let in_page = usize::try_from(PAGE - at % PAGE).unwrap_or(left);
            let piece = in_page.min(left);
            if !self.memory.check_range(GuestAddress(physical), piece) {
                return Err(WalkError::NoMemory(physical));
            }
            pieces.push((GuestAddress(physical), piece));
            at = at.wrapping_add(piece as u64);
            left -= piece;
        }
        Ok(pieces)
    }

    /// Reads `data.len()` bytes from `address`.
    pub(super) fn read(
        &self,
        address: u64,
        data: &mut [u8],
        access: Access,
    ) -> Result<(), WalkError> {
        let mut rest = data;
        for (at, length) in self.pieces(address, rest.len(), access)? {
            let (piece, tail) = rest.split_at_mut(length);
            self.memory.read_slice(piece, at)?;
            rest = tail;
        }
        Ok(())
    }

    /// Writes `data` to `address`.
    pub(super) fn write(&self, address: u64, data: &[u8]) -> Result<(), WalkError> {
        let mut rest = data;
        for (at, length) in self.pieces(address, rest.len(), Access::Write)? {
            let (piece, tail) = rest.split_at(length);
            self.memory.write_slice(piece, at)?;
            rest = tail;
        }
        Ok(())
    }

    /// The memory below the page tables.
    pub(super) fn memory(&self) -> &'a GuestMemoryMmap {
        self.memory
    }
}

#[cfg(test)]
#[path = "page_walk_tests.rs"]
mod tests;
