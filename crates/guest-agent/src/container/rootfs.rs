//! A container's file system tree, built by its own first process in its own
//! mount namespace.
//!
//! Order matters for safety: everything that comes from outside (volumes, /dev)
//! is made as detached mounts first; then the process moves into the new root
//! and lets go of the old one; only then are paths of the image looked at, when
//! no link in it can lead anywhere but the container.

use super::mounts::{self, Planned, Source};
use super::request::Checked;
use super::{devices, hidden, image_volumes};
use crate::error::{AgentError, Doing};
use crate::fs_mount;
use crate::layout;
use crate::rooted::{Escape, Missing, Rooted};
use crate::sys::mount_attr;
use crate::users::Users;
use guest_api::proto::Device;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, chownat};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags as Attr, MountPropagationFlags, UnmountFlags};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

/// Where the parts of a container's root come from, in the agent's tree.
#[derive(Debug)]
pub(crate) struct Sources {
    /// The mounted image.
    pub(crate) image: String,
    /// Directory with the writable layer: "upper" and "work".
    pub(crate) layer: String,
    /// In the order of the request's mounts.
    pub(crate) mounts: Vec<Source>,
    /// The request's devices, each with its path in the guest.
    pub(crate) devices: Vec<Device>,
    pub(crate) users: Rc<Users>,
    /// The pod's /etc/hosts and /etc/resolv.conf are to be used.
    pub(crate) hosts: bool,
    pub(crate) resolv_conf: bool,
}

/// The new root as the current one; see the module's documentation.
pub(crate) struct Root {
    root: OwnedFd,
    /// Its /dev/null, whatever a volume covers.
    null: OwnedFd,
}

/// Builds the tree and moves the calling process into it.
pub(crate) fn enter(checked: &Checked, sources: &Sources) -> Result<Root, AgentError> {
    let request = &checked.request;
    // Nothing mounted here gets out. What is mounted in a share later comes in
    // to its slaves; all other mounts of the agent are private already.
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", slave).doing(|| "detaching from the agent's mounts".into())?;
    let dev = devices::make(request.privileged, checked.process.terminal)?;
    let mut planned = plan_files(checked, sources)?;
    let image = shown_image(sources)?;
    planned.extend(image_volumes::plan(&request.image_volumes, image, sources)?);
    planned.extend(mounts::plan(
        &request.mounts,
        &sources.mounts,
        &sources.users,
    )?);
    planned.extend(devices::plan(&sources.devices)?);
    // A mount on a directory must not hide one made below it before.
    planned.sort_by_key(|p| p.destination.split('/').filter(|c| !c.is_empty()).count());
    let shm = fs_mount::bind_path(layout::SHM).doing(|| "binding the pod's /dev/shm".into())?;

    let overlay = overlay(image, &sources.layer)?;
    fs_mount::attach_at(overlay, layout::NEW_ROOT)?;
    pivot(layout::NEW_ROOT).doing(|| "moving into the container's root".into())?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open("/", flags, Mode::empty())
        .doing(|| "opening the container's root".into())?;
    let rooted = Rooted::new(root.as_fd(), Escape::Contain);
    mount_kernel_file_systems(rooted, request.privileged, &sources.users, &dev, &shm)?;
    let null = devices::null(&dev)?;
    let root = Root { root, null };
    for plan in &planned {
        root.attach_planned(plan)?;
    }
    Ok(root)
}

/// Changes the root to `new` and detaches the old one.
fn pivot(new: &str) -> Result<(), Errno> {
    rustix::process::chdir(new)?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}

/// Where the image is mounted with the owners that its files have for the pod's
/// users. An overlay's own files have the ids that its layers show.
fn shown_image(sources: &Sources) -> Result<&str, AgentError> {
    if sources.users.fd().is_none() {
        return Ok(&sources.image);
    }
    let mapped = fs_mount::bind_path(&sources.image)
        .and_then(|mount| sources.users.map(&mount, false).map(|()| mount))
        .doing(|| "giving the image to the pod's users".into())?;
    fs_mount::attach_at(mapped, layout::MAPPED_IMAGE)?;
    Ok(layout::MAPPED_IMAGE)
}

/// The directory `below` with the writable layer `layer` above it.
pub(crate) fn overlay(below: &str, layer: &str) -> Result<OwnedFd, AgentError> {
    let upper = format!("{layer}/upper");
    let work = format!("{layer}/work");
    // volatile: the layer ends with the container, so nothing waits for syncs.
    let options = [
        ("lowerdir", below),
        ("upperdir", upper.as_str()),
        ("workdir", work.as_str()),
        ("volatile", ""),
    ];
    fs_mount::new("overlay", &options, Attr::MOUNT_ATTR_NODEV)
}

