//! The parts of a vCPU's state that kvm-ioctls reaches only by unsafe calls or
//! untyped unions.
#![expect(unsafe_code)]
// UNSAFETY: unions of kvm_run, and ioctls that read memory by pointer.

use kvm_bindings::{
    KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES,
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::SoftError;
use super::complete::ExtendedState;
use super::fpu::{IMAGE_LEN, Image};

// kvm-ioctls has it for other machines only.
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);

/// What KVM says about an instruction that it could not emulate.
pub(super) struct EmulationFailure {
    bytes: [u8; 15],
    length: usize,
}

impl EmulationFailure {
    /// The instruction's bytes as far as KVM read them; perhaps none.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Reads the details of an exit KVM_EXIT_INTERNAL_ERROR, which must be the
/// vCPU's last.
pub(super) fn emulation_failure(vcpu: &mut VcpuFd) -> Result<EmulationFailure, SoftError> {
    let exit = &vcpu.get_kvm_run().__bindgen_anon_1;
    // SAFETY: a plain value that KVM wrote for this exit reason.
    let failure = unsafe { exit.emulation_failure };
    if failure.suberror != KVM_INTERNAL_ERROR_EMULATION {
        return Err(SoftError::NotEmulation(failure.suberror));
    }
    let flag = u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
    // ndata counts the flags and, with them, the bytes.
    if failure.ndata < 3 || failure.flags & flag == 0 {
        return Ok(EmulationFailure {
            bytes: [0; 15],
            length: 0,
        });
    }
    // SAFETY: the flag says that KVM wrote them; any bytes are valid.
    let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
    Ok(EmulationFailure {
        bytes: instruction.insn_bytes,
        length: usize::from(instruction.insn_size).min(15),
    })
}

/// Says whether the MSR access of the last exit worked; otherwise #GP.
pub(super) fn answer_msr(vcpu: &mut VcpuFd, known: bool) {
    vcpu.get_kvm_run().__bindgen_anon_1.msr.error = u8::from(!known);
}

/// Lets the guest's kernel see the host's time stamp counter as it is.
pub(super) fn zero_tsc_offset(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let offset = 0u64;
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: &raw const offset as u64,
        flags: 0,
    };
    // SAFETY: the structure and the offset that it points at live through the
    // call, which reads both and writes nothing.
    let status = unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attribute) };
    if status != 0 {
        return Err(kvm_ioctls::Error::last());
    }
    Ok(())
}

/// The extended state of a vCPU, through KVM.
pub(super) struct KvmExtended<'a>(pub(super) &'a mut VcpuFd);

impl ExtendedState for KvmExtended<'_> {
    fn load(&mut self) -> Result<Image, kvm_ioctls::Error> {
        let state = self.0.get_xsave()?;
        let mut bytes = Box::new([0; IMAGE_LEN]);
        for (to, word) in bytes.chunks_exact_mut(4).zip(state.region) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        Ok(Image::new(bytes))
    }

    fn store(&mut self, image: &Image) -> Result<(), kvm_ioctls::Error> {
        let mut state = kvm_xsave::default();
        for (word, from) in state.region.iter_mut().zip(image.bytes().chunks_exact(4)) {
            *word = u32::from_ne_bytes([from[0], from[1], from[2], from[3]]);
        }
        // SAFETY: no guest has state beyond 4096 bytes: that needs components
        // that this process never asked the kernel to permit (AMX).
        unsafe { self.0.set_xsave(&state) }
    }

    fn enabled(&mut self) -> Result<u64, kvm_ioctls::Error> {
        let registers = self.0.get_xcrs()?;
        let count = usize::try_from(registers.nr_xcrs).unwrap_or(0);
        // Without an entry for XCR0, only x87 is enabled.
        Ok(registers
            .xcrs
            .iter()
            .take(count)
            .find(|register| register.xcr == 0)
            .map_or(1, |register| register.value))
    }
}
