//! A container's file system tree, built by its own first process in its own
//! mount namespace.
//!
//! Order matters for safety: everything that comes from outside (volumes, /dev)
//! is made as detached mounts first; then the process moves into the new root
//! and lets go of the old one; only then are paths of the image looked at, when
//! no link in it can lead anywhere but the container.

use super::devices;
use super::request::Checked;
use crate::error::{AgentError, Doing};
use crate::fs_mount;
use crate::layout;
use crate::rooted::{Escape, Missing, Rooted};
use crate::sys::mount_attr;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags as Attr, MountPropagationFlags, UnmountFlags};
use std::os::fd::{AsFd, OwnedFd};

/// Kernel files that containers do not see, as in other runtimes.
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Kernel files that containers only read.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Where the parts of a container's root come from, in the agent's tree.
#[derive(Debug)]
pub(crate) struct Sources {
    /// The mounted image.
    pub(crate) image: String,
    /// Directory with the writable layer: "upper" and "work".
    pub(crate) layer: String,
    /// Directories of the volumes, in the order of the request's mounts.
    pub(crate) volumes: Vec<String>,
    /// The pod's /etc/hosts and /etc/resolv.conf are to be used.
    pub(crate) hosts: bool,
    pub(crate) resolv_conf: bool,
}

/// A detached mount and where it goes.
struct Planned {
    mount: OwnedFd,
    destination: String,
    missing: Missing,
    /// Field of the request to blame.
    field: String,
}

/// The new root as the current one; see the module's documentation.
pub(crate) struct Root {
    root: OwnedFd,
}

/// Builds the tree and moves the calling process into it.
pub(crate) fn enter(checked: &Checked, sources: &Sources) -> Result<Root, AgentError> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).doing(|| "making mounts private".into())?;
    let terminal = checked.process.terminal;
    let dev = devices::make(checked.request.privileged, terminal)?;
    let mut planned = plan_volumes(checked, sources)?;
    planned.extend(plan_files(sources)?);
    // A mount on a directory must not hide one made below it before.
    planned.sort_by_key(|p| p.destination.split('/').filter(|c| !c.is_empty()).count());
    let shm = fs_mount::bind_path(layout::SHM).doing(|| "binding the pod's /dev/shm".into())?;

    mount_overlay(sources)?;
    pivot(layout::NEW_ROOT).doing(|| "moving into the container's root".into())?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open("/", flags, Mode::empty())
        .doing(|| "opening the container's root".into())?;
    let root = Root { root };

    root.mount_kernel_file_systems(checked.request.privileged, &dev, &shm)?;
    for plan in &planned {
        root.attach_volume(plan)?;
    }
    if !checked.request.privileged {
        root.hide_kernel_files()?;
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

fn mount_overlay(sources: &Sources) -> Result<(), AgentError> {
    let upper = format!("{}/upper", sources.layer);
    let work = format!("{}/work", sources.layer);
    // volatile: the layer ends with the container, so nothing waits for syncs.
    let options = [
        ("lowerdir", sources.image.as_str()),
        ("upperdir", upper.as_str()),
        ("workdir", work.as_str()),
        ("volatile", ""),
    ];
    let overlay = fs_mount::new("overlay", &options, Attr::MOUNT_ATTR_NODEV)?;
    fs_mount::attach_at(overlay, layout::NEW_ROOT)
}

fn plan_volumes(checked: &Checked, sources: &Sources) -> Result<Vec<Planned>, AgentError> {
    let mounts = checked.request.mounts.iter().zip(&sources.volumes);
    let plan = |(i, (mount, volume)): (usize, (&guest_api::proto::Mount, &String))| {
        let field = format!("mounts[{i}]");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::open(volume.as_str(), flags, Mode::empty())
            .doing(|| format!("opening the volume {}", mount.volume))?;
        let rooted = Rooted::new(top.as_fd(), Escape::Refuse);
        let source = rooted
            .open_or_make(&mount.sub_path, Missing::Directory)
            .map_err(|e| {
                let why = match e {
                    Errno::XDEV => "it leads out of the volume".to_owned(),
                    e => e.to_string(),
                };
                AgentError::invalid(
                    format!("{field}.sub_path"),
                    format!(
                        "opening {} of the volume {}: {why}",
                        mount.sub_path, mount.volume
                    ),
                )
            })?;
        let doing = || format!("binding the volume {}", mount.volume);
        let stat = rustix::fs::fstat(&source).doing(doing)?;
        let missing = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Missing::Directory,
            FileType::Symlink => {
                let problem = "it ends in a symbolic link";
                return Err(AgentError::invalid(format!("{field}.sub_path"), problem));
            }
            _ => Missing::File,
        };
        let bound = fs_mount::bind(&source).doing(doing)?;
        if mount.read_only {
            mount_attr::add(&bound, Attr::MOUNT_ATTR_RDONLY, false).doing(doing)?;
        }
        Ok(Planned {
            mount: bound,
            destination: mount.destination.clone(),
            missing,
            field: format!("{field}.destination"),
        })
    };
    mounts.enumerate().map(plan).collect()
}

