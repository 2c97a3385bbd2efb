//! A way into the guest kernel for ring-3 SYSCALL.
//!
//! KVM takes a guest's SYSCALL to the address in LSTAR but leaves CS and SS of
//! ring 3, so the kernel's first instruction faults. Therefore the guest's
//! writes to STAR, LSTAR and FMASK come to us (MSR filter), and the real LSTAR
//! names a page of ours that ring 3 may execute. Its one instruction stores to
//! [`SYSCALL_DOOR`], which exits to us; we do the rest of SYSCALL.
//!
//! The page lies in a memory slot of its own, with page tables that hang it
//! into a top-level slot that the kernel does not use; every process gets the
//! kernel's slots, so every process has the page.

use kvm_bindings::{KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER};
use kvm_bindings::{Msrs, kvm_enable_cap, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};
use std::sync::atomic::{AtomicU64, Ordering};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileMemory};

use super::super::memory;
use super::SoftError;

/// The trampoline's memory slot, in the hole below 4 GiB: PDPT, page directory,
/// page table, code.
const PAGES_AT: u64 = 0xd100_0000;
const PAGES_LEN: usize = 4 * 4096;
const PDPT: u64 = PAGES_AT;
const DIRECTORY: u64 = PAGES_AT + 0x1000;
const TABLE: u64 = PAGES_AT + 0x2000;
const CODE: u64 = PAGES_AT + 0x3000;
/// Physical address without memory: a store here enters the kernel.
pub(in super::super) const SYSCALL_DOOR: u64 = 0xd101_0000;
/// mov byte [rip + 4096 - 7], 0: a store to the start of the next page; ud2.
const CODE_BYTES: [u8; 9] = [0xc6, 0x05, 0xf9, 0x0f, 0, 0, 0, 0x0f, 0x0b];

/// Present, writable, user, accessed, dirty.
const USER_ENTRY: u64 = 0x67;
/// Top-level slots of the kernel's half that Linux uses for KASAN's shadow
/// memory only (Documentation/arch/x86/x86_64/mm.rst). They are above the
/// direct mapping: those below it are not copied into processes' tables.
const SPARE_SLOTS: std::ops::Range<u64> = 472..504;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const CR4_LA57: u64 = 1 << 12;

const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const FMASK: u32 = 0xc000_0084;
/// One bit per MSR from STAR on; 0 comes to us. The third is CSTAR.
const FILTER: [u8; 1] = [0b0100];
const FILTER_LEN: u32 = 4;

/// Always 1 in RFLAGS; and RF, which SYSCALL clears.
const RFLAGS_FIXED: u64 = 2;
const RFLAGS_RF: u64 = 1 << 16;

/// The page, and its place in the guest's address space.
pub(super) struct Trampoline {
    /// The slot's memory; it must outlive the VM.
    _pages: GuestMemoryMmap,
}

impl Trampoline {
    /// Puts the page into `vm` and asks for the MSR accesses.
    pub(super) fn new(vm: &VmFd, slot: u32) -> Result<Self, SoftError> {
        let pages = GuestMemoryMmap::from_ranges(&[(GuestAddress(PAGES_AT), PAGES_LEN)])?;
        for (at, entry) in [
            (PDPT, DIRECTORY),
            (DIRECTORY, TABLE),
            (TABLE, CODE),
            (TABLE + 8, SYSCALL_DOOR),
        ] {
            pages.write_obj(entry | USER_ENTRY, GuestAddress(at))?;
        }
        pages.write_slice(&CODE_BYTES, GuestAddress(CODE))?;
        memory::register(vm, &pages, slot)?;
        let exits = kvm_enable_cap {
            cap: KVM_CAP_X86_USER_SPACE_MSR,
            args: [KVM_MSR_EXIT_REASON_FILTER.into(), 0, 0, 0],
            ..Default::default()
        };
        vm.enable_cap(&exits)
            .map_err(SoftError::kvm("let MSR accesses exit"))?;
        let range = MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base: STAR,
            msr_count: FILTER_LEN,
            bitmap: &FILTER,
        };
        vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[range])
            .map_err(SoftError::kvm("filter MSRs"))?;
        Ok(Self { _pages: pages })
    }

    /// One that is in no VM.
    #[cfg(test)]
    pub(super) fn for_test() -> Self {
        Self {
            _pages: memory::allocate(1).unwrap(),
        }
    }

    /// Hangs the page into the page tables at CR3, unless another vCPU did;
    /// returns the address at which the guest sees it.
    fn hook(&self, memory: &GuestMemoryMmap, sregs: &kvm_sregs) -> Result<u64, SoftError> {
        if sregs.cr4 & CR4_LA57 != 0 {
            return Err(SoftError::FiveLevels);
        }
        let table = sregs.cr3 & ADDRESS;
        let ours = PDPT | USER_ENTRY;
        for slot in SPARE_SLOTS {
            let at = table + slot * 8;
            let slice = memory
                .get_slice(GuestAddress(at), 8)
                .map_err(|_| SoftError::NoTables(at))?;
            let entry = slice
                .get_atomic_ref::<AtomicU64>(0)
                .map_err(|_| SoftError::NoTables(at))?;
            let found = entry.compare_exchange(0, ours, Ordering::SeqCst, Ordering::SeqCst);
            if found.is_ok() || found == Err(ours) {
                return Ok(0xffff << 48 | slot << 39);
            }
        }
        Err(SoftError::NoSpareSlot)
    }
}

