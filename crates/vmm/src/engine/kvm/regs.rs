//! Registers of a vCPU as the 64-bit boot protocol wants them: long mode, the
//! first GiB mapped to itself, flat segments, interrupts off.

use kvm_bindings::{Msrs, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::boot_params::ZERO_PAGE;

const GDT: u64 = 0x500;
const IDT: u64 = 0x520;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
const PAGE_DIRECTORY: u64 = 0xb000;
/// __BOOT_CS and __BOOT_DS of the boot protocol, and a TSS.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const BOOT_TSS: u16 = 0x20;
const PRESENT_WRITABLE: u64 = 3;
const LARGE_PAGE: u64 = 1 << 7;
const CR0_PE_ET_PG: u64 = 1 | 1 << 4 | 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
const RFLAGS_RESERVED: u64 = 2;

const IA32_SYSENTER: [u32; 3] = [0x174, 0x175, 0x176];
const IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, memory write-back unless they say otherwise.
const MTRR_ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;

const LAPIC_LVT_LINT0: usize = 0x350;
const LAPIC_LVT_LINT1: usize = 0x360;
const DELIVERY_MODE: u32 = 0x700;
const DELIVERY_EXT_INT: u32 = 0x700;
const DELIVERY_NMI: u32 = 0x400;

/// A vCPU could not be given its first registers.
#[derive(Debug, thiserror::Error)]
pub(super) enum RegsError {
    /// A KVM call failed.
    #[error("KVM refuses a vCPU's {what}")]
    Kvm {
        /// Which registers.
        what: &'static str,
        /// What KVM said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// Never seen: a list of one MSR cannot be too long.
    #[error("the list of MSRs is too long")]
    MsrList,
    /// Tables could not be written.
    #[error("cannot write page tables and GDT into guest memory")]
    Tables(#[from] GuestMemoryError),
}

fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> RegsError {
    move |source| RegsError::Kvm { what, source }
}

fn code_segment() -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        selector: BOOT_CS,
        type_: 0xb,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    }
}

fn data_segment() -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        selector: BOOT_DS,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

/// Writes the page tables and the GDT that the boot processor starts with.
pub(super) fn write_tables(memory: &GuestMemoryMmap) -> Result<(), RegsError> {
    memory.write_obj(PDPT | PRESENT_WRITABLE, GuestAddress(PML4))?;
    memory.write_obj(PAGE_DIRECTORY | PRESENT_WRITABLE, GuestAddress(PDPT))?;
    for index in 0..512u64 {
        let entry = index << 21 | LARGE_PAGE | PRESENT_WRITABLE;
        memory.write_obj(entry, GuestAddress(PAGE_DIRECTORY + index * 8))?;
    }
    // null, null, 64-bit code, data, TSS (its upper half lies beyond the limit)
    let gdt = [
        0u64,
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x008f_8b00_0000_ffff,
    ];
    for (address, entry) in (GDT..).step_by(8).zip(gdt) {
        memory.write_obj(entry, GuestAddress(address))?;
    }
    Ok(())
}

/// Points the boot processor at `entry` with RSI at the zero page; needs
/// [`write_tables`] first.
pub(super) fn set_boot_registers(vcpu: &VcpuFd, entry: u64) -> Result<(), RegsError> {
    let mut sregs = vcpu.get_sregs().map_err(kvm("segments"))?;
    let data = data_segment();
    sregs.cs = code_segment();
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = data;
    }
    sregs.tr = kvm_segment {
        limit: 0xffff,
        selector: BOOT_TSS,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 5 * 8 - 1);
    (sregs.idt.base, sregs.idt.limit) = (IDT, 0);
    (sregs.cr3, sregs.cr4) = (PML4, CR4_PAE);
    sregs.cr0 = CR0_PE_ET_PG;
    sregs.efer = EFER_LME_LMA;
    vcpu.set_sregs(&sregs).map_err(kvm("segments"))?;
    let regs = kvm_regs {
        rip: entry,
        rsi: ZERO_PAGE,
        rsp: ZERO_PAGE,
        rbp: ZERO_PAGE,
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(kvm("general registers"))
}

/// FPU, MSRs and local APIC, which every processor gets.
pub(super) fn set_common(vcpu: &VcpuFd) -> Result<(), RegsError> {
    let fpu = kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    };
    vcpu.set_fpu(&fpu).map_err(kvm("FPU"))?;
    set_msrs(vcpu)?;
    let mut lapic = vcpu.get_lapic().map_err(kvm("local APIC"))?;
    set_delivery(&mut lapic, LAPIC_LVT_LINT0, DELIVERY_EXT_INT);
    set_delivery(&mut lapic, LAPIC_LVT_LINT1, DELIVERY_NMI);
    vcpu.set_lapic(&lapic).map_err(kvm("local APIC"))
}

fn set_msrs(vcpu: &VcpuFd) -> Result<(), RegsError> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let mut entries: Vec<_> = IA32_SYSENTER.map(|index| entry(index, 0)).to_vec();
    entries.push(entry(IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING));
    entries.push(entry(MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK));
    for msr in entries {
        let msrs = Msrs::from_entries(&[msr]).map_err(|_| RegsError::MsrList)?;
        let set = vcpu.set_msrs(&msrs).map_err(kvm("MSRs"))?;
        if set != 1 {
            // Linux does without each of them; KVM may not know them all.
            tracing::debug!(
                msr = format_args!("{:#x}", msr.index),
                "KVM has no such MSR"
            );
        }
    }
    Ok(())
}

/// Sets the delivery mode of the local vector table entry at byte `offset`.
fn set_delivery(lapic: &mut kvm_lapic_state, offset: usize, mode: u32) {
    let bytes = &mut lapic.regs[offset..offset + 4];
    let mut old = [0u8; 4];
    for (to, from) in old.iter_mut().zip(&*bytes) {
        *to = from.cast_unsigned();
    }
    let new = u32::from_le_bytes(old) & !DELIVERY_MODE | mode;
    for (to, from) in bytes.iter_mut().zip(new.to_le_bytes()) {
        *to = from.cast_signed();
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::allocate;
    use super::*;

    #[test]
    fn first_gib_is_mapped_to_itself() {
        let memory = allocate(48).unwrap();
        write_tables(&memory).unwrap();
        for index in [0u64, 1, 511] {
            let entry: u64 = memory
                .read_obj(GuestAddress(PAGE_DIRECTORY + index * 8))
                .unwrap();
            assert_eq!(entry & !0xfff, index << 21);
        }
    }

    #[test]
    fn delivery_mode_is_all_that_changes() {
        let mut lapic = kvm_lapic_state::default();
        lapic.regs[LAPIC_LVT_LINT0] = 0x55;
        set_delivery(&mut lapic, LAPIC_LVT_LINT0, DELIVERY_EXT_INT);
        assert_eq!(lapic.regs[LAPIC_LVT_LINT0], 0x55);
        assert_eq!(lapic.regs[LAPIC_LVT_LINT0 + 1], 7);
    }
}
