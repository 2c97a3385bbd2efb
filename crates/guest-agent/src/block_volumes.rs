//! Block volumes: extents that outlive the pod. Containers have the device, or the
//! file system on it, which is mounted once in the agent's tree.
//!
//! What is on them may be of anybody's making: no device node and no mount option
//! that the file system itself brings has an effect.

use crate::disks::{Disks, Extent, Partition};
use crate::error::{AgentError, Doing};
use crate::fs_mount;
use crate::layout;
use crate::sys::block;
use crate::users::Users;
use crate::volumes::is_dns_label;
use guest_api::proto::{AttachVolumeRequest, Directory};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags as Attr, UnmountFlags, unmount};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

/// Most block volumes of a pod.
const MAX_VOLUMES: usize = 256;
/// Longest serial number.
const MAX_SERIAL: usize = 64;
/// The directory of a file system that is the volume, where it is not all of it, and
/// its name until it is made.
const DIRECTORY: &str = "volume";
const UNFINISHED: &str = "volume.new";
/// What a group may do with a device.
const DEVICE_MODE: u32 = 0o660;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileSystem {
    Ext4,
    Xfs,
}

impl FileSystem {
    fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    /// Options that take away what the file system could ask for; a copy of
    /// another volume has its UUID.
    fn options(self) -> (&'static str, &'static str) {
        match self {
            Self::Ext4 => ("errors", "remount-ro"),
            Self::Xfs => ("nouuid", ""),
        }
    }

    /// Leaves a journal alone.
    fn without_journal(self) -> (&'static str, &'static str) {
        match self {
            Self::Ext4 => ("noload", ""),
            Self::Xfs => ("norecovery", ""),
        }
    }
}

#[derive(Debug)]
struct BlockVolume {
    request: AttachVolumeRequest,
    extent: Extent,
    partition: Partition,
    file_system: Option<FileSystem>,
    /// Its file system is mounted at [`mount_point`].
    mounted: bool,
}

/// The block volumes of the pod, by name.
#[derive(Debug, Default)]
pub(crate) struct BlockVolumes(BTreeMap<String, BlockVolume>);

fn mount_point(name: &str) -> String {
    format!("{}/{name}", layout::BLOCK_VOLUMES)
}

fn link(serial: &str) -> String {
    format!("{}/virtio-{serial}", layout::DISKS_BY_ID)
}

struct Checked {
    extent: Extent,
    file_system: Option<FileSystem>,
}

fn check(request: &AttachVolumeRequest) -> Result<Checked, AgentError> {
    if !is_dns_label(&request.name) {
        return Err(AgentError::invalid(
            "name",
            "a volume's name is a DNS label",
        ));
    }
    let Some(extent) = &request.extent else {
        return Err(AgentError::invalid("extent", "the volume has no extent"));
    };
    let extent = Extent::check(extent, "extent")?;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if request.serial.len() > MAX_SERIAL || !request.serial.bytes().all(allowed) {
        return Err(AgentError::invalid(
            "serial",
            "a serial number has at most 64 letters, digits, '-', '_' and '.'",
        ));
    }
    let file_system = match request.file_system.as_str() {
        "" => None,
        "ext4" => Some(FileSystem::Ext4),
        "xfs" => Some(FileSystem::Xfs),
        other => {
            let problem = format!("{other:?} is not ext4 or xfs");
            return Err(AgentError::invalid("file_system", problem));
        }
    };
    if request.group == Some(u32::MAX) {
        return Err(AgentError::invalid("group", "is no group"));
    }
    if let Some(directory) = &request.directory {
        check_directory(directory)?;
        if file_system.is_none() || request.read_only {
            let problem = "needs a file system that is not read-only";
            return Err(AgentError::invalid("directory", problem));
        }
    }
    Ok(Checked {
        extent,
        file_system,
    })
}

/// Refuses what no directory can have.
pub(crate) fn check_directory(directory: &Directory) -> Result<(), AgentError> {
    let Directory { uid, gid, mode } = *directory;
    if uid == u32::MAX || gid == u32::MAX || mode > 0o7777 {
        let problem = format!("{uid}:{gid} {mode:o}: no owners, or more than permissions");
        return Err(AgentError::invalid("directory", problem));
    }
    Ok(())
}

