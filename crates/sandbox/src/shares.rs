//! Directories and files of the host in a sandbox's VM.
//!
//! A mount's path is resolved once, here, links followed; from then on it is a
//! descriptor, and the VMM reaches what is beneath it and nothing else. A share
//! is named by what it is (file system, inode, mount), so that containers which
//! mount one directory have one share, whose mappings of files agree. Where later
//! mounts of the host are not to be seen, it is a private copy of the mount.

use crate::error::SandboxError;
use crate::live::Live;
use crate::record::Step;
use crate::registry::{ContainerEntry, Entry};
use crate::spec::HostMount;
use crate::vm_plan::Mounted;
use crate::{mountinfo, private_mount};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use vm_spec::proto::Share;

/// A resolved path.
#[derive(Debug)]
struct Resolved {
    share: Share,
    fd: OwnedFd,
}

/// Puts what a mount names into the VM, for this container. A share is writable
/// once one mount of it is; mounts of it that are not are read-only in the guest.
pub(crate) async fn attach(
    entry: &Entry,
    item: &ContainerEntry,
    live: &Live,
    mount: &HostMount,
    read_only: bool,
) -> Result<Mounted, SandboxError> {
    let wanted = mount.clone();
    let shown = mount.path.display().to_string();
    // A path may lie on a file system that hangs.
    let resolved = tokio::task::spawn_blocking(move || resolve(&wanted, read_only)).await;
    let Resolved { mut share, fd } = resolved.map_err(|_| SandboxError::TaskDied(shown))??;
    let mounted = Mounted::Share {
        name: share.name.clone(),
        read_only: read_only && !share.writable_beneath,
    };
    let mut shares = entry.shares.lock().await;
    let known = shares.get(&share.name).copied();
    item.record
        .update(|c| c.add_step(Step::Share(share.name.clone())))
        .await?;
    share.read_only &= known.unwrap_or(true);
    if known != Some(share.read_only) {
        let (name, read_only) = (share.name.clone(), share.read_only);
        live.vmm.attach_share(share, fd).await?;
        shares.insert(name, read_only);
    }
    Ok(mounted)
}

/// Takes a share from the VM unless another container has it.
pub(crate) async fn detach(
    entry: &Entry,
    item: &ContainerEntry,
    live: &Live,
    name: &str,
) -> Result<(), SandboxError> {
    let step = Step::Share(name.to_owned());
    let mut shares = entry.shares.lock().await;
    let others = entry.containers();
    let shared = others
        .iter()
        .any(|other| other.id != item.id && other.record.read(|c| c.steps.contains(&step)));
    if !shared && shares.remove(name).is_some() {
        live.vmm.detach_share(name).await?;
    }
    Ok(())
}

/// Opens what the host has at a mount's path; if it may be anywhere and nothing is
/// there, a directory is made, as container runtimes do.
fn resolve(mount: &HostMount, read_only: bool) -> Result<Resolved, SandboxError> {
    let path = mount.path.as_path();
    let fd = match open(path) {
        Err(Errno::NOENT) if mount.within.is_empty() => {
            std::fs::create_dir_all(path)
                .map_err(|e| SandboxError::file("cannot make", path, e))?;
            open(path)
        }
        other => other,
    };
    let fd = fd.map_err(|e| SandboxError::file("cannot open", path, e.into()))?;
    check_within(&fd, path, &mount.within)?;
    let wanted = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::MNT_ID;
    let stat = rustix::fs::statx(&fd, c"", AtFlags::EMPTY_PATH, wanted)
        .map_err(|e| SandboxError::file("cannot read the state of", path, e.into()))?;
    match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::Directory | FileType::RegularFile => {}
        other => return Err(not_shareable(path, other)),
    }
    // In the guest a share is one mount, read-only as a whole or not at all. So
    // the host's end keeps the top alone read-only, in a share of its own. Files
    // of two shares are two files in the guest (mappings, locks): hence only
    // where it makes a difference.
    let writable_beneath = read_only
        && !mount.recursive_read_only
        && (mount.host_to_container
            || mountinfo::any_beneath(fd.as_fd(), stat.stx_mnt_id)
                .map_err(|e| SandboxError::file("cannot list the mounts below", path, e))?);
    let name = format!(
        "{:x}.{:x}-{:x}-{:x}{}{}",
        stat.stx_dev_major,
        stat.stx_dev_minor,
        stat.stx_ino,
        stat.stx_mnt_id,
        if mount.host_to_container { "-live" } else { "" },
        if writable_beneath { "-top" } else { "" },
    );
    let fd = if mount.host_to_container {
        fd
    } else {
        private_mount::copy(&fd).map_err(|e| SandboxError::file("cannot mount", path, e.into()))?
    };
    let share = Share {
        name,
        read_only,
        writable_beneath,
    };
    Ok(Resolved { share, fd })
}

