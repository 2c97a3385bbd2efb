//! What a KVM without hardware virtualization needs from us: there, the guest's
//! ring 0 runs in KVM's instruction emulator, which cannot do all of it.
//!
//! Active only where the probe found an emulator; on hardware virtualization no
//! vCPU has a [`SoftVcpu`] and nothing here is called.

mod complete;
mod decode;
mod fpu;
mod kvm_state;
mod page_walk;
mod syscall_trampoline;
mod wide_exchange;

pub(super) use syscall_trampoline::SYSCALL_DOOR;

use kvm_bindings::{CpuId, KVM_CAP_EXIT_ON_EMULATION_FAILURE, kvm_enable_cap};
use kvm_ioctls::{SyncReg, VcpuFd, VmFd};
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;

use self::complete::{CompleteError, Cpu, Exception, Outcome};
use self::fpu::Layout;
use self::kvm_state::{KvmExtended, zero_tsc_offset};
use self::page_walk::{Paging, View, WalkError};
use self::syscall_trampoline::{SyscallMsrs, Trampoline};
use super::cpuid::LEAF_KVM_FEATURES;
use super::internal_error::InternalError;
use super::memory::MemoryError;

/// Paravirtual features that work without hypercalls, which would spin for
/// ever: clock (old and new), no I/O delays, stable clock.
const KVM_FEATURES: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 24;

/// What the guest kernel must not use: instructions that the emulator lacks
/// (invpcid), that cost an exit each (smap: clac and stac), or that its own
/// hashing needs vector registers for (ssse3: BLAKE2s and ChaCha, sse4_2:
/// CRC-32C; AVX itself must stay, or user registers would not be saved);
/// mitigations and page table isolation, which protect a hardware that is not
/// there (with isolation, user page tables would lack the system call page).
const CMDLINE: &str = "clearcpuid=invpcid,smap,pcid,rdrand,rdseed,ssse3,sse4_2,pclmulqdq \
     nopti mitigations=off";

/// What this module cannot do.
#[derive(Debug, thiserror::Error)]
pub(super) enum SoftError {
    /// A KVM call failed.
    #[error("KVM refuses to {what}")]
    Kvm {
        /// What was tried.
        what: &'static str,
        /// What KVM said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM refused an MSR's value.
    #[error("KVM refuses MSR {0:#x}")]
    Msr(u32),
    /// Memory for the system call page.
    #[error("cannot map the system call page")]
    Map(#[from] vm_memory::mmap::FromRangesError),
    /// The system call page's slot.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The system call page could not be written.
    #[error("cannot write the system call page")]
    Write(#[from] vm_memory::GuestMemoryError),
    /// The guest uses five-level paging.
    #[error("the guest kernel uses five page table levels, which needs hardware virtualization")]
    FiveLevels,
    /// CR3 names no RAM.
    #[error("the guest's page tables at {0:#x} lie outside of its memory")]
    NoTables(u64),
    /// No slot for the system call page.
    #[error("the guest's page tables have no spare top-level slot for the system call page")]
    NoSpareSlot,
    /// KVM stopped for another reason than an instruction.
    #[error("{0}")]
    NotEmulation(InternalError),
    /// The instruction's bytes cannot be read.
    #[error("the instruction at {rip:#x} cannot be read")]
    Fetch {
        /// Where it lies.
        rip: u64,
        /// Why.
        #[source]
        source: WalkError,
    },
    /// The instruction cannot be done.
    #[error("the instruction at {rip:#x} ({bytes:02x?})")]
    Complete {
        /// Where it lies.
        rip: u64,
        /// Its bytes.
        bytes: Vec<u8>,
        /// Why.
        #[source]
        source: CompleteError,
    },
    /// The store of the system call page did not finish.
    #[error("the system call page's store did not finish: {0}")]
    Door(String),
}

impl SoftError {
    fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |source| Self::Kvm { what, source }
    }
}

/// One VM's part: its system call page, and what all vCPUs share.
pub(super) struct SoftKvm {
    memory: GuestMemoryMmap,
    trampoline: Trampoline,
    layout: Layout,
}

impl SoftKvm {
    /// Prepares `vm`; `slot` is free for the system call page.
    pub(super) fn new(vm: &VmFd, memory: &GuestMemoryMmap, slot: u32) -> Result<Self, SoftError> {
        // Otherwise KVM queues #UD for the guest before it tells us.
        let exit = kvm_enable_cap {
            cap: KVM_CAP_EXIT_ON_EMULATION_FAILURE,
            args: [1, 0, 0, 0],
            ..Default::default()
        };
        vm.enable_cap(&exit)
            .map_err(SoftError::kvm("exit on emulation failures"))?;
        Ok(Self {
            memory: memory.clone(),
            trampoline: Trampoline::new(vm, slot)?,
            layout: Layout::of_host(),
        })
    }

    /// What the guest kernel is told beside.
    pub(super) fn cmdline(&self) -> &'static str {
        CMDLINE
    }

    /// Hides paravirtual features that need hypercalls.
    pub(super) fn mask_cpuid(&self, cpuid: &mut CpuId) {
        for entry in cpuid.as_mut_slice() {
            if entry.function == LEAF_KVM_FEATURES {
                entry.eax &= KVM_FEATURES;
                entry.edx = 0;
            }
        }
    }
}

/// One vCPU's part.
pub(super) struct SoftVcpu {
    shared: Arc<SoftKvm>,
    msrs: SyscallMsrs,
}

impl SoftVcpu {
    /// Prepares `vcpu`.
    pub(super) fn new(shared: &Arc<SoftKvm>, vcpu: &mut VcpuFd) -> Result<Self, SoftError> {
        // User code reads the host's counter; the kernel must see the same.
        zero_tsc_offset(vcpu).map_err(SoftError::kvm("set the TSC offset"))?;
        for registers in [
            SyncReg::Register,
            SyncReg::SystemRegister,
            SyncReg::VcpuEvents,
        ] {
            vcpu.set_sync_valid_reg(registers);
        }
        Ok(Self {
            shared: shared.clone(),
            msrs: SyscallMsrs::default(),
        })
    }

