//! What callers ask for: plain structs, shaped after the CRI's sandbox and
//! container configurations without knowing their types.

use pod_network::Capabilities;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

/// What runs the virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// Our own VMM on /dev/kvm.
    Kvm,
    /// Our device back ends below qemu-system-x86_64.
    Qemu,
}

impl Engine {
    /// The engine as the VMM's wire names it.
    pub fn to_proto(self) -> vm_spec::proto::Engine {
        match self {
            Self::Kvm => vm_spec::proto::Engine::Kvm,
            Self::Qemu => vm_spec::proto::Engine::Qemu,
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
        })
    }
}

/// A micro-VM that containers can be put into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The caller's id: 1 to 64 of `[a-z0-9-]`; see [`crate::new_id`].
    pub id: String,
    /// Name, namespace, uid and attempt together are unique on the node: a
    /// repeated request never makes a second sandbox.
    pub name: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Unique id of the pod.
    pub uid: String,
    /// Counts the sandboxes of one pod, from 0.
    pub attempt: u32,
    /// For selecting.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Kept, not interpreted.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Host name inside the guest.
    pub hostname: String,
    /// 1 to [`vm_spec::MAX_VCPUS`].
    pub vcpus: u32,
    /// Guest memory in MiB, at least [`vm_spec::MIN_MEMORY_MIB`].
    pub memory_mib: u64,
    /// `None`: the manager's default.
    #[serde(default)]
    pub engine: Option<Engine>,
    /// Size of the scratch disk in MiB; `None`: the manager's default.
    #[serde(default)]
    pub scratch_mib: Option<u64>,
    /// A cgroup of the host, relative to the root of each hierarchy, for the VM's
    /// processes; empty: none. They are elsewhere where the VM does not fit.
    #[serde(default)]
    pub cgroup_parent: String,
    /// Containers share one PID namespace.
    #[serde(default)]
    pub share_process_namespace: bool,
    /// The containers' users and groups are those of a user namespace of the
    /// pod; `None`: the guest's own.
    #[serde(default)]
    pub user_namespace: Option<UserNamespace>,
    /// Kernel parameters of the guest.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// Bytes of the pod's /dev/shm; 0: the guest's default.
    #[serde(default)]
    pub shm_size: u64,
    /// Directories that containers share.
    #[serde(default)]
    pub volumes: Vec<VolumeSpec>,
    /// Containers may mount directories and files of the host.
    #[serde(default)]
    pub shares: bool,
    /// Mounts of emptyDirs that a kubelet made for this pod, by its `uid`, are not such
    /// directories, but disks and memory of the VM.
    #[serde(default)]
    pub empty_dirs_inside: bool,
    /// Block volumes that it has from the start.
    #[serde(default)]
    pub block_volumes: Vec<PathVolume>,
    /// Devices among which all its block volumes are spread, at most
    /// [`vm_spec::MAX_VOLUME_BAYS`]: volumes on different ones never wait for each
    /// other. 0: it can have none.
    #[serde(default)]
    pub volume_bays: u32,
    /// Interfaces besides the loopback; `None`: no others.
    #[serde(default)]
    pub network: Option<NetworkSpec>,
    /// Names in /etc/hosts, besides the pod's own.
    #[serde(default)]
    pub host_aliases: Vec<HostAlias>,
    /// Name resolution.
    #[serde(default)]
    pub dns: DnsSpec,
    /// Limits of all containers together, inside the guest.
    #[serde(default)]
    pub resources: ResourceSpec,
    /// The caller's own record of its request; kept, not interpreted.
    #[serde(default)]
    pub caller_data: String,
}

/// What a sandbox wants of the node's network, which the CNI configuration
/// describes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Ports of the node, limits of rates, and what else plugins are told.
    #[serde(default)]
    pub capabilities: Capabilities,
    /// Ports and limits that no plugin of the network makes are refused. Otherwise they
    /// are logged: where a kubelet is, others of the node may make them (kube-proxy's
    /// replacements).
    #[serde(default)]
    pub insist: bool,
}

/// Name resolution, as /etc/resolv.conf has it. Words without spaces.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsSpec {
    /// Nothing else: otherwise this is added to what the network says, or, where
    /// that says nothing, to what the node has. A sandbox with its loopback only has
    /// nothing else.
    pub alone: bool,
    /// Addresses of servers.
    pub servers: Vec<String>,
    /// Domains for short names.
    pub searches: Vec<String>,
    /// "ndots:2".
    pub options: Vec<String>,
}

/// Names of an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostAlias {
    /// The address.
    pub ip: IpAddr,
    /// Its names.
    pub hostnames: Vec<String>,
}

/// Ids of the guest that the ids of containers from 0 on are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    /// User ids.
    pub uids: IdRange,
    /// Group ids.
    pub gids: IdRange,
}

/// A range of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The first; not 0, which is the guest's root.
    pub first: u32,
    /// How many, at least one.
    pub count: u32,
}

