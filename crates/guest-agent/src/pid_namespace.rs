//! PID namespaces that a container is put into: the pod's own, whose PID 1 is a
//! process of the agent that only waits and lets the kernel reap, and those of
//! running containers.

use crate::error::{AgentError, Doing};
use crate::fs_mount;
use crate::sys::process;
use nix::sched::{CloneFlags, setns};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags as Attr, MountPropagationFlags, UnmountFlags};
use rustix::process::Pid;
use rustix::thread::CapabilitySet;
use std::os::fd::OwnedFd;

/// A PID namespace that exists.
#[derive(Debug)]
pub(crate) struct PidNamespace {
    namespace: OwnedFd,
    own: OwnedFd,
}

/// User and group of the waiting process, as of Kubernetes' pause image.
const NOBODY: u32 = 65535;

impl PidNamespace {
    /// Makes a namespace and its waiting PID 1.
    pub(crate) fn create() -> Result<Self, AgentError> {
        let flags = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS;
        let pid = process::fork_into(flags, None, &[], wait_for_ever)
            .doing(|| "making the pod's PID namespace".into())?;
        Self::of(pid)
    }

    /// The namespace of a process, which is not reaped yet.
    pub(crate) fn of(pid: Pid) -> Result<Self, AgentError> {
        Ok(Self {
            namespace: open_namespace(&pid_path(pid))?,
            own: open_namespace("/proc/self/ns/pid")?,
        })
    }

    /// Runs `fork` so that the process it makes is in this namespace. ENOMEM if
    /// its PID 1 has ended.
    pub(crate) fn inside<T>(&self, fork: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        // Only children go there; the agent itself stays where it is.
        setns(&self.namespace, CloneFlags::CLONE_NEWPID).map_err(to_errno)?;
        let result = fork();
        let _ = setns(&self.own, CloneFlags::CLONE_NEWPID);
        result
    }
}

fn to_errno(e: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(e as i32)
}

fn pid_path(pid: Pid) -> String {
    format!("/proc/{}/ns/pid", pid.as_raw_nonzero())
}

fn open_namespace(path: &str) -> Result<OwnedFd, AgentError> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .doing(|| format!("opening {path}"))
}

/// The namespace's PID 1. Containers can see it, so it holds nothing of the
/// agent's: an empty root, no descriptors, no privileges.
fn wait_for_ever() -> i32 {
    process::reset_signals();
    process::reap_by_itself();
    let _ = rustix::thread::set_name(c"pause");
    if give_everything_up().is_err() {
        return 1;
    }
    process::wait_without_descriptors()
}

fn give_everything_up() -> Result<(), AgentError> {
    use rustix::mount::{mount_change, unmount};
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).doing(|| "making mounts private".into())?;
    let empty = fs_mount::new(
        "tmpfs",
        &[("mode", "0555"), ("size", "4k")],
        Attr::MOUNT_ATTR_RDONLY | Attr::MOUNT_ATTR_NOEXEC,
    )?;
    fs_mount::attach_at(empty, crate::layout::NEW_ROOT)?;
    let enter = || -> Result<(), Errno> {
        rustix::process::chdir(crate::layout::NEW_ROOT)?;
        rustix::process::pivot_root(".", ".")?;
        unmount(".", UnmountFlags::DETACH)?;
        rustix::process::chdir("/")?;
        rustix::thread::set_thread_groups(&[])?;
        let gid = rustix::process::Gid::from_raw(NOBODY);
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        let uid = rustix::process::Uid::from_raw(NOBODY);
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        let none = rustix::thread::CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, none)
    };
    enter().doing(|| "giving up privileges".into())
}
