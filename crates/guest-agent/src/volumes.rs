//! emptyDir volumes: directories of the scratch disk, bounded by project quotas,
//! and file systems in memory.

use crate::block_volumes::check_directory;
use crate::error::{AgentError, Doing};
use crate::fs_mount;
use crate::layout;
use crate::sys::quota;
use crate::users::Users;
use guest_api::proto::{AttachVolumeRequest, Directory, Volume, volume::Medium};
use rustix::fs::{Gid, Mode, OFlags};
use rustix::mount::MountAttrFlags as Attr;
use std::collections::BTreeMap;

/// The file system of volumes in memory, as requests name it.
pub(crate) const IN_MEMORY: &str = "tmpfs";
/// Most volumes of a pod.
const MAX_VOLUMES: usize = 256;
/// Project ids of volumes start here; 0 is every file that has none.
const FIRST_PROJECT: u32 = 1;

/// Where each volume's directory is, by name.
pub(crate) type Volumes = BTreeMap<String, String>;

/// Makes the directories of all volumes. `on_disk`: the scratch disk is a disk,
/// not a tmpfs in its place.
pub(crate) fn create_all(volumes: &[Volume], on_disk: bool) -> Result<Volumes, AgentError> {
    let mut made = Volumes::new();
    for (project, volume) in (FIRST_PROJECT..).zip(volumes) {
        let in_memory = volume.medium() == Medium::Memory;
        let path = if in_memory || (!on_disk && volume.size_limit > 0) {
            create_in_memory(volume)?
        } else {
            create_on_disk(volume, project)?
        };
        made.insert(volume.name.clone(), path);
    }
    Ok(made)
}

/// Checks the volumes of a request before anything is made.
pub(crate) fn check(volumes: &[Volume]) -> Result<(), AgentError> {
    for (i, volume) in volumes.iter().enumerate() {
        let field = |part| format!("volumes[{i}].{part}");
        if !is_dns_label(&volume.name) {
            return Err(AgentError::invalid(
                field("name"),
                "a volume's name is a DNS label",
            ));
        }
        if volumes[..i].iter().any(|v| v.name == volume.name) {
            let problem = format!("the name {} occurs twice", volume.name);
            return Err(AgentError::invalid(field("name"), problem));
        }
        if volume.group == Some(u32::MAX) {
            return Err(AgentError::invalid(field("group"), "is no group"));
        }
        if !matches!(
            Medium::try_from(volume.medium),
            Ok(Medium::Scratch | Medium::Memory)
        ) {
            return Err(AgentError::invalid(
                field("medium"),
                "the medium must be scratch or memory",
            ));
        }
    }
    Ok(())
}

/// Whether a name can be a volume's, and so a directory's.
pub(crate) fn is_dns_label(name: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| *b != b'-');
    let bytes = name.as_bytes();
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

fn create_in_memory(volume: &Volume) -> Result<String, AgentError> {
    let mode = volume.group.map_or(0o777, |_| 0o2777);
    mount_in_memory(&volume.name, mode, (None, volume.group), volume.size_limit)
}

/// A file system in memory whose top directory has that mode and those owners, or the
/// caller's; 0 bytes: the kernel's own limit, half of its memory.
fn mount_in_memory(
    name: &str,
    mode: u32,
    (uid, gid): (Option<u32>, Option<u32>),
    bytes: u64,
) -> Result<String, AgentError> {
    let path = format!("{}/{name}", layout::MEMORY_VOLUMES);
    let mut options = vec![("mode", format!("{mode:o}"))];
    options.extend(uid.map(|uid| ("uid", uid.to_string())));
    options.extend(gid.map(|gid| ("gid", gid.to_string())));
    if bytes > 0 {
        options.push(("size", bytes.to_string()));
    }
    let options: Vec<_> = options.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let attributes = Attr::MOUNT_ATTR_NODEV | Attr::MOUNT_ATTR_NOSUID;
    let mount = fs_mount::new("tmpfs", &options, attributes)?;
    fs_mount::attach_at(mount, &path)?;
    Ok(path)
}