fn in_use(name: &str, source: Errno) -> AgentError {
    AgentError::Precondition {
        problem: format!("the volume {name} is in use ({source})"),
        remedy: "remove the containers that have it first",
    }
}

impl BlockVolumes {
    /// Takes a volume. After a failure nothing of it stays.
    pub(crate) fn attach(
        &mut self,
        request: &AttachVolumeRequest,
        disks: &mut Disks,
        users: &Users,
    ) -> Result<(), AgentError> {
        let Checked {
            extent,
            file_system,
        } = check(request)?;
        if let Some(known) = self.0.get(&request.name) {
            if known.request == *request && (known.mounted || file_system.is_none()) {
                return Ok(());
            }
            return Err(AgentError::Exists {
                what: format!("the volume {}", request.name),
            });
        }
        if self.0.len() >= MAX_VOLUMES {
            return Err(AgentError::Exhausted {
                problem: format!("the pod has {MAX_VOLUMES} block volumes"),
                remedy: "detach some",
            });
        }
        let volume = BlockVolume {
            request: request.clone(),
            partition: disks.add_partition(&extent)?,
            extent,
            file_system,
            mounted: false,
        };
        let name = request.name.clone();
        let volume = self.0.entry(name.clone()).or_insert(volume);
        let made = volume.make(users);
        if made.is_err() {
            // Nobody else has seen it yet.
            let _ = self.detach(&name, disks);
        }
        made
    }

    /// Lets a volume go that no container has.
    pub(crate) fn detach(&mut self, name: &str, disks: &mut Disks) -> Result<(), AgentError> {
        let Some(volume) = self.0.get_mut(name) else {
            return Ok(());
        };
        if volume.mounted {
            unmount(mount_point(name), UnmountFlags::empty()).map_err(|e| in_use(name, e))?;
            volume.mounted = false;
            let _ = rustix::fs::rmdir(mount_point(name));
        }
        disks
            .delete_partition(&volume.partition)
            .map_err(|e| in_use(name, e))?;
        if !volume.request.serial.is_empty() {
            // Missing where the attachment did not come so far.
            let _ = rustix::fs::unlink(link(&volume.request.serial));
        }
        self.0.remove(name);
        Ok(())
    }

    /// Has a volume have `length` bytes, and its file system as many as fit.
    pub(crate) fn resize(
        &mut self,
        name: &str,
        length: u64,
        disks: &Disks,
    ) -> Result<(), AgentError> {
        let volume = self.0.get_mut(name).ok_or_else(|| AgentError::NotFound {
            what: format!("the volume {name}"),
            remedy: "",
        })?;
        let extent = volume.extent.resized(length)?;
        if extent.length() < volume.extent.length() {
            return Err(AgentError::invalid("length", "a volume cannot shrink"));
        }
        disks.resize_partition(&volume.partition, &extent)?;
        volume.extent = extent;
        if let (Some(file_system), true, false) =
            (volume.file_system, volume.mounted, volume.request.read_only)
        {
            grow(file_system, name, length)?;
        }
        Ok(())
    }

    /// Where the directory is that containers have of a volume; `None` if there is no
    /// such volume, or it has no file system.
    pub(crate) fn directory(&self, name: &str) -> Option<String> {
        let volume = self.0.get(name).filter(|volume| volume.mounted)?;
        let top = mount_point(name);
        Some(match volume.request.directory {
            Some(_) => format!("{top}/{DIRECTORY}"),
            None => top,
        })
    }

    /// The device of a volume without a file system of ours, and whether it is
    /// read-only.
    pub(crate) fn device(&self, name: &str) -> Option<(String, bool)> {
        let volume = self.0.get(name)?;
        let raw = volume.file_system.is_none();
        raw.then(|| (volume.partition.path(), volume.request.read_only))
    }
}

/// Mount points of the volumes that are directories, by what is there: for a process
/// that does not know the agent's own list.
pub(crate) fn tops_of_directories() -> Vec<String> {
    let mounted = std::fs::read_dir(layout::BLOCK_VOLUMES);
    let names = mounted.into_iter().flatten().flatten();
    let tops = names.filter_map(|entry| entry.path().into_os_string().into_string().ok());
    tops.filter(|top| std::path::Path::new(top).join(DIRECTORY).is_dir())
        .collect()
}

