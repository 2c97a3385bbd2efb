//! A container's /dev: a small file system of its own with the usual nodes; and
//! nodes of the guest that a request names.

use super::mounts::{self, Planned};
use crate::error::{AgentError, Doing};
use crate::fs_mount;
use crate::rooted::Missing;
use crate::sys::{device_filter, mount_attr};
use guest_api::proto::Device;
use rustix::fs::{Dev, FileType, Gid, Mode, OFlags, Uid, makedev};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags as Attr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Character devices that every program may expect: name, major, minor.
const NODES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Directories that other file systems are attached to.
const DIRECTORIES: [&str; 3] = ["pts", "shm", "mqueue"];

/// Most guest devices shown to a privileged container, and how deep.
const MAX_DEVICES: usize = 1024;
const MAX_DEPTH: usize = 4;

/// /dev, not attached yet. With `all_devices` also every device of the guest;
/// `terminal`: with a place for /dev/console.
pub(crate) fn make(all_devices: bool, terminal: bool) -> Result<OwnedFd, AgentError> {
    let dev = fs_mount::new(
        "tmpfs",
        &[("mode", "0755"), ("size", "65536k")],
        Attr::MOUNT_ATTR_NOSUID | Attr::MOUNT_ATTR_STRICTATIME,
    )?;
    fill(&dev, terminal).doing(|| "filling the container's /dev".into())?;
    if all_devices {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let guest = rustix::fs::open("/dev", flags, Mode::empty())
            .doing(|| "opening the guest's /dev".into())?;
        let mut left = MAX_DEVICES;
        copy_devices(guest.as_fd(), dev.as_fd(), 0, &mut left)
            .doing(|| "copying the guest's devices".into())?;
    }
    Ok(dev)
}

/// The usual /dev/null in `dev`, where it can be bound from.
pub(crate) fn null(dev: &OwnedFd) -> Result<OwnedFd, AgentError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dev, "null", flags, Mode::empty())
        .doing(|| "opening the container's /dev/null".into())
}

/// Once /dev is attached: its usual nodes stay usable, any other that the
/// container makes there (or elsewhere, as all its mounts are so) cannot be
/// opened. Each node becomes a mount of its own, then the rest is made nodev.
pub(crate) fn allow_only_usual(dev: &OwnedFd) -> Result<(), Errno> {
    let nodes = NODES.map(|(name, ..)| {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let node = rustix::fs::openat(dev, name, flags, Mode::empty())?;
        Ok((fs_mount::bind(&node)?, node))
    });
    mount_attr::add(dev, Attr::MOUNT_ATTR_NODEV, false)?;
    for node in nodes {
        let (bound, place) = node?;
        fs_mount::attach(bound, place)?;
    }
    Ok(())
}

/// Most devices of a request.
const MAX_REQUESTED: usize = 512;

/// Checks the devices of a request, but not whether the guest has them.
pub(crate) fn check(devices: &[Device]) -> Result<(), AgentError> {
    if devices.len() > MAX_REQUESTED {
        let problem = format!("more than {MAX_REQUESTED} devices");
        return Err(AgentError::invalid("devices", problem));
    }
    for (i, device) in devices.iter().enumerate() {
        let field = format!("devices[{i}].path");
        if device.volume.is_empty() {
            mounts::check_destination(&device.path, &field)?;
            if !device.path.starts_with("/dev/") {
                return Err(AgentError::invalid(field, "a device node is below /dev"));
            }
        } else if !device.path.is_empty() {
            let problem = "stands beside a volume; name one of them";
            return Err(AgentError::invalid(field, problem));
        }
        mounts::check_destination(&device.destination, &format!("devices[{i}].destination"))?;
    }
    Ok(())
}

/// The devices of a container as mounts of the guest's nodes.
pub(crate) fn plan(devices: &[Device]) -> Result<Vec<Planned>, AgentError> {
    let plan = |(i, device): (usize, &Device)| {
        let (node, _) = find(device, &format!("devices[{i}].path"))?;
        let mount = fs_mount::bind(&node).doing(|| format!("binding {}", device.path))?;
        Ok(Planned {
            mount,
            destination: device.destination.clone(),
            missing: Missing::File,
            field: format!("devices[{i}].destination"),
        })
    };
    devices.iter().enumerate().map(plan).collect()
}