    /// A filtered MSR as the guest wrote it.
    pub(super) fn read_msr(&self, index: u32) -> Option<u64> {
        self.msrs.read(index)
    }

    /// The guest writes a filtered MSR.
    pub(super) fn write_msr(
        &mut self,
        vcpu: &mut VcpuFd,
        index: u32,
        value: u64,
    ) -> Result<(), SoftError> {
        let sregs = vcpu.sync_regs().sregs;
        let known = self.msrs.write(
            vcpu,
            &self.shared.trampoline,
            &self.shared.memory,
            &sregs,
            (index, value),
        )?;
        kvm_state::answer_msr(vcpu, known);
        Ok(())
    }

    /// Ring 3 stored to [`SYSCALL_DOOR`]: takes it into the kernel.
    pub(super) fn syscall(&mut self, vcpu: &mut VcpuFd) -> Result<(), SoftError> {
        // The store itself has to end first, or KVM would set RIP afterwards.
        vcpu.set_kvm_immediate_exit(1);
        let ended = match vcpu.run() {
            Err(error) if error.errno() == libc::EINTR => Ok(()),
            Err(error) => Err(SoftError::Door(error.to_string())),
            Ok(exit) => Err(SoftError::Door(format!("{exit:?}"))),
        };
        vcpu.set_kvm_immediate_exit(0);
        ended?;
        let sync = vcpu.sync_regs_mut();
        self.msrs.enter_kernel(&mut sync.regs, &mut sync.sregs);
        vcpu.set_sync_dirty_reg(SyncReg::Register);
        vcpu.set_sync_dirty_reg(SyncReg::SystemRegister);
        Ok(())
    }

    /// KVM's emulator gave up: does the instruction, or raises its exception.
    pub(super) fn emulate(&mut self, vcpu: &mut VcpuFd) -> Result<(), SoftError> {
        let failure = InternalError::of(vcpu);
        if !failure.is_emulation() {
            return Err(SoftError::NotEmulation(failure));
        }
        let sync = vcpu.sync_regs();
        let (mut regs, mut sregs) = (sync.regs, sync.sregs);
        let rip = regs.rip;
        let paging = Paging::of(&sregs, regs.rflags);
        let view = View::new(&self.shared.memory, paging);
        let instruction = decode::at_rip(&view, &regs, &sregs, failure.bytes())
            .map_err(|source| SoftError::Fetch { rip, source })?;
        let mut extended = KvmExtended(vcpu);
        let mut cpu = Cpu {
            regs: &mut regs,
            sregs: &sregs,
            view,
            extended: &mut extended,
            layout: &self.shared.layout,
        };
        let outcome = cpu.complete(&instruction).map_err(|source| {
            let mut bytes = decode::fetch(&view, rip).unwrap_or_default();
            if !instruction.is_invalid() {
                bytes.truncate(instruction.len());
            }
            SoftError::Complete { rip, bytes, source }
        })?;
        if let Outcome::Raise(exception) = outcome {
            raise(vcpu, exception);
            if let Some(address) = exception.address {
                sregs.cr2 = address;
                vcpu.sync_regs_mut().sregs = sregs;
                vcpu.set_sync_dirty_reg(SyncReg::SystemRegister);
            }
        }
        vcpu.sync_regs_mut().regs = regs;
        vcpu.set_sync_dirty_reg(SyncReg::Register);
        Ok(())
    }
}

/// Has KVM deliver an exception at the next entry.
fn raise(vcpu: &mut VcpuFd, exception: Exception) {
    let event = &mut vcpu.sync_regs_mut().events.exception;
    event.injected = 1;
    event.pending = 0;
    event.nr = exception.vector;
    event.has_error_code = exception.error_code.is_some().into();
    event.error_code = exception.error_code.unwrap_or(0);
    vcpu.set_sync_dirty_reg(SyncReg::VcpuEvents);
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_cpuid_entry2;

    #[test]
    fn hypercall_features_are_the_only_ones_masked() {
        let leaf = |function| kvm_cpuid_entry2 {
            function,
            eax: u32::MAX,
            edx: 1,
            ..Default::default()
        };
        let mut cpuid = CpuId::from_entries(&[leaf(1), leaf(LEAF_KVM_FEATURES)]).unwrap();
        let soft = SoftKvm {
            memory: super::super::memory::allocate(1).unwrap(),
            trampoline: Trampoline::for_test(),
            layout: Layout::of_host(),
        };
        soft.mask_cpuid(&mut cpuid);
        let values: Vec<_> = cpuid.as_slice().iter().map(|e| (e.eax, e.edx)).collect();
        assert_eq!(values, [(u32::MAX, 1), (KVM_FEATURES, 0)]);
    }
}
