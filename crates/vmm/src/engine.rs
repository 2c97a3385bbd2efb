//! An engine runs a guest: our own VMM on KVM, or QEMU below our device back
//! ends. The rest of the process knows only this file's types.

pub(crate) mod kvm;
pub(crate) mod qemu;

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use virtio_devices::VirtioDevice;
use vm_spec::proto::{Engine, VmExit};

/// Everything an engine needs to boot one guest.
pub(crate) struct Machine {
    /// Uncompressed ELF kernel.
    pub(crate) kernel: File,
    /// Cpio archive, handed to the guest as it is.
    pub(crate) initramfs: File,
    /// 1 to 64.
    pub(crate) vcpus: u32,
    /// Guest memory in MiB.
    pub(crate) memory_mib: u64,
    /// The daemon's additions to the engine's kernel command line.
    pub(crate) extra_cmdline: String,
    /// The process's own directory, for the engine's sockets.
    pub(crate) dir: PathBuf,
    /// Where the guest kernel's messages go; never blocks for long, keeps to its size limit.
    pub(crate) kernel_log: Arc<Mutex<dyn Write + Send>>,
    /// Device back ends in the order of the guest's buses: read-only bay (vda),
    /// writable bay (vdb), vsock, rng, perhaps fs, NICs. The console is the engine's own affair.
    pub(crate) devices: Vec<Box<dyn VirtioDevice>>,
    /// Called once, from any thread, when the guest is gone for whatever reason.
    pub(crate) on_exit: Box<dyn FnOnce(VmExit) + Send>,
}

/// A guest that was started. Dropping it ends the guest.
pub(crate) trait RunningVm: Send {
    /// Stops all vCPUs; returns when none runs guest code.
    fn pause(&mut self) -> anyhow::Result<()>;
    /// Lets the vCPUs go on.
    fn resume(&mut self) -> anyhow::Result<()>;
    /// Ends the guest at once; `on_exit` is called (reason killed) if it was not yet.
    fn kill(&mut self);
    /// Process that the engine runs beside this one (QEMU).
    fn child_pid(&self) -> Option<u32>;
}

/// Boots a guest on an engine.
///
/// # Errors
/// What the engine says about why the guest cannot run. Nothing is left of it.
pub(crate) fn boot(engine: Engine, machine: Machine) -> anyhow::Result<Box<dyn RunningVm>> {
    match engine {
        Engine::Kvm => kvm::boot(machine),
        Engine::Qemu => qemu::boot(machine),
        Engine::Unspecified => anyhow::bail!("the request names no engine"),
    }
}
