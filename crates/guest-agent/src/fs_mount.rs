//! Mounting with the kernel's descriptor-based mount calls: a file system or a
//! bind is made detached, then attached to a directory that is open already, so
//! no path is resolved twice.

use crate::error::{AgentError, Doing};
use rustix::fs::{AtFlags, CWD};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use std::os::fd::{AsFd, OwnedFd};

/// A file system, not attached anywhere yet. An option with an empty value is a
/// flag. Dropping the descriptor unmounts it again.
pub(crate) fn new(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, AgentError> {
    try_new(kind, options, attributes).doing(|| {
        let options: Vec<_> = options.iter().map(|(k, v)| format!("{k}={v}")).collect();
        format!("mounting {kind} ({})", options.join(","))
    })
}

fn try_new(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Errno> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        if value.is_empty() {
            fsconfig_set_flag(&context, *key)?;
        } else {
            fsconfig_set_string(&context, *key, *value)?;
        }
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A bind of the file or directory `source`, not attached anywhere yet.
pub(crate) fn bind(source: impl AsFd) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::from_bits_retain(AtFlags::EMPTY_PATH.bits());
    open_tree(source, "", flags)
}

/// As [`bind`], with all that is mounted below.
pub(crate) fn bind_tree(source: impl AsFd) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::from_bits_retain(AtFlags::EMPTY_PATH.bits());
    open_tree(source, "", flags)
}

/// As [`bind`], of a path.
pub(crate) fn bind_path(path: &str) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, path, flags)
}

/// Attaches a detached mount to an open file or directory.
pub(crate) fn attach(mount: impl AsFd, target: impl AsFd) -> Result<(), Errno> {
    move_mount(
        mount,
        "",
        target,
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
}

/// Makes the directory `path` (its parent exists) and attaches a detached mount
/// to it. Only for the agent's own tree.
pub(crate) fn attach_at(mount: impl AsFd, path: &str) -> Result<(), AgentError> {
    make_dir(path)?;
    move_mount(
        mount,
        "",
        CWD,
        path,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .doing(|| format!("attaching a mount to {path}"))
}

/// Makes a directory of the agent's own tree; one that exists is fine.
pub(crate) fn make_dir(path: &str) -> Result<(), AgentError> {
    match rustix::fs::mkdir(path, rustix::fs::Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e).doing(|| format!("making the directory {path}")),
    }
}
