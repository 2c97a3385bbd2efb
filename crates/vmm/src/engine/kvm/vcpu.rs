//! One vCPU's thread: enter the guest, answer its exits, obey the gate.

use kvm_ioctls::{VcpuExit, VcpuFd};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use super::bus::{Bus, PortAction};
use super::exit::{Cause, report};
use super::gate::Gate;
use super::internal_error::InternalError;
use super::softkvm::{SYSCALL_DOOR, SoftVcpu};

/// A vCPU that is ready to run.
pub(super) struct Vcpu {
    pub(super) fd: VcpuFd,
    pub(super) id: u32,
    pub(super) bus: Arc<Bus>,
    /// Only on a KVM without hardware virtualization.
    pub(super) soft: Option<SoftVcpu>,
}

/// What is left to do once an exit's data is no longer borrowed.
enum Next {
    Enter,
    Syscall,
    EmulationFailure,
    SetMsr(u32, u64),
    End(Cause),
    Fail(String),
}

impl Vcpu {
    /// The thread's body: until the gate ends it or the guest does, which is
    /// then said on `ended`.
    pub(super) fn run(mut self, gate: &Gate, ended: &Sender<Cause>) {
        let kickable = gate.kickable(self.id as usize);
        while gate.wait() {
            let entered = kickable.enter(&mut self.fd);
            let cause = self.run_while_open(gate);
            drop(entered);
            gate.left();
            if let Some(cause) = cause {
                // The receiver is gone only when the guest already ends.
                let _ = ended.send(cause);
                return;
            }
        }
    }

    /// Runs guest code until the gate closes (`None`) or the guest ends.
    fn run_while_open(&mut self, gate: &Gate) -> Option<Cause> {
        while gate.is_open() {
            match self.enter() {
                Next::Enter => {}
                Next::Syscall => {
                    let soft = self.soft.as_mut()?;
                    if let Err(error) = soft.syscall(&mut self.fd) {
                        return Some(self.fail("a system call failed", &chain(&error)));
                    }
                }
                Next::EmulationFailure => {
                    let soft = self.soft.as_mut()?;
                    if let Err(error) = soft.emulate(&mut self.fd) {
                        return Some(self.fail("KVM cannot emulate", &chain(&error)));
                    }
                }
                Next::SetMsr(index, value) => {
                    let soft = self.soft.as_mut()?;
                    if let Err(error) = soft.write_msr(&mut self.fd, index, value) {
                        return Some(self.fail("an MSR write failed", &chain(&error)));
                    }
                }
                Next::End(cause) => return Some(cause),
                Next::Fail(detail) => return Some(self.fail("KVM gave up the guest", &detail)),
            }
        }
        None
    }

    fn fail(&self, what: &str, detail: &str) -> Cause {
        Cause::Failure(report(&self.fd, self.id, what, detail))
    }

    /// One entry and what its exit asks for.
    fn enter(&mut self) -> Next {
        let soft = &mut self.soft;
        match self.fd.run() {
            Ok(VcpuExit::MmioWrite(SYSCALL_DOOR, _)) if soft.is_some() => Next::Syscall,
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.bus.mmio_read(address, data);
                Next::Enter
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.bus.mmio_write(address, data);
                Next::Enter
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                self.bus.port_read(port, data);
                Next::Enter
            }
            Ok(VcpuExit::IoOut(port, data)) => match self.bus.port_write(port, data) {
                PortAction::None => Next::Enter,
                PortAction::Reset => Next::End(Cause::Reset),
            },
            // A triple fault is a PC's other way to reset.
            Ok(VcpuExit::Shutdown | VcpuExit::SystemEvent(..)) => Next::End(Cause::Reset),
            Ok(VcpuExit::InternalError) if soft.is_some() => Next::EmulationFailure,
            Ok(VcpuExit::InternalError) => Next::Fail(InternalError::of(&mut self.fd).to_string()),
            Ok(VcpuExit::X86Rdmsr(msr)) => {
                match soft.as_ref().and_then(|soft| soft.read_msr(msr.index)) {
                    Some(value) => *msr.data = value,
                    None => *msr.error = 1,
                }
                Next::Enter
            }
            Ok(VcpuExit::X86Wrmsr(msr)) if soft.is_some() => Next::SetMsr(msr.index, msr.data),
            Ok(VcpuExit::Hlt | VcpuExit::Intr | VcpuExit::IrqWindowOpen) => Next::Enter,
            Ok(exit) => Next::Fail(format!("{exit:?}")),
            Err(error) if error.errno() == libc::EINTR => {
                // A kick, or any other signal. The gate is asked next.
                self.fd.set_kvm_immediate_exit(0);
                Next::Enter
            }
            // A vCPU that waits to be started, woken.
            Err(error) if error.errno() == libc::EAGAIN => Next::Enter,
            Err(error) => Next::Fail(format!("KVM_RUN: {error}")),
        }
    }
}

/// An error with its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
