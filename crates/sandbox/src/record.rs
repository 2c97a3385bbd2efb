//! What is recorded of sandboxes and containers: their specification, their
//! state, and the steps to undo. Written before the world changes, so that a
//! daemon killed at any moment knows what may exist.

use crate::clock::now_ns;
use crate::spec::{BlockVolumeSpec, ContainerSpec, Engine, SandboxSpec};
use pod_network::NetworkRecord;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

/// State of a sandbox.
///
/// ```text
///            run_sandbox              VM gone, stop_sandbox
///  Creating ─────────────▶ Ready ─────────────────────────▶ NotReady
///     │ failed                                                │ remove_sandbox
///     └───────────▶ undone, record gone ◀──────── Removing ◀──┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxState {
    /// Being made; undone if the daemon ends now.
    Creating,
    /// The guest takes containers.
    Ready,
    /// The VM is gone; logs remain.
    NotReady,
    /// Being removed; goes on when the daemon starts again.
    Removing,
}

/// State of a container.
///
/// ```text
///            create           start            exit watch
///  Creating ────────▶ Created ───────▶ Running ──────────▶ Exited ──▶ removed
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Being made; undone if the daemon ends now.
    Creating,
    /// Can be started.
    Created,
    /// Its first process was started.
    Running,
    /// Its first process has ended, or the VM with it.
    Exited,
    /// Being removed.
    Removing,
}

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code, or 128 + signal.
    pub code: i32,
    /// The signal that ended it, 0 if none.
    pub signal: u32,
    /// The guest's OOM killer ended one of its processes.
    pub oom_killed: bool,
    /// Set where it did not end by itself: what happened to it.
    pub lost: Option<String>,
    /// It was never started: why.
    pub start_error: Option<String>,
    /// Its log is incomplete: why.
    pub log_error: Option<String>,
    /// Nanoseconds since the epoch.
    pub finished_at_ns: i64,
}

/// How long a step took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// See [`stages`].
    pub name: String,
    /// Nanoseconds since the epoch.
    pub started_at_ns: i64,
    /// Nanoseconds.
    pub duration_ns: i64,
}

/// Names of the stages.
pub mod stages {
    /// The CNI plugins made the network, beside what does not need it.
    pub const NETWORK: &str = "network";
    /// The scratch disk was copied from its template.
    pub const SCRATCH: &str = "scratch disk";
    /// The VMM process was started and took a connection.
    pub const VMM_START: &str = "vmm start";
    /// From the VMM's start to its reading of the boot request.
    pub const BOOT_REQUEST: &str = "boot request";
    /// From the VMM's start to the first guest instruction.
    pub const FIRST_INSTRUCTION: &str = "first instruction";
    /// From the first guest instruction to the agent's greeting.
    pub const AGENT_READY: &str = "agent ready";
    /// The guest's own account: kernel start to spherule-init's start.
    pub const GUEST_KERNEL: &str = "guest kernel";
    /// The agent set up the sandbox.
    pub const SETUP: &str = "sandbox set up";
    /// The image was attached to the VM.
    pub const IMAGE_ATTACH: &str = "image attach";
    /// The agent made the container.
    pub const CREATE: &str = "create";
    /// The VMM opened the container's streams.
    pub const LOG_ATTACH: &str = "log attach";
    /// The agent started the container.
    pub const START: &str = "start";
}

/// A thing that exists, or may, because a step was begun. A record's steps are
/// its undo stack: undone from the last to the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// The network namespace and what the CNI plugins made; the record's `network`
    /// says how far that has come.
    Network,
    /// `<root>/pods/<id>` and what is in it.
    StateDir,
    /// `<run>/pods/<id>` and what is in it.
    RunDir,
    /// The scratch disk in the state directory.
    Scratch,
    /// The VMM's process; `None` while it is being started.
    Vmm(Option<VmmId>),
    /// A lease on an image, by its id.
    ImageLease(String),
    /// The image's extent in the VM by its name, the image's chain id; shared by
    /// the containers of one image.
    ImageExtent(String),
    /// A directory or file of the host in the VM, by its name there; shared by
    /// the containers that mount it.
    Share(String),
    /// A block device of the host in the VM, or the disk of an emptyDir, by the name
    /// of its volume there; shared by the containers that have it.
    BlockDevice(String),
    /// The container in the guest.
    GuestContainer,
    /// The container's log in the VMM.
    Log,
}

/// A process, told apart from a later one with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmId {
    /// Process id.
    pub pid: u32,
    /// Start time as in /proc/pid/stat, clock ticks since the host's boot.
    pub start_time: u64,
}

