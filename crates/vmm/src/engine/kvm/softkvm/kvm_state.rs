//! The parts of a vCPU's state that kvm-ioctls reaches only by unsafe calls or
//! untyped unions.
#![expect(unsafe_code)]
// UNSAFETY: ioctls that read memory by pointer.

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr, kvm_xsave};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::complete::ExtendedState;
use super::fpu::{IMAGE_LEN, Image};

// kvm-ioctls has it for other machines only.
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);

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
