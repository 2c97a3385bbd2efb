//! A container's writable layer on the scratch disk: made, and taken away in
//! small steps, since a container may have filled it with anything.

use crate::error::{AgentError, Doing};
use crate::sys::quota;
use crate::users::Users;
use rustix::fs::{AtFlags, Dir, FileType, Gid, IFlags, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};

/// Makes the directories of an overlay above the image mounted at `image`, bounded
/// to `limit` bytes; 0 is no limit.
pub(crate) fn create(
    layer: &str,
    image: &str,
    users: &Users,
    limit: u64,
) -> Result<(), AgentError> {
    let like = rustix::fs::stat(image).doing(|| format!("looking at the image {image}"))?;
    let owner = users.outside(like.st_uid, like.st_gid);
    let owner = owner.unwrap_or_else(|| users.root());
    make(layer, &like, owner, |layer| account(layer, limit))
}

/// The same for a directory of the image as the pod's users see it, in a layer
/// that there is already.
pub(crate) fn create_below(layer: &str, below: &str) -> Result<(), AgentError> {
    let like = rustix::fs::stat(below).doing(|| format!("looking at {below}"))?;
    let owner = (Uid::from_raw(like.st_uid), Gid::from_raw(like.st_gid));
    make(layer, &like, owner, |_| Ok(()))
}

fn make(
    layer: &str,
    like: &Stat,
    (uid, gid): (Uid, Gid),
    account: impl FnOnce(&str) -> Result<(), AgentError>,
) -> Result<(), AgentError> {
    let doing = || format!("making the writable layer {layer}");
    let private = Mode::from_raw_mode(0o700);
    rustix::fs::mkdir(layer, private).doing(doing)?;
    account(layer)?;
    let upper = format!("{layer}/upper");
    rustix::fs::mkdir(&upper, private).doing(doing)?;
    rustix::fs::mkdir(format!("{layer}/work"), private).doing(doing)?;
    // The upper directory is what is seen at the top: as the image has it.
    rustix::fs::chown(&upper, Some(uid), Some(gid)).doing(doing)?;
    rustix::fs::chmod(&upper, Mode::from_raw_mode(like.st_mode & 0o7777)).doing(doing)
}

/// Project ids of layers start here, above those of volumes.
const FIRST_PROJECT: u32 = 1 << 16;

/// Has the file system keep account of a new, empty layer by a project of its
/// own, where it can; otherwise whoever wants to know its size has to look, and no
/// limit can be had.
fn account(layer: &str, limit: u64) -> Result<(), AgentError> {
    static NEXT: AtomicU32 = AtomicU32::new(FIRST_PROJECT);
    let project = NEXT.fetch_add(1, Ordering::Relaxed);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(layer, flags, Mode::empty())
        .doing(|| format!("opening the writable layer {layer}"))?;
    let accounted = quota::assign_project(&dir, project);
    if limit == 0 {
        return Ok(());
    }
    // An overlay writes with no right to exceed a quota, whoever writes to it.
    accounted
        .and_then(|()| quota::limit_project(&dir, project, limit))
        .map_err(|source| AgentError::System {
            doing: format!("limiting a writable layer to {limit} bytes by a project quota"),
            source,
            remedy: quota::remedy(source),
        })
}

/// Takes a layer away. Directories met on the way are moved to the top first,
/// so neither depth nor number of directories costs memory or stack.
#[derive(Debug)]
pub(crate) struct LayerRemoval {
    layer: String,
    /// Next name for a directory that was moved to the top.
    next: u64,
}

impl LayerRemoval {
    /// Of the directory `layer`.
    pub(crate) fn new(layer: String) -> Self {
        Self { layer, next: 0 }
    }

