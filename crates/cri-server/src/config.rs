//! Settings of the CRI server.

/// What the server is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The daemon's version.
    pub version: String,
    /// Runtime handlers besides the empty one; every one is a micro-VM.
    pub handlers: Vec<String>,
    /// vCPUs of a VM whose pod names no CPU limit.
    pub vcpus: u32,
    /// Memory in MiB of a VM whose pod names no memory limit.
    pub memory_mib: u64,
    /// Memory in MiB for the guest's kernel and agent, on top of the
    /// containers' limits where the pod names no overhead.
    pub overhead_mib: u64,
    /// Most memory in MiB that a VM takes on the node besides its guest's.
    pub vmm_mib: u64,
    /// Largest memory in MiB of one VM.
    pub max_memory_mib: u64,
    /// A kubelet's emptyDirs are disks and memory of the pod's VM, not directories of
    /// the node that it shares.
    pub empty_dirs_inside: bool,
    /// Pods get the node's network; otherwise their loopback only.
    pub network: bool,
    /// What the daemon found of its node (engine and why, directories), for the
    /// verbose form of Status.
    pub facts: serde_json::Value,
}

impl Config {
    /// Handler `spherule`; 1 vCPU and 512 MiB for pods that name nothing; no VM
    /// larger than `max_memory_mib`, the memory of the node.
    pub fn new(version: impl Into<String>, max_memory_mib: u64) -> Self {
        Self {
            version: version.into(),
            handlers: vec!["spherule".to_owned()],
            vcpus: 1,
            memory_mib: 512,
            overhead_mib: 64,
            vmm_mib: 0,
            max_memory_mib,
            empty_dirs_inside: true,
            network: true,
            facts: serde_json::Value::Null,
        }
    }

    /// Whether a request may name that handler.
    pub(crate) fn has_handler(&self, name: &str) -> bool {
        name.is_empty() || self.handlers.iter().any(|known| known == name)
    }
}