/// Takes a volume in memory while the pod runs, which stays to the guest's end. Its top
/// directory's owners are the containers' ids.
pub(crate) fn attach_in_memory(
    volumes: &mut Volumes,
    request: &AttachVolumeRequest,
    users: &Users,
) -> Result<(), AgentError> {
    let top = check_in_memory(request)?;
    let path = format!("{}/{}", layout::MEMORY_VOLUMES, request.name);
    match volumes.get(&request.name) {
        // Whoever asks again has the same one; its top may be its users' by now.
        Some(known) if *known == path => return Ok(()),
        Some(_) => {
            return Err(AgentError::Exists {
                what: format!("the volume {}", request.name),
            });
        }
        None => {}
    }
    if volumes.len() >= MAX_VOLUMES {
        return Err(AgentError::Exhausted {
            problem: format!("the pod has {MAX_VOLUMES} volumes"),
            remedy: "make another pod",
        });
    }
    let (uid, gid) = users.outside(top.uid, top.gid).ok_or_else(|| {
        let problem = format!("{}:{} are no users of the pod", top.uid, top.gid);
        AgentError::invalid("directory", problem)
    })?;
    let owners = (Some(uid.as_raw()), Some(gid.as_raw()));
    let path = mount_in_memory(&request.name, top.mode, owners, request.size)?;
    volumes.insert(request.name.clone(), path);
    Ok(())
}

fn check_in_memory(request: &AttachVolumeRequest) -> Result<Directory, AgentError> {
    if !is_dns_label(&request.name) {
        return Err(AgentError::invalid(
            "name",
            "a volume's name is a DNS label",
        ));
    }
    let is_disk = request.extent.is_some() || !request.serial.is_empty() || request.read_only;
    if is_disk || request.group.is_some() {
        let problem = "memory has no extent, serial number or group, and is written";
        return Err(AgentError::invalid("file_system", problem));
    }
    let top = request
        .directory
        .ok_or_else(|| AgentError::invalid("directory", "required for a file system in memory"))?;
    check_directory(&top)?;
    Ok(top)
}

fn create_on_disk(volume: &Volume, project: u32) -> Result<String, AgentError> {
    let path = format!("{}/{}", layout::DISK_VOLUMES, volume.name);
    fs_mount::make_dir(&path)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(&path, flags, Mode::empty())
        .doing(|| format!("opening the volume {}", volume.name))?;
    // As Kubernetes makes emptyDir volumes: for any user of the pod. Not by
    // mkdir, which a umask would change.
    let mut mode = 0o777;
    if let Some(group) = volume.group {
        rustix::fs::fchown(&dir, None, Some(Gid::from_raw(group)))
            .doing(|| format!("giving the volume {} to group {group}", volume.name))?;
        mode |= 0o2000;
    }
    rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode))
        .doing(|| format!("opening the volume {} to all users", volume.name))?;
    if volume.size_limit > 0 {
        quota::assign_project(&dir, project)
            .and_then(|()| quota::limit_project(&dir, project, volume.size_limit))
            .map_err(|source| AgentError::System {
                doing: format!(
                    "limiting the volume {} to {} bytes by a project quota",
                    volume.name, volume.size_limit
                ),
                source,
                remedy: quota::remedy(source),
            })?;
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str, medium: Medium) -> Volume {
        Volume {
            name: name.to_owned(),
            medium: medium.into(),
            size_limit: 0,
            group: None,
        }
    }

    #[test]
    fn names_that_are_paths_are_refused() {
        for name in ["", "..", "a/b", "-a", "a-", "A", "a.b", &"x".repeat(64)] {
            let error = check(&[volume(name, Medium::Memory)]).unwrap_err();
            assert_eq!(error.into_wire().field, "volumes[0].name", "{name}");
        }
        check(&[volume("cache-0", Medium::Scratch)]).unwrap();
    }

    #[test]
    fn memory_that_comes_late_is_no_disk_and_has_a_directory() {
        let top = Directory {
            uid: 0,
            gid: 0,
            mode: 0o777,
        };
        let good = AttachVolumeRequest {
            name: "v".to_owned(),
            file_system: IN_MEMORY.to_owned(),
            directory: Some(top),
            ..AttachVolumeRequest::default()
        };
        assert_eq!(check_in_memory(&good).unwrap(), top);
        type Change = fn(&mut AttachVolumeRequest);
        let bad: [(Change, &str); 4] = [
            (|r| r.name = "a/b".to_owned(), "name"),
            (|r| r.serial = "x".to_owned(), "file_system"),
            (|r| r.read_only = true, "file_system"),
            (|r| r.directory = None, "directory"),
        ];
        for (change, field) in bad {
            let mut request = good.clone();
            change(&mut request);
            let error = check_in_memory(&request).unwrap_err();
            assert_eq!(error.into_wire().field, field);
        }
    }

    #[test]
    fn a_name_twice_or_no_medium_is_refused() {
        let twice = [volume("a", Medium::Memory), volume("a", Medium::Memory)];
        assert_eq!(
            check(&twice).unwrap_err().into_wire().field,
            "volumes[1].name"
        );
        let none = [volume("a", Medium::Unspecified)];
        assert_eq!(
            check(&none).unwrap_err().into_wire().field,
            "volumes[0].medium"
        );
    }
}