fn plan_files(sources: &Sources) -> Result<Vec<Planned>, AgentError> {
    let mut planned = Vec::new();
    for (wanted, file, destination) in [
        (sources.hosts, layout::HOSTS, "/etc/hosts"),
        (sources.resolv_conf, layout::RESOLV_CONF, "/etc/resolv.conf"),
    ] {
        if wanted {
            planned.push(Planned {
                mount: fs_mount::bind_path(file).doing(|| format!("binding {destination}"))?,
                destination: destination.to_owned(),
                missing: Missing::File,
                field: "image".to_owned(),
            });
        }
    }
    Ok(planned)
}

impl Root {
    /// Paths in the container.
    pub(crate) fn rooted(&self) -> Rooted<'_> {
        Rooted::new(self.root.as_fd(), Escape::Contain)
    }

    /// Makes the root itself read-only, not what is mounted in it.
    pub(crate) fn make_read_only(&self) -> Result<(), AgentError> {
        mount_attr::add(&self.root, Attr::MOUNT_ATTR_RDONLY, false)
            .doing(|| "making the root read-only".into())
    }

    fn mount_kernel_file_systems(
        &self,
        privileged: bool,
        dev: &OwnedFd,
        shm: &OwnedFd,
    ) -> Result<(), AgentError> {
        let secure = Attr::MOUNT_ATTR_NOSUID | Attr::MOUNT_ATTR_NODEV | Attr::MOUNT_ATTR_NOEXEC;
        let system = if privileged {
            secure
        } else {
            secure | Attr::MOUNT_ATTR_RDONLY
        };
        let terminals = [
            ("newinstance", ""),
            ("ptmxmode", "0666"),
            ("mode", "0620"),
            ("gid", "5"),
        ];
        let pts_attributes = Attr::MOUNT_ATTR_NOSUID | Attr::MOUNT_ATTR_NOEXEC;
        self.attach(fs_mount::new("proc", &[], secure)?, "/proc")?;
        self.attach(dev, "/dev")?;
        if !privileged {
            devices::allow_only_usual(dev)
                .doing(|| "restricting the container's devices".into())?;
        }
        self.attach(
            fs_mount::new("devpts", &terminals, pts_attributes)?,
            "/dev/pts",
        )?;
        self.attach(shm, "/dev/shm")?;
        self.attach(fs_mount::new("mqueue", &[], secure)?, "/dev/mqueue")?;
        self.attach(fs_mount::new("sysfs", &[], system)?, "/sys")?;
        self.attach(fs_mount::new("cgroup2", &[], system)?, "/sys/fs/cgroup")
    }

    /// Attaches one of the kernel's file systems. Its place must not be a link in
    /// the image: what is hidden and protected below would be elsewhere.
    fn attach(&self, mount: impl AsFd, path: &str) -> Result<(), AgentError> {
        let target = match self.rooted().open_or_make_plain(path) {
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

    fn attach_volume(&self, plan: &Planned) -> Result<(), AgentError> {
        self.rooted()
            .open_or_make(&plan.destination, plan.missing)
            .and_then(|target| fs_mount::attach(&plan.mount, target))
            .map_err(|e| {
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

    fn hide_kernel_files(&self) -> Result<(), AgentError> {
        for path in MASKED {
            self.mask(path).doing(|| format!("hiding {path}"))?;
        }
        for path in READ_ONLY {
            self.protect(path)
                .doing(|| format!("making {path} read-only"))?;
        }
        Ok(())
    }

    fn mask(&self, path: &str) -> Result<(), Errno> {
        let target = match self.rooted().open(path, OFlags::PATH) {
            Ok(target) => target,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(e) => return Err(e),
        };
        let stat = rustix::fs::fstat(&target)?;
        let cover = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            fs_mount::new("tmpfs", &[("size", "0")], Attr::MOUNT_ATTR_RDONLY)
                .map_err(|_| Errno::NOMEM)?
        } else {
            fs_mount::bind(self.rooted().open("/dev/null", OFlags::PATH)?)?
        };
        fs_mount::attach(cover, target)
    }

    fn protect(&self, path: &str) -> Result<(), Errno> {
        let target = match self.rooted().open(path, OFlags::PATH) {
            Ok(target) => target,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(e) => return Err(e),
        };
        let bound = fs_mount::bind(&target)?;
        let flags = Attr::MOUNT_ATTR_RDONLY
            | Attr::MOUNT_ATTR_NOSUID
            | Attr::MOUNT_ATTR_NODEV
            | Attr::MOUNT_ATTR_NOEXEC;
        mount_attr::add(&bound, flags, true)?;
        fs_mount::attach(bound, target)
    }
}
