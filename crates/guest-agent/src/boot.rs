//! The first steps of PID 1: a root file system of its own and the kernel's file
//! systems, before the host is listened to.

use crate::cgroup;
use crate::error::{AgentError, Doing};
use crate::fs_mount::{attach_at, make_dir, new};
use crate::layout;
use crate::log;
use rustix::mount::{MountAttrFlags as Attr, MountFlags, mount, mount_move};
use rustix::process::{Resource, Rlimit, chdir, chroot, setrlimit};

/// Makes the guest ready for [`crate::server`].
pub(crate) fn prepare() -> Result<(), AgentError> {
    leave_initramfs()?;
    let secure = Attr::MOUNT_ATTR_NOSUID | Attr::MOUNT_ATTR_NODEV | Attr::MOUNT_ATTR_NOEXEC;
    attach_at(
        new("devtmpfs", &[("mode", "0755")], Attr::MOUNT_ATTR_NOSUID)?,
        "/dev",
    )?;
    log::open();
    attach_at(new("proc", &[], secure)?, "/proc")?;
    attach_at(new("sysfs", &[], secure)?, "/sys")?;
    for dir in [layout::RUN, layout::IMAGES, layout::NEW_ROOT] {
        make_dir(dir)?;
    }
    cgroup::mount_hierarchy()?;
    protect_from_oom();
    allow_many_files()?;
    crate::sys::link::set_up("lo").doing(|| "bringing the interface lo up".into())?;
    Ok(())
}

/// Puts a tmpfs in the place of the initramfs: the kernel lets no container
/// pivot away from an initramfs, and the agent's files are then on a file system
/// whose size is bounded.
fn leave_initramfs() -> Result<(), AgentError> {
    let root = "/proc";
    mount(
        "spherule",
        root,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        Some(c"mode=0755,size=16m"),
    )
    .doing(|| "mounting the agent's root".into())?;
    chdir(root).doing(|| "entering the agent's root".into())?;
    mount_move(".", "/").doing(|| "moving the agent's root".into())?;
    chroot(".").doing(|| "changing to the agent's root".into())?;
    chdir("/").doing(|| "entering the agent's root".into())
}

/// Each stream of a container takes descriptors; and containers inherit the hard
/// limit, where programs expect more than the kernel's 4096.
fn allow_many_files() -> Result<(), AgentError> {
    let limit = Rlimit {
        current: Some(layout::MAX_FILES),
        maximum: Some(layout::MAX_FILES),
    };
    setrlimit(Resource::Nofile, limit).doing(|| "raising the limit of open files".into())
}

/// Whatever a pod does with its memory, the agent is not what dies of it.
fn protect_from_oom() {
    if let Err(e) = std::fs::write("/proc/self/oom_score_adj", "-1000") {
        log::warn(&format!(
            "the agent is not protected from the OOM killer: {e}"
        ));
    }
}
