//! What is known of a pod: the snapshot callers see, and the record that
//! survives the daemon.

use crate::manifest::{Manifest, ManifestError};
use sandbox::Engine;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

pub use sandbox::Stage;

/// As the Kubernetes pod phases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Accepted; not all of its containers have been started yet.
    Pending,
    /// At least one container runs or will be restarted.
    Running,
    /// All containers ended well, for good.
    Succeeded,
    /// All containers ended, at least one of them badly or by force.
    Failed,
}

impl Phase {
    /// Nothing of the pod will run again.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// As the Kubernetes container states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Before its first start, or between two.
    Waiting,
    /// Its process runs.
    Running,
    /// Ended and not (yet) to be restarted.
    Terminated,
}

/// A container of a pod, over all its instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// From the manifest.
    pub name: String,
    /// Id of the newest instance; empty before the first.
    pub id: String,
    /// From the manifest.
    pub image: String,
    /// Id of the image the newest instance runs; empty before the first.
    pub image_id: String,
    /// Its state.
    pub state: ContainerState,
    /// A CamelCase word: ContainerCreating, CrashLoopBackOff, Completed, Error,
    /// OOMKilled, ErrImagePull, ...; empty if there is nothing to say.
    pub reason: String,
    /// A sentence to go with the reason.
    pub message: String,
    /// Starts beyond the first.
    pub restart_count: u32,
    /// Of the newest ended instance.
    pub exit_code: i32,
    /// Of the newest ended instance; 0 if none.
    pub signal: u32,
    /// Nanoseconds since the epoch, 0 while not known: of the newest instance.
    pub started_at_ns: i64,
    /// Nanoseconds since the epoch, 0 while not known: of the newest ended instance.
    pub finished_at_ns: i64,
    /// Instances begun so far; each has a log file.
    pub instances: u32,
    /// Instances that have ended.
    pub ended: u32,
    /// Pause in milliseconds that will follow the next end, 0 before the first: then
    /// it is restarted at once.
    pub backoff_ms: u64,
    /// Pause in milliseconds after the last failure to get its image, 0 if there
    /// was none since its last start.
    pub hold_up_ms: u64,
    /// Not to be started before: nanoseconds since the epoch.
    pub not_before_ns: i64,
    /// Of an ephemeral container: the container whose processes it sees; empty: none.
    #[serde(default)]
    pub target: String,
}

impl ContainerStatus {
    pub(crate) fn new(name: &str, image: &str) -> Self {
        Self {
            name: name.to_owned(),
            id: String::new(),
            image: image.to_owned(),
            image_id: String::new(),
            state: ContainerState::Waiting,
            reason: "PodInitializing".to_owned(),
            message: String::new(),
            restart_count: 0,
            exit_code: 0,
            signal: 0,
            started_at_ns: 0,
            finished_at_ns: 0,
            instances: 0,
            ended: 0,
            backoff_ms: 0,
            hold_up_ms: 0,
            not_before_ns: 0,
            target: String::new(),
        }
    }
}

/// The pod's virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Its vCPUs.
    pub vcpus: u32,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// Process id of its VMM; 0 while there is none.
    pub vmm_pid: u32,
}

/// A pod as it is at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// 32 hexadecimal digits.
    pub id: String,
    /// From the manifest, "default" if it names none.
    pub namespace: String,
    /// From the manifest.
    pub name: String,
    /// From the manifest, otherwise the id in the form of a UUID.
    pub uid: String,
    /// From the manifest.
    pub labels: BTreeMap<String, String>,
    /// From the manifest.
    pub annotations: BTreeMap<String, String>,
    /// Its phase.
    pub phase: Phase,
    /// A CamelCase word why it is in its phase; empty if there is nothing to say.
    pub reason: String,
    /// A sentence to go with the reason.
    pub message: String,
    /// When it was accepted, nanoseconds since the epoch.
    pub created_at_ns: i64,
    /// When its VM was ready, 0 before.
    pub started_at_ns: i64,
    /// When its phase became final, 0 before.
    pub finished_at_ns: i64,
    /// The engine it asked for or got; `None` until its VM is made.
    pub engine: Option<Engine>,
    /// In the order of the manifest.
    pub init_containers: Vec<ContainerStatus>,
    /// In the order of the manifest.
    pub containers: Vec<ContainerStatus>,
    /// In the order in which they were added.
    #[serde(default)]
    pub ephemeral_containers: Vec<ContainerStatus>,
    /// Its VM; `None` before it is sized.
    pub vm: Option<Vm>,
    /// Its addresses, the first one first; none while it has no VM or only its
    /// loopback.
    #[serde(default)]
    pub pod_ips: Vec<IpAddr>,
    /// The steps of its start, in order. Those of a container are named
    /// `<container>: <step>`.
    pub stages: Vec<Stage>,
    /// The manifest as it was accepted, JSON, with the ephemeral containers that
    /// were added since.
    pub manifest: String,
}

impl Pod {
    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    pub(crate) fn vm_is_gone(&mut self) {
        if let Some(vm) = &mut self.vm {
            vm.vmm_pid = 0;
        }
        self.pod_ips.clear();
    }

    /// All containers, the init containers first, the ephemeral ones last.
    pub fn all_containers(&self) -> impl Iterator<Item = &ContainerStatus> {
        self.init_containers
            .iter()
            .chain(&self.containers)
            .chain(&self.ephemeral_containers)
    }

    /// An ephemeral container's target, if it has one.
    pub(crate) fn target(&self, status: &ContainerStatus) -> Option<&ContainerStatus> {
        self.all_containers().find(|c| c.name == status.target)
    }

    /// The target of `status` runs, or it has none.
    pub(crate) fn target_runs(&self, status: &ContainerStatus) -> bool {
        let target = self.target(status);
        status.target.is_empty() || target.is_some_and(|c| c.state == ContainerState::Running)
    }
}

/// What is wanted of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Wanted {
    /// Run until it is done.
    Run,
    /// End it; the containers get so many milliseconds.
    Stop { grace_ms: u64 },
    /// End it at once and forget it.
    Remove,
}

/// A pod in the state store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    pub(crate) pod: Pod,
    pub(crate) wanted: Wanted,
    /// The sandbox it has or is about to make.
    pub(crate) sandbox_id: Option<String>,
    /// Sandboxes made so far.
    pub(crate) attempts: u32,
    /// Pause in milliseconds that will follow the next VM's death, 0 before the first.
    pub(crate) sandbox_backoff_ms: u64,
    /// No sandbox before: nanoseconds since the epoch.
    pub(crate) sandbox_not_before_ns: i64,
}

impl PodRecord {
    /// The manifest as it is by now.
    pub(crate) fn manifest(&self) -> Result<Manifest, ManifestError> {
        let tree = serde_json::from_str(&self.pod.manifest)
            .map_err(|error| ManifestError::Syntax(error.to_string()))?;
        Manifest::accepted(tree).map(|(manifest, _)| manifest)
    }
}