/// The three MSRs of one vCPU as its guest believes them to be.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct SyscallMsrs {
    star: u64,
    lstar: u64,
    fmask: u64,
}

impl SyscallMsrs {
    /// What the guest reads; `None` for other MSRs.
    pub(super) fn read(&self, index: u32) -> Option<u64> {
        match index {
            STAR => Some(self.star),
            LSTAR => Some(self.lstar),
            FMASK => Some(self.fmask),
            _ => None,
        }
    }

    /// The guest writes; false for other MSRs.
    pub(super) fn write(
        &mut self,
        vcpu: &VcpuFd,
        trampoline: &Trampoline,
        memory: &GuestMemoryMmap,
        sregs: &kvm_sregs,
        (index, value): (u32, u64),
    ) -> Result<bool, SoftError> {
        let effective = match index {
            STAR => {
                self.star = value;
                value
            }
            LSTAR => {
                self.lstar = value;
                trampoline.hook(memory, sregs)?
            }
            FMASK => {
                self.fmask = value;
                value
            }
            _ => return Ok(false),
        };
        let entry = kvm_msr_entry {
            index,
            data: effective,
            ..Default::default()
        };
        let msrs = Msrs::from_entries(&[entry]).map_err(|_| SoftError::Msr(index))?;
        match vcpu.set_msrs(&msrs) {
            Ok(1) => Ok(true),
            Ok(_) => Err(SoftError::Msr(index)),
            Err(source) => Err(SoftError::kvm("set an MSR")(source)),
        }
    }

    /// The rest of SYSCALL (Intel SDM volume 2): ring 0's CS and SS, masked
    /// flags, the kernel's entry. RCX and R11 are set already.
    pub(super) fn enter_kernel(&self, regs: &mut kvm_regs, sregs: &mut kvm_sregs) {
        let [_, _, _, _, low, high, ..] = self.star.to_le_bytes();
        let selector = u16::from_le_bytes([low, high]) & !3;
        let flat = kvm_segment {
            base: 0,
            limit: u32::MAX,
            selector,
            type_: 0xb,
            present: 1,
            dpl: 0,
            s: 1,
            g: 1,
            ..Default::default()
        };
        sregs.cs = kvm_segment { l: 1, ..flat };
        sregs.ss = kvm_segment {
            selector: selector.wrapping_add(8),
            type_: 3,
            db: 1,
            ..flat
        };
        regs.rflags = regs.rflags & !self.fmask & !RFLAGS_RF | RFLAGS_FIXED;
        regs.rip = self.lstar;
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::memory::allocate;
    use super::super::decode::decode;
    use super::*;
    use iced_x86::Mnemonic;

    #[test]
    fn the_pages_one_store_reaches_the_door() {
        let store = decode(64, 0, &CODE_BYTES);
        assert_eq!(store.mnemonic(), Mnemonic::Mov);
        assert_eq!(store.ip_rel_memory_address(), 4096);
        assert_eq!(store.len(), 7);
    }

    fn trampoline() -> Trampoline {
        Trampoline::for_test()
    }

    #[test]
    fn hook_takes_the_first_spare_slot_and_finds_it_again() {
        let memory = allocate(1).unwrap();
        let sregs = kvm_sregs {
            cr3: 0x5000,
            ..Default::default()
        };
        let taken = 0x1234_5063u64;
        memory
            .write_obj(taken, GuestAddress(0x5000 + 472 * 8))
            .unwrap();
        let address = trampoline().hook(&memory, &sregs).unwrap();
        assert_eq!(address, 0xffff_ec80_0000_0000);
        assert_eq!(trampoline().hook(&memory, &sregs).unwrap(), address);
        let kept: u64 = memory.read_obj(GuestAddress(0x5000 + 472 * 8)).unwrap();
        assert_eq!(kept, taken);
    }

    #[test]
    fn hook_refuses_tables_that_it_cannot_use() {
        let memory = allocate(1).unwrap();
        let mut sregs = kvm_sregs {
            cr3: 1 << 30,
            ..Default::default()
        };
        assert!(matches!(
            trampoline().hook(&memory, &sregs),
            Err(SoftError::NoTables(_))
        ));
        sregs.cr3 = 0x5000;
        for slot in SPARE_SLOTS {
            memory
                .write_obj(1u64, GuestAddress(0x5000 + slot * 8))
                .unwrap();
        }
        assert!(matches!(
            trampoline().hook(&memory, &sregs),
            Err(SoftError::NoSpareSlot)
        ));
    }

    #[test]
    fn entry_loads_what_syscall_loads() {
        let msrs = SyscallMsrs {
            star: 0x0023_0010 << 32,
            lstar: 0xffff_ffff_8100_0000,
            fmask: 0x4_7700,
        };
        let mut regs = kvm_regs {
            rip: 0xffff_8000_0000_0000,
            rflags: 0x1_0246,
            rcx: 0x40_1000,
            ..Default::default()
        };
        let mut sregs = kvm_sregs::default();
        msrs.enter_kernel(&mut regs, &mut sregs);
        assert_eq!((sregs.cs.selector, sregs.ss.selector), (0x10, 0x18));
        assert_eq!((sregs.cs.dpl, sregs.ss.dpl, sregs.cs.l), (0, 0, 1));
        assert_eq!(regs.rflags, 0x46);
        assert_eq!(regs.rip, 0xffff_ffff_8100_0000);
        assert_eq!(regs.rcx, 0x40_1000);
    }
}
