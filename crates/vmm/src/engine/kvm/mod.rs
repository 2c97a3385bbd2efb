//! The engine on /dev/kvm: our own virtual machine monitor.
//!
//! Threads: one per vCPU, one per device, and a supervisor that waits for the
//! guest's end, joins all others and then says so. Locks: the gate's, each
//! transport's, the log's; a thread holds one, except that a device's thread
//! holds its transport's while the console takes the log's.

mod boot_params;
mod bus;
mod cmdline;
mod cpuid;
mod exit;
mod gate;
mod internal_error;
mod kick;
mod loader;
mod machine;
mod memory;
mod mptable;
mod panic_watch;
pub(crate) mod probe;
mod regs;
mod softkvm;
mod vcpu;
mod virtio_mmio;

#[cfg(test)]
mod boot_tests;

use anyhow::Context;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use self::exit::Cause;
use self::gate::Gate;
use super::{Machine, RunningVm};

/// Boots `machine`; its first vCPU runs guest code when this returns.
pub(crate) fn boot(machine: Machine) -> anyhow::Result<Box<dyn RunningVm>> {
    let assembled = machine::Assembled::build(machine).context("kvm engine")?;
    let vm = assembled.start().context("kvm engine")?;
    Ok(Box::new(vm))
}

/// A guest on KVM.
struct KvmVm {
    gate: Arc<Gate>,
    ended: Sender<Cause>,
    supervisor: Option<JoinHandle<()>>,
}

impl RunningVm for KvmVm {
    fn pause(&mut self) -> anyhow::Result<()> {
        self.gate.close();
        Ok(())
    }

    fn resume(&mut self) -> anyhow::Result<()> {
        self.gate.open();
        Ok(())
    }

    fn kill(&mut self) {
        // The receiver is gone only when the guest has ended already.
        let _ = self.ended.send(Cause::Killed);
        let Some(supervisor) = self.supervisor.take() else {
            return;
        };
        // `on_exit` runs on the supervisor and may drop the VM.
        if supervisor.thread().id() != std::thread::current().id() && supervisor.join().is_err() {
            tracing::error!("the supervisor of the guest panicked");
        }
    }

    fn child_pid(&self) -> Option<u32> {
        None
    }
}

impl Drop for KvmVm {
    fn drop(&mut self) {
        self.kill();
    }
}
