//! What KVM says when it cannot go on (KVM_EXIT_INTERNAL_ERROR).
#![expect(unsafe_code)]
// UNSAFETY: the details lie in a union of kvm_run.

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
};
use kvm_ioctls::VcpuFd;
use std::fmt;

/// Longest x86 instruction.
const MAX_LEN: usize = 15;

/// The details of one such exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InternalError {
    suberror: u32,
    bytes: [u8; MAX_LEN],
    length: usize,
}

impl InternalError {
    /// Reads the details; the vCPU's last exit was KVM_EXIT_INTERNAL_ERROR.
    pub(super) fn of(vcpu: &mut VcpuFd) -> Self {
        let exit = &vcpu.get_kvm_run().__bindgen_anon_1;
        // SAFETY: plain integers; KVM writes suberror and ndata for this exit
        // reason, and any value is valid for the rest.
        let failure = unsafe { exit.emulation_failure };
        let flag = u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
        let mut error = Self {
            suberror: failure.suberror,
            bytes: [0; MAX_LEN],
            length: 0,
        };
        // ndata counts the flags and, with them, the bytes.
        if error.is_emulation() && failure.ndata >= 3 && failure.flags & flag != 0 {
            // SAFETY: the flag says that KVM wrote them; any bytes are valid.
            let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
            error.bytes = instruction.insn_bytes;
            error.length = usize::from(instruction.insn_size).min(MAX_LEN);
        }
        error
    }

    /// Whether KVM's instruction emulator gave up.
    pub(super) fn is_emulation(&self) -> bool {
        self.suberror == KVM_INTERNAL_ERROR_EMULATION
    }

    /// The instruction's bytes as far as KVM read them; perhaps none.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl fmt::Display for InternalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.suberror {
            KVM_INTERNAL_ERROR_EMULATION => {
                write!(f, "emulation failure at bytes {:02x?}", self.bytes())
            }
            KVM_INTERNAL_ERROR_SIMUL_EX => f.write_str("simultaneous exceptions"),
            KVM_INTERNAL_ERROR_DELIVERY_EV => f.write_str("fault while delivering an event"),
            KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => f.write_str("unexpected exit reason"),
            other => write!(f, "internal error {other}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_named() {
        let error = |suberror| InternalError {
            suberror,
            bytes: [0xf4; MAX_LEN],
            length: 2,
        };
        let text = error(KVM_INTERNAL_ERROR_EMULATION).to_string();
        assert_eq!(text, "emulation failure at bytes [f4, f4]");
        assert_eq!(error(77).to_string(), "internal error 77");
        assert!(!error(3).is_emulation());
    }
}