/// A directory of the sandbox that its containers can mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// A DNS label, unique in the sandbox.
    pub name: String,
    /// Where its bytes live.
    pub medium: Medium,
    /// Bytes; 0 is no limit.
    pub size_limit: u64,
    /// Group that the directory belongs to, and all that is made in it; `None`: root.
    #[serde(default)]
    pub group: Option<u32>,
}

/// Where a volume's bytes live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Medium {
    /// The sandbox's scratch disk.
    Scratch,
    /// Guest memory (tmpfs).
    Memory,
}

/// A container of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Name and attempt are unique in the sandbox.
    pub name: String,
    /// Counts the instances of this container, from 0.
    pub attempt: u32,
    /// For selecting.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Kept, not interpreted.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Any name of a local image: reference, digest or id.
    pub image: String,
    /// What runs in it, complete: nothing is taken from the image's configuration.
    pub process: ProcessSpec,
    /// Volumes, images and host directories to mount.
    #[serde(default)]
    pub mounts: Vec<MountSpec>,
    /// The root file system is mounted read-only.
    #[serde(default)]
    pub readonly_rootfs: bool,
    /// All capabilities and devices, inside the guest.
    #[serde(default)]
    pub privileged: bool,
    /// Bytes of the scratch disk for what it changes in its root and the volumes
    /// of its image; 0: no limit.
    #[serde(default)]
    pub writable_layer_max: u64,
    /// Limits inside the guest.
    #[serde(default)]
    pub resources: ResourceSpec,
    /// Where output goes, in the CRI log format; missing directories are made.
    pub log_path: PathBuf,
    /// Sent by [`crate::Sandboxes::stop_container`] where it names none; 0: SIGTERM.
    #[serde(default)]
    pub stop_signal: u32,
    /// Which processes it sees.
    #[serde(default)]
    pub pid_namespace: PidNamespace,
    /// What of /proc and /sys is hidden or read-only; `None`: the agent's lists.
    #[serde(default)]
    pub paths: Option<PathRules>,
    /// Devices of the guest, besides the usual ones.
    #[serde(default)]
    pub devices: Vec<DeviceSpec>,
    /// The caller's own record of its request; kept, not interpreted.
    #[serde(default)]
    pub caller_data: String,
}

/// Which processes a container sees.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidNamespace {
    /// As [`SandboxSpec::share_process_namespace`] says.
    #[default]
    Default,
    /// Its own only.
    Container,
    /// Those of all containers that are in the pod's namespace.
    Pod,
    /// Those of the running container of this id.
    Target(String),
}

/// Absolute paths in a container; those that are not there are passed over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathRules {
    /// Covered by an empty directory or /dev/null.
    pub masked: Vec<String>,
    /// Made read-only.
    pub read_only: Vec<String>,
}

/// A device in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSpec {
    /// What `path` names.
    #[serde(default)]
    pub of: DeviceOf,
    /// "/dev/fuse", or the name of a block volume.
    pub path: String,
    /// In the container.
    pub destination: String,
    /// It cannot be opened for writing.
    pub read_only: bool,
}

/// Whose device it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceOf {
    /// A node of the guest.
    #[default]
    Guest,
    /// A block volume of the sandbox that has no file system of ours.
    Volume,
    /// A block device of the host, links followed, which is attached for the
    /// containers that have it.
    Host,
}

/// The container's first process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Program and arguments; not empty.
    pub args: Vec<String>,
    /// NAME=VALUE.
    pub env: Vec<String>,
    /// Absolute.
    pub cwd: String,
    /// User as an image's configuration says it, used where `uid` is `None`.
    pub user: String,
    /// Numeric user id.
    pub uid: Option<u32>,
    /// Numeric group id.
    pub gid: Option<u32>,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
    /// Groups that the image's /etc/group gives the user are left out.
    #[serde(default)]
    pub strict_groups: bool,
    /// Capabilities the process starts with, as "CAP_CHOWN" (bounding,
    /// effective, permitted).
    pub capabilities: Vec<String>,
    /// Those of them that a program executed by another user keeps.
    #[serde(default)]
    pub ambient_capabilities: Vec<String>,
    /// Resource limits.
    pub rlimits: Vec<RlimitSpec>,
    /// A terminal instead of pipes.
    pub terminal: bool,
    /// It has a stdin, open until somebody closes it.
    pub stdin: bool,
    /// It is closed when the first attached session with stdin ends.
    #[serde(default)]
    pub stdin_once: bool,
    /// No program it executes gains privileges.
    pub no_new_privileges: bool,
    /// -1000 to 1000, inside the guest.
    pub oom_score_adj: i32,
    /// A seccomp filter's `struct sock_filter` instructions; empty: none.
    #[serde(default)]
    pub seccomp: Vec<u8>,
}

/// One resource limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RlimitSpec {
    /// "RLIMIT_NOFILE".
    pub kind: String,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A volume of the sandbox, by its name.
    Volume(String),
    /// A local image, by any of its names; always read-only.
    Image(String),
    /// A file or directory of the host.
    Host(HostMount),
}

