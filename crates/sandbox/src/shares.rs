//! Directories and files of the host in a sandbox's VM.
//!
//! A mount's path is resolved once, here, links followed; from then on it is a
//! descriptor, and the VMM reaches what is beneath it and nothing else. A share
//! is named by what it is (file system, inode, mount), so that containers which
//! mount one directory have one share, whose mappings of files agree. Where later
//! mounts of the host are not to be seen, it is a private copy of the mount.

use crate::error::SandboxError;
use crate::live::Live;
use crate::private_mount;
use crate::record::Step;
use crate::registry::{ContainerEntry, Entry};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::Path;

/// A resolved path.
#[derive(Debug)]
struct Resolved {
    name: String,
    fd: OwnedFd,
}

/// Whether what the host mounts below a path later is seen in the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Propagation {
    Private,
    HostToContainer,
}

/// Puts what a mount names into the VM, for this container; returns its name in
/// the root of the virtio-fs device. Writable once one mount of it is.
pub(crate) async fn attach(
    entry: &Entry,
    item: &ContainerEntry,
    live: &Live,
    path: &Path,
    propagation: Propagation,
    read_only: bool,
) -> Result<String, SandboxError> {
    let path = path.to_owned();
    let shown = path.display().to_string();
    // A path may lie on a file system that hangs.
    let resolved = tokio::task::spawn_blocking(move || resolve(&path, propagation)).await;
    let Resolved { name, fd } = resolved.map_err(|_| SandboxError::TaskDied(shown))??;
    let mut shares = entry.shares.lock().await;
    let known = shares.get(&name).copied();
    item.record
        .update(|c| c.add_step(Step::Share(name.clone())))
        .await?;
    let read_only = read_only && known.unwrap_or(true);
    if known != Some(read_only) {
        live.vmm.attach_share(&name, read_only, fd).await?;
        shares.insert(name.clone(), read_only);
    }
    Ok(name)
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

/// Opens what the host has at `path`, made as a directory if there is nothing,
/// as container runtimes do.
fn resolve(path: &Path, propagation: Propagation) -> Result<Resolved, SandboxError> {
    let fd = match open(path) {
        Err(Errno::NOENT) => {
            std::fs::create_dir_all(path)
                .map_err(|e| SandboxError::file("cannot make", path, e))?;
            open(path)
        }
        other => other,
    };
    let fd = fd.map_err(|e| SandboxError::file("cannot open", path, e.into()))?;
    let wanted = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::MNT_ID;
    let stat = rustix::fs::statx(&fd, c"", AtFlags::EMPTY_PATH, wanted)
        .map_err(|e| SandboxError::file("cannot read the state of", path, e.into()))?;
    match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::Directory | FileType::RegularFile => {}
        other => return Err(not_shareable(path, other)),
    }
    let (kind, fd) = match propagation {
        Propagation::Private => {
            let copy = private_mount::copy(&fd);
            (
                "",
                copy.map_err(|e| SandboxError::file("cannot mount", path, e.into()))?,
            )
        }
        Propagation::HostToContainer => ("-live", fd),
    };
    let name = format!(
        "{:x}.{:x}-{:x}-{:x}{kind}",
        stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino, stat.stx_mnt_id
    );
    Ok(Resolved { name, fd })
}

fn open(path: &Path) -> Result<OwnedFd, Errno> {
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

    #[test]
    fn a_link_and_its_target_are_one_share() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("d"), dir.path().join("l"));
        std::fs::create_dir(&target).unwrap();
        symlink(&target, &link).unwrap();
        let name = |path: &Path| resolve(path, Propagation::HostToContainer).unwrap().name;
        assert_eq!(name(&target), name(&link));
        assert_ne!(name(&target), name(dir.path()));
    }

    #[test]
    fn a_missing_directory_is_made_and_a_socket_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        resolve(&dir.path().join("a/b"), Propagation::HostToContainer).unwrap();
        assert!(dir.path().join("a/b").is_dir());
        let socket = dir.path().join("s");
        let _listener = UnixListener::bind(&socket).unwrap();
        let error = resolve(&socket, Propagation::Private)
            .unwrap_err()
            .to_string();
        assert!(error.contains("a socket"), "{error}");
    }
}