/// Refuses what was opened if it lies in none of `within`, unless that is empty.
/// Not the path is judged: a link in it may lead elsewhere by now.
pub(crate) fn check_within(
    fd: &OwnedFd,
    path: &Path,
    within: &[PathBuf],
) -> Result<(), SandboxError> {
    if within.is_empty() {
        return Ok(());
    }
    let found = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let found = found.map_err(|e| SandboxError::file("cannot find", path, e))?;
    let mut true_paths = within.iter().filter_map(|d| d.canonicalize().ok());
    if true_paths.any(|dir| found.starts_with(dir)) {
        return Ok(());
    }
    Err(SandboxError::Invalid {
        field: "mounts",
        message: format!(
            "{} leads to {}, which pods may not have",
            path.display(),
            found.display()
        ),
    })
}

/// Opens what a path leads to, without access to what is in it.
pub(crate) fn open(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    // A link into another process's files is nobody's volume.
    let resolve = ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve)
}

fn not_shareable(path: &Path, kind: FileType) -> SandboxError {
    let kind = match kind {
        FileType::Socket => "a socket",
        FileType::Fifo => "a pipe",
        FileType::BlockDevice | FileType::CharacterDevice => "a device",
        _ => "no file",
    };
    SandboxError::Invalid {
        field: "mounts",
        message: format!(
            "{} is {kind} of the host: a pod in a VM can mount directories and regular files",
            path.display()
        ),
    }
}

/// Refuses a path that means something else elsewhere.
pub(crate) fn check_path(path: &Path) -> Result<(), SandboxError> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(SandboxError::Invalid {
        field: "mounts",
        message: format!("{}: must be an absolute path", path.display()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    fn live(path: &Path) -> HostMount {
        HostMount {
            path: path.to_owned(),
            host_to_container: true,
            recursive_read_only: false,
            id_mapped: false,
            within: Vec::new(),
        }
    }

    #[test]
    fn what_is_read_only_without_its_mounts_is_a_share_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = live(dir.path());
        let writable = resolve(&mount, false).unwrap().share;
        assert!(!writable.read_only && !writable.writable_beneath);
        // Something may be mounted later.
        let top = resolve(&mount, true).unwrap().share;
        assert!(top.read_only && top.writable_beneath);
        assert_ne!(top.name, writable.name);
        mount.recursive_read_only = true;
        let all = resolve(&mount, true).unwrap().share;
        assert!(all.read_only && !all.writable_beneath);
        assert_eq!(all.name, writable.name);
    }

    #[test]
    fn a_link_that_leaves_its_directory_is_refused_and_nothing_is_made_there() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        std::fs::create_dir(&inside).unwrap();
        std::fs::create_dir(&outside).unwrap();
        symlink(&outside, inside.join("link")).unwrap();
        let resolve = |path: &Path| {
            let within = vec![inside.clone()];
            resolve(
                &HostMount {
                    within,
                    ..live(path)
                },
                false,
            )
        };
        resolve(&inside).unwrap();
        let error = resolve(&inside.join("link")).unwrap_err().to_string();
        assert!(error.contains("which pods may not have"), "{error}");
        assert!(resolve(&inside.join("missing")).is_err());
        assert!(!inside.join("missing").exists());
    }

    #[test]
    fn a_link_and_its_target_are_one_share() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("d"), dir.path().join("l"));
        std::fs::create_dir(&target).unwrap();
        symlink(&target, &link).unwrap();
        let name = |path: &Path| resolve(&live(path), false).unwrap().share.name;
        assert_eq!(name(&target), name(&link));
        assert_ne!(name(&target), name(dir.path()));
    }

    #[test]
    fn a_missing_directory_is_made_and_a_socket_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        resolve(&live(&dir.path().join("a/b")), false).unwrap();
        assert!(dir.path().join("a/b").is_dir());
        let socket = dir.path().join("s");
        let _listener = UnixListener::bind(&socket).unwrap();
        let error = resolve(&live(&socket), false).unwrap_err().to_string();
        assert!(error.contains("a socket"), "{error}");
    }
}