impl BlockVolume {
    fn make(&mut self, users: &Users) -> Result<(), AgentError> {
        let name = &self.request.name;
        let path = self.partition.path();
        if self.request.read_only {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            rustix::fs::open(path.as_str(), flags, Mode::empty())
                .and_then(block::set_read_only)
                .doing(|| format!("making the volume {name} read-only"))?;
        }
        let Some(file_system) = self.file_system else {
            self.own_device(&path, users)
                .doing(|| format!("giving the device of the volume {name} to its users"))?;
            return self.make_link(&path);
        };
        let mount = mount(file_system, &path, &self.request)?;
        if let Some(directory) = &self.request.directory {
            make_directory(&mount, directory)
                .doing(|| format!("making the directory of the volume {name}"))?;
        }
        if let Some(group) = self.request.group
            && !self.request.read_only
        {
            let policy = match self.request.group_on_mismatch_only {
                true => fs_group::Policy::OnRootMismatch,
                false => fs_group::Policy::Always,
            };
            open_top(&mount)
                .and_then(|top| fs_group::give(top, group, policy))
                .doing(|| format!("giving the volume {name} to group {group}"))?;
        }
        fs_mount::make_dir(layout::BLOCK_VOLUMES)?;
        fs_mount::attach_at(mount, &mount_point(name))?;
        self.mounted = true;
        self.make_link(&path)
    }

    /// The node belongs to the pod's root, and to the group that its volumes have.
    fn own_device(&self, path: &str, users: &Users) -> Result<(), Errno> {
        let (root, group) = users.root();
        // One that the pod's users cannot be in is nobody's.
        let wanted = self.request.group.and_then(|gid| users.outside(0, gid));
        let group = wanted.map_or(group, |ids| ids.1);
        rustix::fs::chown(path, Some(root), Some(group))?;
        rustix::fs::chmod(path, Mode::from_raw_mode(DEVICE_MODE))
    }

    fn make_link(&self, path: &str) -> Result<(), AgentError> {
        let serial = &self.request.serial;
        if serial.is_empty() {
            return Ok(());
        }
        fs_mount::make_dir(layout::DISKS)?;
        fs_mount::make_dir(layout::DISKS_BY_ID)?;
        let link = link(serial);
        rustix::fs::symlink(path, &link).map_err(|source| match source {
            Errno::EXIST => AgentError::invalid("serial", "another volume has this serial number"),
            source => AgentError::System {
                doing: format!("making {link}"),
                source,
                remedy: "",
            },
        })
    }
}

fn mount(
    file_system: FileSystem,
    path: &str,
    request: &AttachVolumeRequest,
) -> Result<OwnedFd, AgentError> {
    let kind = file_system.name();
    let read_only = request.read_only;
    let mut options = vec![("source", path), file_system.options()];
    if request.directory.is_some() {
        options.push(("discard", ""));
    }
    let mut attributes = Attr::MOUNT_ATTR_NODEV;
    if read_only {
        options.push(("ro", ""));
        attributes |= Attr::MOUNT_ATTR_RDONLY;
    }
    let mut mounted = fs_mount::new(kind, &options, attributes);
    if read_only && mounted.is_err() {
        // A journal that would have to be written back first.
        options.push(file_system.without_journal());
        mounted = fs_mount::new(kind, &options, attributes);
    }
    mounted.map_err(|e| match e {
        AgentError::System { source: errno, .. } => AgentError::System {
            doing: format!("mounting the {kind} file system on {path}"),
            source: errno,
            remedy: match errno {
                Errno::INVAL | Errno::UCLEAN => {
                    "the volume holds no sound file system of this kind; check it, or name the kind it has"
                }
                _ => "",
            },
        },
        other => other,
    })
}

/// Makes the directory that a volume is, unless it is there: whole, or not at all.
fn make_directory(mount: &OwnedFd, wanted: &Directory) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(mount, DIRECTORY, flags, Mode::empty()) {
        Err(Errno::NOENT) => {}
        other => return other.map(drop),
    }
    match rustix::fs::mkdirat(mount, UNFINISHED, Mode::RWXU) {
        // A VM that was killed had begun it.
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e),
    }
    let made = rustix::fs::openat(mount, UNFINISHED, flags, Mode::empty())?;
    let (uid, gid) = (Uid::from_raw(wanted.uid), Gid::from_raw(wanted.gid));
    rustix::fs::fchown(&made, Some(uid), Some(gid))?;
    rustix::fs::fchmod(&made, Mode::from_raw_mode(wanted.mode))?;
    rustix::fs::renameat(mount, UNFINISHED, mount, DIRECTORY)
}