/// A mount of a file or directory of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostMount {
    /// Absolute; links are followed once, when the container is made.
    pub path: PathBuf,
    /// What the host mounts below it later is seen, too.
    pub host_to_container: bool,
    /// Where the mount is read-only, what is mounted below is, too.
    #[serde(default)]
    pub recursive_read_only: bool,
    /// Its files' owners are users of the sandbox's user namespace, not of the
    /// guest.
    #[serde(default)]
    pub id_mapped: bool,
    /// If not empty, what is found must lie in one of these directories, and
    /// nothing is made where nothing is.
    #[serde(default)]
    pub within: Vec<PathBuf>,
}

/// A mount of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// What it shows.
    pub source: MountSource,
    /// Below the source; empty: all of it.
    #[serde(default)]
    pub sub_path: String,
    /// Absolute path in the container.
    pub destination: String,
    /// Mounted read-only.
    #[serde(default)]
    pub read_only: bool,
}

/// Limits of a container inside the guest (cgroup v2); 0: none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceSpec {
    /// CPU microseconds per period.
    pub cpu_quota_us: u64,
    /// The period in microseconds.
    pub cpu_period_us: u64,
    /// 1 to 10000.
    pub cpu_weight: u64,
    /// Bytes.
    pub memory_max: u64,
    /// Bytes that are reclaimed last.
    pub memory_low: u64,
    /// Processes and threads.
    pub pids_max: u64,
    /// One victim of the OOM killer ends the whole container.
    pub oom_group: bool,
    /// CPUs it may use, "0-1,3"; empty: all.
    pub cpuset_cpus: String,
    /// Memory nodes it may use; empty: all.
    pub cpuset_mems: String,
    /// Other files of its cgroup (cgroup v2) and their contents.
    pub unified: BTreeMap<String, String>,
}

/// A block volume: a file or block device of the host that the VM has as a disk,
/// and that outlives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockVolumeSpec {
    /// A DNS label, unique among the sandbox's volumes.
    pub name: String,
    /// The guest can change nothing in it.
    pub read_only: bool,
    /// What containers have of it.
    pub shown_as: ShownAs,
    /// By which the guest finds it (`/dev/disk/by-id/virtio-<serial>`): at most 64
    /// letters, digits, '-', '_' and '.'; empty: none.
    pub serial: String,
    /// Group of the device, or of all in the file system.
    pub group: Option<u32>,
    /// When all in the file system is given to the group.
    #[serde(default)]
    pub group_change: fs_group::Policy,
    /// How much I/O it may do.
    pub limits: IoLimits,
    /// Nobody else on the host has it: refused where it is mounted or locked, and
    /// locked as long as the VM has it.
    pub exclusive: bool,
}

impl BlockVolumeSpec {
    /// A volume that this sandbox alone has, to write, without serial number, group and
    /// limits.
    pub(crate) fn new(name: String, shown_as: ShownAs) -> Self {
        Self {
            name,
            read_only: false,
            shown_as,
            serial: String::new(),
            group: None,
            group_change: fs_group::Policy::default(),
            limits: IoLimits::default(),
            exclusive: true,
        }
    }
}

/// What containers have of a block volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ShownAs {
    /// The device, by [`DeviceOf::Volume`].
    Device,
    /// The file system on it, by [`MountSource::Volume`]. Mounted in the guest only.
    FileSystem {
        /// `None`: the one that is on it, or ext4.
        kind: Option<FileSystem>,
        /// One is made if the volume is blank. A volume that is not blank is never
        /// formatted.
        make: bool,
    },
    /// One directory of the ext4 file system on it, by [`MountSource::Volume`]: made so
    /// if it is missing. What is deleted in it becomes a hole of the volume.
    Directory(DirectorySpec),
}

/// A directory's owners and its mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectorySpec {
    /// Numeric user id.
    pub uid: u32,
    /// Numeric group id.
    pub gid: u32,
    /// Permission bits, those for set-ids and sticky among them.
    pub mode: u32,
}

/// A file system of a block volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileSystem {
    /// ext4, and its forebears.
    Ext4,
    /// XFS.
    Xfs,
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        })
    }
}

/// How much I/O a block volume may do; `None`: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IoLimits {
    /// Bytes read, written and zeroed.
    pub bytes: Option<RateLimit>,
    /// Requests, but for flushes.
    pub operations: Option<RateLimit>,
}

/// A rate, and how much may come at once after a pause; both at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// Units a second.
    pub per_second: u64,
    /// Units.
    pub burst: u64,
}

/// A regular file or block device of the host by its path, links followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskPath {
    /// Absolute.
    pub path: PathBuf,
    /// If not empty, what is found must lie in, or be, one of these.
    #[serde(default)]
    pub within: Vec<PathBuf>,
}

/// A block volume and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathVolume {
    /// How it is attached.
    pub volume: BlockVolumeSpec,
    /// What is attached.
    pub at: DiskPath,
}
