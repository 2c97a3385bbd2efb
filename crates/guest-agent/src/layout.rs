//! Where the agent keeps things in its own root file system, which containers
//! never see, and limits that concern all of the guest.

/// Everything below.
pub(crate) const RUN: &str = "/run";
/// Mounted images, one directory a partition.
pub(crate) const IMAGES: &str = "/run/images";
/// Where a container's root is mounted, in its own mount namespace, before it
/// becomes "/".
pub(crate) const NEW_ROOT: &str = "/run/root";
/// Where a container's image is mounted for its overlay, in its own mount
/// namespace, where its owners are users of a user namespace.
pub(crate) const MAPPED_IMAGE: &str = "/run/mapped-image";
/// The scratch disk, or a tmpfs in its place.
pub(crate) const SCRATCH: &str = "/run/scratch";
/// Writable layers of containers, on the scratch disk.
pub(crate) const LAYERS: &str = "/run/scratch/layers";
/// Volumes that are directories of the scratch disk.
pub(crate) const DISK_VOLUMES: &str = "/run/scratch/volumes";
/// Volumes that are file systems in memory.
pub(crate) const MEMORY_VOLUMES: &str = "/run/volumes";
/// Mounted file systems of block volumes, by name.
pub(crate) const BLOCK_VOLUMES: &str = "/run/block-volumes";
/// Links to block volumes by their serial numbers, and the directory above.
pub(crate) const DISKS_BY_ID: &str = "/dev/disk/by-id";
/// See [`DISKS_BY_ID`].
pub(crate) const DISKS: &str = "/dev/disk";
/// The pod's /dev/shm.
pub(crate) const SHM: &str = "/run/shm";
/// The sandbox's virtio-fs device: what the host shares with the pod.
pub(crate) const SHARES: &str = "/run/shares";
/// Text of the pod's /etc/hosts and /etc/resolv.conf.
pub(crate) const HOSTS: &str = "/run/hosts";
/// See [`HOSTS`].
pub(crate) const RESOLV_CONF: &str = "/run/resolv.conf";
/// The cgroup v2 hierarchy.
pub(crate) const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// Parent of every container's cgroup.
pub(crate) const CGROUP_CONTAINERS: &str = "/sys/fs/cgroup/containers";

/// Hard limit of open files of the agent and, unless their limits say otherwise,
/// of containers.
pub(crate) const MAX_FILES: u64 = 1 << 19;
/// Soft limit of open files that containers start with.
pub(crate) const DEFAULT_FILES: u64 = 1024;