fn open_top(mount: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(mount, ".", flags, Mode::empty())
}

fn grow(file_system: FileSystem, name: &str, length: u64) -> Result<(), AgentError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let grown =
        rustix::fs::open(mount_point(name), flags, Mode::empty()).and_then(
            |top| match file_system {
                FileSystem::Ext4 => {
                    let block = rustix::fs::fstatvfs(&top)?.f_frsize.max(1);
                    block::grow_ext4(top, length / block)
                }
                FileSystem::Xfs => block::grow_xfs(top, length),
            },
        );
    grown.doing(|| format!("growing the file system of the volume {name} to {length} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_api::proto::DiskExtent;

    fn request() -> AttachVolumeRequest {
        AttachVolumeRequest {
            name: "data".to_owned(),
            extent: Some(DiskExtent {
                device: "vdc".to_owned(),
                offset: 0,
                length: 512,
            }),
            serial: "pv-1_a.b".to_owned(),
            file_system: "xfs".to_owned(),
            ..AttachVolumeRequest::default()
        }
    }

    fn directory(uid: u32, mode: u32) -> Directory {
        Directory { uid, gid: 0, mode }
    }

    #[test]
    fn the_directory_is_made_once_and_keeps_what_its_users_make_of_it() {
        use std::fs::{Permissions, metadata, set_permissions};
        use std::os::unix::fs::PermissionsExt;
        let top = tempfile::tempdir().unwrap();
        let mount = OwnedFd::from(std::fs::File::open(top.path()).unwrap());
        let volume = top.path().join(DIRECTORY);
        let mode = || metadata(&volume).unwrap().permissions().mode() & 0o7777;
        // Begun by a VM that was killed.
        std::fs::create_dir(top.path().join(UNFINISHED)).unwrap();
        let own = rustix::process::getuid().as_raw();
        make_directory(&mount, &directory(own, 0o2777)).unwrap();
        assert_eq!(mode(), 0o2777);
        set_permissions(&volume, Permissions::from_mode(0o700)).unwrap();
        make_directory(&mount, &directory(own, 0o2777)).unwrap();
        assert_eq!(mode(), 0o700);
        assert_eq!(std::fs::read_dir(top.path()).unwrap().count(), 1);
    }

    type Change = fn(&mut AttachVolumeRequest);

    #[test]
    fn a_wrong_request_names_its_field() {
        assert!(check(&request()).is_ok());
        let changes: [(Change, &str); 10] = [
            (|r| r.name = "../x".to_owned(), "name"),
            (|r| r.extent = None, "extent"),
            (|r| r.extent.as_mut().unwrap().length = 100, "extent.length"),
            (|r| r.serial = "a/b".to_owned(), "serial"),
            (|r| r.serial = "x".repeat(65), "serial"),
            (|r| r.file_system = "vfat".to_owned(), "file_system"),
            (|r| r.group = Some(u32::MAX), "group"),
            (|r| r.directory = Some(directory(0, 0o10_000)), "directory"),
            (|r| r.directory = Some(directory(u32::MAX, 0)), "directory"),
            (
                |r| {
                    r.directory = Some(directory(0, 0o777));
                    r.read_only = true;
                },
                "directory",
            ),
        ];
        for (change, field) in changes {
            let mut request = request();
            change(&mut request);
            let error = check(&request).err().unwrap().into_wire();
            assert_eq!(error.field, field);
        }
    }

    #[test]
    fn what_is_not_there_is_detached_and_not_resized() {
        let (mut volumes, mut disks) = (BlockVolumes::default(), Disks::default());
        volumes.detach("data", &mut disks).unwrap();
        assert!(volumes.resize("data", 4096, &disks).is_err());
        assert_eq!(volumes.directory("data"), None);
        assert_eq!(volumes.device("data"), None);
    }
}