/// Sees to it that processes of `cgroup` do not write the devices that are
/// requested for reading only: mounts and modes do not hold a node's owner back.
pub(crate) fn forbid_writing(devices: &[Device], cgroup: BorrowedFd<'_>) -> Result<(), AgentError> {
    let mut forbidden = Vec::new();
    let mut allowed = Vec::new();
    for (i, device) in devices.iter().enumerate() {
        let (_, stat) = find(device, &format!("devices[{i}].path"))?;
        let numbers = device_filter::Device {
            kind: match FileType::from_raw_mode(stat.st_mode) {
                FileType::BlockDevice => device_filter::Kind::Block,
                _ => device_filter::Kind::Character,
            },
            major: rustix::fs::major(stat.st_rdev),
            minor: rustix::fs::minor(stat.st_rdev),
        };
        if device.read_only {
            forbidden.push(numbers);
        } else {
            allowed.push(numbers);
        }
    }
    forbidden.retain(|device| !allowed.contains(device));
    if forbidden.is_empty() {
        return Ok(());
    }
    device_filter::forbid_writing(cgroup, &forbidden)
        .doing(|| "making devices read-only for the container".into())
}

/// The guest's node of a requested device.
fn find(device: &Device, field: &str) -> Result<(OwnedFd, rustix::fs::Stat), AgentError> {
    let path = &device.path;
    let refuse = |problem: String| AgentError::invalid(field, problem);
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = rustix::fs::open(path.as_str(), flags, Mode::empty())
        .map_err(|e| refuse(format!("the guest has no device {path}: {e}")))?;
    let stat = rustix::fs::fstat(&node).doing(|| format!("looking at {path}"))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice | FileType::BlockDevice => Ok((node, stat)),
        _ => Err(refuse(format!("{path} of the guest is no device node"))),
    }
}

fn fill(dev: &OwnedFd, terminal: bool) -> Result<(), Errno> {
    for (name, major, minor) in NODES {
        node(
            dev.as_fd(),
            name,
            FileType::CharacterDevice,
            0o666,
            makedev(major, minor),
        )?;
    }
    for (name, target) in LINKS {
        rustix::fs::symlinkat(target, dev, name)?;
    }
    for name in DIRECTORIES {
        rustix::fs::mkdirat(dev, name, Mode::from_raw_mode(0o755))?;
    }
    if terminal {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(dev, "console", flags, Mode::from_raw_mode(0o600))?;
    }
    Ok(())
}

fn node(
    dir: BorrowedFd<'_>,
    name: &str,
    kind: FileType,
    mode: u32,
    device: Dev,
) -> Result<(), Errno> {
    rustix::fs::mknodat(dir, name, kind, Mode::from_raw_mode(mode), device)?;
    // mknod's mode goes through the umask.
    rustix::fs::chmodat(
        dir,
        name,
        Mode::from_raw_mode(mode),
        rustix::fs::AtFlags::empty(),
    )
}

/// A device stays its owner's, who may be none of the container's users.
fn keep_owner(dir: BorrowedFd<'_>, name: &str, of: &rustix::fs::Stat) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(of.st_uid), Gid::from_raw(of.st_gid));
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(dir, name, Some(uid), Some(gid), flags)
}

fn copy_devices(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    depth: usize,
    left: &mut usize,
) -> Result<(), Errno> {
    for entry in rustix::fs::Dir::read_from(from)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else {
            continue;
        };
        // The agent's channel to the host is nobody else's.
        if matches!(name, "." | ".." | "console" | "vsock")
            || DIRECTORIES.contains(&name)
            || *left == 0
        {
            continue;
        }
        *left -= 1;
        let stat = rustix::fs::statat(from, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            kind @ (FileType::CharacterDevice | FileType::BlockDevice) => {
                match node(to, name, kind, stat.st_mode & 0o777, stat.st_rdev) {
                    Ok(()) => keep_owner(to, name, &stat)?,
                    // One of the usual nodes.
                    Err(Errno::EXIST) => {}
                    Err(e) => return Err(e),
                }
            }
            FileType::Directory if depth < MAX_DEPTH => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let source = rustix::fs::openat(from, name, flags, Mode::empty())?;
                rustix::fs::mkdirat(to, name, Mode::from_raw_mode(0o755))?;
                let target = rustix::fs::openat(to, name, flags, Mode::empty())?;
                copy_devices(source.as_fd(), target.as_fd(), depth + 1, left)?;
            }
            _ => {}
        }
    }
    Ok(())
}