/// The pod's own files. A mount of the request at the same place wins: it is
/// attached later.
fn plan_files(checked: &Checked, sources: &Sources) -> Result<Vec<Planned>, AgentError> {
    let mut planned = Vec::new();
    for (wanted, file, destination) in [
        (sources.hosts, layout::HOSTS, "/etc/hosts"),
        (sources.resolv_conf, layout::RESOLV_CONF, "/etc/resolv.conf"),
    ] {
        if wanted {
            let doing = || format!("binding {destination}");
            let mount = fs_mount::bind_path(file).doing(doing)?;
            if checked.request.readonly_rootfs {
                mount_attr::add(&mount, Attr::MOUNT_ATTR_RDONLY, false).doing(doing)?;
            }
            planned.push(Planned {
                mount,
                destination: destination.to_owned(),
                missing: Missing::File,
                field: "image".to_owned(),
            });
        }
    }
    Ok(planned)
}

fn mount_kernel_file_systems(
    rooted: Rooted<'_>,
    privileged: bool,
    users: &Users,
    dev: &OwnedFd,
    shm: &OwnedFd,
) -> Result<(), AgentError> {
    let secure = Attr::MOUNT_ATTR_NOSUID | Attr::MOUNT_ATTR_NODEV | Attr::MOUNT_ATTR_NOEXEC;
    let system = if privileged {
        secure
    } else {
        secure | Attr::MOUNT_ATTR_RDONLY
    };
    let queues = fs_mount::new("mqueue", &[], secure)?;
    own(&queues, users)?;
    attach(rooted, fs_mount::new("proc", &[], secure)?, "/proc")?;
    attach(rooted, dev, "/dev")?;
    if !privileged {
        devices::allow_only_usual(dev).doing(|| "restricting the container's devices".into())?;
    }
    attach(rooted, terminals(users)?, "/dev/pts")?;
    attach(rooted, shm, "/dev/shm")?;
    attach(rooted, queues, "/dev/mqueue")?;
    attach(rooted, fs_mount::new("sysfs", &[], system)?, "/sys")?;
    attach(
        rooted,
        fs_mount::new("cgroup2", &[], system)?,
        "/sys/fs/cgroup",
    )
}

/// Group of terminals, as every distribution has it.
const TTY: u32 = 5;

/// The container's own terminals.
fn terminals(users: &Users) -> Result<OwnedFd, AgentError> {
    let group = users.outside(0, TTY).unwrap_or_else(|| users.root()).1;
    let group = group.as_raw().to_string();
    let options = [
        ("newinstance", ""),
        ("ptmxmode", "0666"),
        ("mode", "0620"),
        ("gid", &group),
    ];
    let attributes = Attr::MOUNT_ATTR_NOSUID | Attr::MOUNT_ATTR_NOEXEC;
    let mount = fs_mount::new("devpts", &options, attributes)?;
    own(&mount, users)?;
    let (uid, gid) = users.root();
    chownat(&mount, "ptmx", Some(uid), Some(gid), AtFlags::empty())
        .doing(|| "giving /dev/ptmx to the pod's users".into())?;
    Ok(mount)
}

/// Makes the containers' root the owner of a file system's root, where the
/// kernel has made it its own.
fn own(mount: &OwnedFd, users: &Users) -> Result<(), AgentError> {
    let (uid, gid) = users.root();
    chownat(mount, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
        .doing(|| "giving a file system to the pod's users".into())
}

/// Attaches one of the kernel's file systems. Its place must not be a link in
/// the image: what is hidden and protected below would be elsewhere.
fn attach(rooted: Rooted<'_>, mount: impl AsFd, path: &str) -> Result<(), AgentError> {
    let target = match rooted.open_or_make_plain(path) {
        Err(Errno::LOOP) => {
            let problem = format!("{path} of the image is a symbolic link");
            return Err(AgentError::invalid("image", problem));
        }
        other => other,
    };
    target
        .and_then(|target| fs_mount::attach(mount, target))
        .doing(|| format!("mounting {path} in the container"))
}

impl Root {
    /// Paths in the container.
    pub(crate) fn rooted(&self) -> Rooted<'_> {
        Rooted::new(self.root.as_fd(), Escape::Contain)
    }

    /// Covers and protects what the request's rules, or the agent's own, say:
    /// once nobody needs to read it any more.
    pub(crate) fn hide(&self, checked: &Checked) -> Result<(), AgentError> {
        if checked.request.privileged {
            return Ok(());
        }
        hidden::apply(&checked.paths, self.rooted(), &self.null)
    }

    /// Makes the root itself read-only, not what is mounted in it.
    pub(crate) fn make_read_only(&self) -> Result<(), AgentError> {
        mount_attr::add(&self.root, Attr::MOUNT_ATTR_RDONLY, false)
            .doing(|| "making the root read-only".into())
    }

    fn attach_planned(&self, plan: &Planned) -> Result<(), AgentError> {
        let attach = || {
            let target = self
                .rooted()
                .open_or_make(&plan.destination, plan.missing)?;
            let kind = FileType::from_raw_mode(rustix::fs::fstat(&target)?.st_mode);
            if (kind == FileType::Directory) != (plan.missing == Missing::Directory) {
                return Err(Errno::NOTDIR);
            }
            fs_mount::attach(&plan.mount, target)
        };
        attach().map_err(|e| {
            let why = match e {
                Errno::NOTDIR => "a file and a directory do not fit on each other".to_owned(),
                e => e.to_string(),
            };
            AgentError::invalid(
                plan.field.clone(),
                format!("mounting {} in the container: {why}", plan.destination),
            )
        })
    }
}
