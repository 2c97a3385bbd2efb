//! How a guest ends, and the report when KVM could not go on.

use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;
use std::fmt::Write;
use vm_spec::proto::VmExit;
use vm_spec::proto::vm_exit::Reason;

/// Why the guest is to end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The guest reset itself (also after a panic).
    Reset,
    /// The host wants it.
    Killed,
    /// KVM or the guest did what the engine cannot handle; the report's head.
    Failure(String),
}

impl Cause {
    /// What the rest of the process is told. `last_words` is the panic line
    /// that the kernel logged; `spoke` whether it opened its console at all.
    pub(super) fn into_exit(self, last_words: Option<String>, spoke: bool) -> VmExit {
        let (reason, message) = match (self, last_words) {
            (Cause::Killed, _) => (Reason::Killed, String::new()),
            (Cause::Failure(message), None) => (Reason::EngineFailure, message),
            (Cause::Failure(message), Some(words)) => {
                (Reason::EngineFailure, format!("{message}; before: {words}"))
            }
            (Cause::Reset, Some(words)) => (Reason::GuestPanic, words),
            (Cause::Reset, None) if !spoke => (
                Reason::GuestPanic,
                "the guest kernel reset before it opened its console: it does not fit this \
                 machine, or has too little memory"
                    .into(),
            ),
            (Cause::Reset, None) => (Reason::GuestShutdown, String::new()),
        };
        VmExit {
            reason: reason.into(),
            message,
        }
    }
}

/// Registers as a crash report shows them.
pub(super) fn describe_registers(regs: &kvm_regs, sregs: &kvm_sregs) -> String {
    let mut text = String::new();
    let named = [
        ("rip", regs.rip),
        ("rflags", regs.rflags),
        ("rsp", regs.rsp),
        ("rbp", regs.rbp),
        ("rax", regs.rax),
        ("rbx", regs.rbx),
        ("rcx", regs.rcx),
        ("rdx", regs.rdx),
        ("rsi", regs.rsi),
        ("rdi", regs.rdi),
        ("r8", regs.r8),
        ("r9", regs.r9),
        ("r10", regs.r10),
        ("r11", regs.r11),
        ("r12", regs.r12),
        ("r13", regs.r13),
        ("r14", regs.r14),
        ("r15", regs.r15),
        ("cr0", sregs.cr0),
        ("cr2", sregs.cr2),
        ("cr3", sregs.cr3),
        ("cr4", sregs.cr4),
        ("efer", sregs.efer),
        ("cs", sregs.cs.selector.into()),
        ("ss", sregs.ss.selector.into()),
        ("fs.base", sregs.fs.base),
        ("gs.base", sregs.gs.base),
    ];
    for (name, value) in named {
        // Writing into a String cannot fail.
        let _ = write!(text, "{name}={value:#x} ");
    }
    text.pop();
    text
}

/// Logs what can be known of a vCPU that cannot go on; returns the short form.
pub(super) fn report(vcpu: &VcpuFd, id: u32, what: &str, detail: &str) -> String {
    let registers = match (vcpu.get_regs(), vcpu.get_sregs()) {
        (Ok(regs), Ok(sregs)) => describe_registers(&regs, &sregs),
        (Err(error), _) | (_, Err(error)) => format!("registers unreadable: {error}"),
    };
    let rip = vcpu.get_regs().map_or(0, |regs| regs.rip);
    tracing::error!(vcpu = id, detail, registers, "{what}");
    let mut message = format!("{what} (vCPU {id} at {rip:#x})");
    if !detail.is_empty() {
        message.push_str(": ");
        message.push_str(detail);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(cause: Cause, words: Option<&str>, spoke: bool) -> Reason {
        cause.into_exit(words.map(str::to_owned), spoke).reason()
    }

    #[test]
    fn reset_is_a_shutdown_unless_the_kernel_panicked() {
        assert_eq!(reason(Cause::Reset, None, true), Reason::GuestShutdown);
        let exit = Cause::Reset.into_exit(Some("Kernel panic - x".into()), true);
        assert_eq!(exit.reason(), Reason::GuestPanic);
        assert_eq!(exit.message, "Kernel panic - x");
        assert_eq!(reason(Cause::Reset, None, false), Reason::GuestPanic);
    }

    #[test]
    fn killing_and_failing_are_told_apart() {
        assert_eq!(reason(Cause::Killed, Some("x"), true), Reason::Killed);
        assert_eq!(
            reason(Cause::Failure("f".into()), None, true),
            Reason::EngineFailure
        );
    }
}
