//! fsGroup: files and directories of a volume come to belong to a group, which may
//! read and write them, as the kubelet does it. By descriptors, no link is followed: a
//! pod may change the tree meanwhile. On the host for directories, in the guest for
//! file systems of block volumes.

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// What the group may do with files and directories, as the kubelet sets it.
const FILE_BITS: u32 = 0o660;
const DIR_BITS: u32 = 0o2770;
/// Most levels of directories that are gone down.
const MAX_DEPTH: usize = 256;

/// When it is done (`fsGroupChangePolicy`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    /// Each time.
    #[default]
    Always,
    /// Unless the top directory is as it would be.
    OnRootMismatch,
}

/// Gives `top`, an open directory, and all beneath it to `group`.
///
/// # Errors
///
/// As the system calls; ENAMETOOLONG where directories lie too deep.
pub fn give(top: impl AsFd, group: u32, policy: Policy) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(&top)?;
    let right = stat.st_gid == group && stat.st_mode & DIR_BITS == DIR_BITS;
    if policy == Policy::OnRootMismatch && right {
        return Ok(());
    }
    let group = Gid::from_raw(group);
    let mut open = vec![directory(&top, c".")?];
    while let Some((fd, entries)) = open.last_mut() {
        let Some(entry) = entries.next() else {
            // The top last: until then it shows that the work is not done.
            change(fd, group, DIR_BITS)?;
            open.pop();
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        let name: CString = name.to_owned();
        let below = match one(fd, &name, group) {
            // Removed meanwhile.
            Err(Errno::NOENT) => continue,
            below => below?,
        };
        if below {
            if open.len() >= MAX_DEPTH {
                return Err(Errno::NAMETOOLONG);
            }
            let next = match directory(&open[open.len() - 1].0, &name) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                next => next?,
            };
            open.push(next);
        }
    }
    Ok(())
}

/// Changes one entry, unless it is a directory: says whether it is.
fn one(parent: &OwnedFd, name: &CString, group: Gid) -> Result<bool, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent, name.as_c_str(), flags, Mode::empty())?;
    match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
        FileType::Directory => return Ok(true),
        FileType::RegularFile => change(&fd, group, FILE_BITS)?,
        // A link's own group is nobody's right; devices and pipes are not shared.
        _ => {}
    }
    Ok(false)
}

fn directory(parent: impl AsFd, name: &std::ffi::CStr) -> Result<(OwnedFd, Dir), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let entries = Dir::read_from(&fd)?;
    Ok((fd, entries))
}

fn change(fd: &OwnedFd, group: Gid, bits: u32) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(fd)?;
    if stat.st_gid != group.as_raw() {
        rustix::fs::chownat(fd, c"", None, Some(group), AtFlags::EMPTY_PATH)?;
    }
    let mode = stat.st_mode & 0o7777;
    if mode & bits != bits || stat.st_gid != group.as_raw() {
        // A descriptor of a path alone takes no fchmod.
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        rustix::fs::chmod(path, Mode::from_raw_mode(mode | bits))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    fn give_all(dir: &Path, policy: Policy) {
        let top = fs::File::open(dir).unwrap();
        give(&top, 1234, policy).unwrap();
    }

    #[test]
    fn everything_beneath_belongs_to_the_group_but_nothing_behind_links() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (volume, other) = (dir.path().join("v"), dir.path().join("other"));
        fs::create_dir_all(volume.join("a/b")).unwrap();
        fs::write(volume.join("a/b/f"), "x").unwrap();
        fs::set_permissions(volume.join("a/b/f"), fs::Permissions::from_mode(0o4600)).unwrap();
        fs::write(&other, "x").unwrap();
        symlink(&other, volume.join("a/link")).unwrap();
        let seen = |path: &Path| {
            let meta = fs::metadata(path).unwrap();
            (meta.gid(), meta.mode() & 0o7777)
        };
        let before = seen(&other);
        give_all(&volume, Policy::OnRootMismatch);
        assert_eq!(seen(&volume), (1234, 0o2775));
        assert_eq!(seen(&volume.join("a/b")), (1234, 0o2775));
        assert_eq!(seen(&volume.join("a/b/f")), (1234, 0o4660));
        assert_eq!(seen(&other), before);
        // A root that is right is left alone, unless asked otherwise.
        fs::write(volume.join("new"), "x").unwrap();
        fs::set_permissions(volume.join("new"), fs::Permissions::from_mode(0o600)).unwrap();
        give_all(&volume, Policy::OnRootMismatch);
        assert_eq!(seen(&volume.join("new")).1, 0o600);
        give_all(&volume, Policy::Always);
        assert_eq!(seen(&volume.join("new")), (1234, 0o660));
    }
}