    /// Does about `steps` steps; true when nothing is left.
    pub(crate) fn advance(&mut self, mut steps: u32) -> Result<bool, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let top = match rustix::fs::open(&self.layer, flags, Mode::empty()) {
            Ok(top) => top,
            Err(Errno::NOENT) => return Ok(true),
            Err(e) => return Err(e),
        };
        loop {
            let Some((name, kind)) = first_entry(&top)? else {
                rustix::fs::rmdir(&self.layer)?;
                return Ok(true);
            };
            if kind == FileType::Directory {
                let dir = rustix::fs::openat(&top, &name, flags, Mode::empty())?;
                if self.empty_directory(&top, &dir, &mut steps)? {
                    remove(&top, &name, AtFlags::REMOVEDIR)?;
                }
            } else {
                remove(&top, &name, AtFlags::empty())?;
            }
            steps = steps.saturating_sub(1);
            if steps == 0 {
                return Ok(false);
            }
        }
    }

    /// Unlinks the files in `dir` and moves its directories to `top`; true when
    /// it is empty.
    fn empty_directory(
        &mut self,
        top: &OwnedFd,
        dir: &OwnedFd,
        steps: &mut u32,
    ) -> Result<bool, Errno> {
        // Read again from the start after a round: removing entries while
        // reading may skip some.
        loop {
            let mut found = false;
            for entry in Dir::read_from(dir)? {
                let entry = entry?;
                let name = entry.file_name();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                if *steps == 0 {
                    return Ok(false);
                }
                *steps -= 1;
                found = true;
                if entry_type(dir, &entry)? == FileType::Directory {
                    self.move_up(top, dir, name)?;
                } else {
                    remove(dir, name, AtFlags::empty())?;
                }
            }
            if !found {
                return Ok(true);
            }
        }
    }

    fn move_up(
        &mut self,
        top: &OwnedFd,
        dir: &OwnedFd,
        name: &std::ffi::CStr,
    ) -> Result<(), Errno> {
        loop {
            let target = format!("removed-{}", self.next);
            self.next += 1;
            match rustix::fs::renameat(dir, name, top, &target) {
                // Left by an earlier attempt.
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                Err(Errno::PERM) => {
                    make_changeable(dir, name);
                    return rustix::fs::renameat(dir, name, top, &target);
                }
                other => return other,
            }
        }
    }
}

fn first_entry(dir: &OwnedFd) -> Result<Option<(std::ffi::CString, FileType)>, Errno> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            let kind = entry_type(dir, &entry)?;
            return Ok(Some((entry.file_name().to_owned(), kind)));
        }
    }
    Ok(None)
}

fn entry_type(dir: &OwnedFd, entry: &rustix::fs::DirEntry) -> Result<FileType, Errno> {
    match entry.file_type() {
        FileType::Unknown => {
            let stat = rustix::fs::statat(dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(FileType::from_raw_mode(stat.st_mode))
        }
        known => Ok(known),
    }
}

fn remove(dir: &OwnedFd, name: &std::ffi::CStr, flags: AtFlags) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, flags) {
        Err(Errno::PERM) => {
            make_changeable(dir, name);
            rustix::fs::unlinkat(dir, name, flags)
        }
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Takes the immutable and append-only flags, which a privileged container may
/// have set, off a file and its directory.
fn make_changeable(dir: &OwnedFd, name: &std::ffi::CStr) {
    let clear = |fd: &OwnedFd| {
        if let Ok(flags) = rustix::fs::ioctl_getflags(fd) {
            let _ = rustix::fs::ioctl_setflags(fd, flags - (IFlags::IMMUTABLE | IFlags::APPEND));
        }
    };
    clear(dir);
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if let Ok(fd) = rustix::fs::openat(dir, name, flags, Mode::empty()) {
        clear(&fd);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn run_to_end(path: &std::path::Path, steps: u32) -> u32 {
        let mut removal = LayerRemoval::new(path.to_str().unwrap().to_owned());
        let mut calls = 1;
        while !removal.advance(steps).unwrap() {
            calls += 1;
        }
        calls
    }

    #[test]
    fn a_deep_and_wide_tree_goes_in_small_steps() {
        let tmp = tempfile::tempdir().unwrap();
        let layer = tmp.path().join("layer");
        let mut dir = layer.join("upper");
        for depth in 0..200 {
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("file"), "x").unwrap();
            fs::create_dir(dir.join("side")).unwrap();
            dir.push(format!("d{depth}"));
        }
        assert!(run_to_end(&layer, 10) > 10);
        assert!(!layer.exists());
    }

    #[test]
    fn links_are_removed_not_followed() {
        let tmp = tempfile::tempdir().unwrap();
        let (layer, outside) = (tmp.path().join("layer"), tmp.path().join("outside"));
        fs::create_dir_all(layer.join("upper")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("precious"), "x").unwrap();
        symlink(&outside, layer.join("upper/link")).unwrap();
        symlink(&outside, layer.join("link")).unwrap();
        run_to_end(&layer, 100);
        assert!(!layer.exists() && outside.join("precious").exists());
    }

    #[test]
    fn names_like_its_own_do_not_confuse_it() {
        let tmp = tempfile::tempdir().unwrap();
        let layer = tmp.path().join("layer");
        fs::create_dir_all(layer.join("removed-0/removed-0/x")).unwrap();
        fs::write(layer.join("removed-1"), "").unwrap();
        run_to_end(&layer, 2);
        assert!(!layer.exists());
    }

    #[test]
    fn what_is_gone_already_is_done() {
        assert_eq!(run_to_end(std::path::Path::new("/nonexistent/layer"), 1), 1);
    }
}
