//! emptyDir volumes: directories of the scratch disk, bounded by project quotas,
//! and file systems in memory.

use crate::error::{AgentError, Doing};
use crate::fs_mount;
use crate::layout;
use crate::sys::quota;
use guest_api::proto::{Volume, volume::Medium};
use rustix::fs::{Gid, Mode, OFlags};
use rustix::mount::MountAttrFlags as Attr;
use std::collections::BTreeMap;

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
    let path = format!("{}/{}", layout::MEMORY_VOLUMES, volume.name);
    let size = volume.size_limit.to_string();
    let mut options = vec![("mode", "0777")];
    let group = volume.group.map(|group| group.to_string());
    if let Some(group) = &group {
        options = vec![("mode", "2777"), ("gid", group.as_str())];
    }
    if volume.size_limit > 0 {
        options.push(("size", size.as_str()));
    }
    let attributes = Attr::MOUNT_ATTR_NODEV | Attr::MOUNT_ATTR_NOSUID;
    let mount = fs_mount::new("tmpfs", &options, attributes)?;
    fs_mount::attach_at(mount, &path)?;
    Ok(path)
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
