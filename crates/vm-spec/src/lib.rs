//! The control wire of a spherule-vmm process: its messages, their limits, and
//! the names of what lies in a pod's directory.
//!
//! Knows no pod: a VM has an engine, vCPUs, memory, disks, shares, NICs and log streams.

mod exit_record;
mod limits;
mod probe;

/// Messages of `proto/spherule/vmm/v1/vmm.proto`.
#[expect(missing_docs, reason = "generated; the proto file documents them")]
#[allow(clippy::doc_markdown)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/spherule.vmm.v1.rs"));
}

pub use exit_record::{ExitRecordError, exit_from_json, exit_to_json};
pub use limits::{
    LimitError, MAX_NICS, MAX_QUEUE_PAIRS, MAX_VCPUS, MAX_VOLUME_BAYS, MIN_MEMORY_MIB,
    OptionalDevices, check_boot, optional_devices, tap_counts,
};
pub use probe::{Choice, EngineName, KvmSupport, Probe, QemuSupport};

/// Tag of the virtio-fs device by which its guest mounts it.
pub const SHARES_TAG: &str = "shares";

/// Names in a VM's directory, which the process gets by `--dir`.
pub mod files {
    /// The control socket.
    pub const CONTROL_SOCKET: &str = "vmm.sock";
    /// The vsock: connect, send `CONNECT <port>\n`, read `OK <number>\n`.
    pub const VSOCK_SOCKET: &str = "vsock.sock";
    /// How the VM ended: [`crate::proto::VmExit`] as JSON `{"reason", "message"}`.
    pub const EXIT: &str = "vm-exit.json";
}