/// What is known of a sandbox; also its snapshot for callers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// As it was asked for.
    pub spec: SandboxSpec,
    /// The engine it got.
    pub engine: Engine,
    /// Its state.
    pub state: SandboxState,
    /// Why it is `NotReady`: `stopped`, or what happened to the VM.
    pub reason: Option<NotReadyReason>,
    /// Nanoseconds since the epoch.
    pub created_at_ns: i64,
    /// When it became ready, 0 before.
    pub ready_at_ns: i64,
    /// When its VM ended, 0 before.
    pub finished_at_ns: i64,
    /// The steps of its start.
    pub stages: Vec<Stage>,
    /// The guest kernel's release.
    pub kernel_release: String,
    /// Process id of the engine's child (QEMU), 0 if there is none.
    #[serde(default)]
    pub engine_pid: u32,
    /// Its VMM is in the cgroup of [`SandboxSpec::cgroup_parent`].
    #[serde(default)]
    pub in_cgroup_parent: bool,
    /// Its network, until that is taken away.
    #[serde(default)]
    pub network: Option<NetworkRecord>,
    /// Its addresses in the network, the first one first; none without one.
    #[serde(default)]
    pub pod_ips: Vec<IpAddr>,
    /// Its block volumes. They end with the VM.
    #[serde(default)]
    pub block_volumes: Vec<BlockVolume>,
    /// Where a kubelet's emptyDirs are that are no block volumes.
    #[serde(default)]
    pub empty_dirs: BTreeMap<String, EmptyDirPlace>,
    /// The undo stack.
    pub steps: Vec<Step>,
}

/// Where a kubelet's emptyDir is that is no block volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EmptyDirPlace {
    /// In the guest's memory.
    Memory,
    /// On the host, shared.
    Shared,
}

/// A block volume of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockVolume {
    /// As it was asked for.
    pub spec: BlockVolumeSpec,
    /// What it is, for people: a path, or that it came as a descriptor.
    pub source: String,
    /// How far it is.
    pub state: VolumeState,
    /// Bytes, once it is Attached.
    pub length: u64,
}

/// State of a block volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeState {
    /// A file system is made on it, which was blank.
    Formatting(DiskId),
    /// Being attached; undone if the daemon ends now.
    Attaching,
    /// Containers can have it.
    Attached,
    /// Being detached; goes on when the daemon starts again.
    Detaching,
}

/// A file or device of the host, told apart from what its path names later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskId {
    /// Device number of its file system.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// Device number of a device.
    pub rdev: u64,
}

impl Sandbox {
    /// Enters a state, at this time.
    pub(crate) fn set_state(&mut self, state: SandboxState, reason: Option<NotReadyReason>) {
        self.state = state;
        self.reason = reason;
        if state == SandboxState::NotReady && self.finished_at_ns == 0 {
            self.finished_at_ns = now_ns();
        }
    }

    /// The block volume of that name.
    pub fn block_volume(&self, name: &str) -> Option<&BlockVolume> {
        self.block_volumes.iter().find(|v| v.spec.name == name)
    }

    /// Process id of the VMM while the sandbox has one.
    pub fn vmm_pid(&self) -> Option<u32> {
        self.steps.iter().find_map(|step| match step {
            Step::Vmm(Some(id)) => Some(id.pid),
            _ => None,
        })
    }
}

/// Why a sandbox has no VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotReadyReason {
    /// The caller stopped it.
    Stopped,
    /// The VM ended without being asked to: what is known of the cause.
    VmDied(String),
}

/// A user and its groups, as the image's databases name them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserIds {
    /// Numeric user id.
    pub uid: u32,
    /// Numeric id of the primary group.
    pub gid: u32,
    /// All its groups, sorted, the primary one among them.
    pub groups: Vec<u32>,
}

/// What is known of a container; also its snapshot for callers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// 32 hexadecimal digits, given by this crate.
    pub id: String,
    /// The sandbox it is in.
    pub sandbox_id: String,
    /// As it was asked for.
    pub spec: ContainerSpec,
    /// The image's id.
    pub image_id: String,
    /// Who its first process is, once it is Created.
    #[serde(default)]
    pub user: Option<UserIds>,
    /// Its state.
    pub state: ContainerState,
    /// Process id in the guest, 0 before its start.
    pub pid: u32,
    /// Nanoseconds since the epoch.
    pub created_at_ns: i64,
    /// 0 before its start.
    pub started_at_ns: i64,
    /// Why its last start failed.
    #[serde(default)]
    pub start_error: Option<String>,
    /// How it ended.
    pub exit: Option<Exit>,
    /// The steps of its start.
    pub stages: Vec<Stage>,
    /// The undo stack.
    pub steps: Vec<Step>,
}

impl Container {
    /// Puts a step on the undo stack, once.
    pub(crate) fn add_step(&mut self, step: Step) {
        if !self.steps.contains(&step) {
            self.steps.push(step);
        }
    }

    /// Where its output is.
    pub fn log_path(&self) -> &PathBuf {
        &self.spec.log_path
    }
}
