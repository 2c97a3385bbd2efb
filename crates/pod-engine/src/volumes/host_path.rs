//! Directories and files of the host that a pod may be given: those beneath the
//! directories that the node's configuration names.
//!
//! A path is opened first, links followed, then it is judged where what was opened
//! lies: a link that changes in between changes nothing.

use super::NotMounted;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Of directories and files that are made, as the kubelet makes them.
const DIR_MODE: Mode = Mode::from_raw_mode(0o755);
const FILE_MODE: Mode = Mode::from_raw_mode(0o644);

/// What should be at a path of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Anything; a directory is made where there is nothing.
    Any,
    Directory {
        make: bool,
    },
    File {
        make: bool,
    },
    /// A block device or a regular file that is used as one.
    Disk,
    /// A directory or a disk.
    DirectoryOrDisk,
}

impl Wanted {
    /// Of a `hostPath`'s checked type.
    pub(crate) fn of(kind: &str) -> Self {
        match kind {
            "Directory" => Self::Directory { make: false },
            "DirectoryOrCreate" => Self::Directory { make: true },
            "File" => Self::File { make: false },
            "FileOrCreate" => Self::File { make: true },
            _ => Self::Any,
        }
    }
}

/// The directories beneath which pods may have what the host has.
#[derive(Debug, Clone, Default)]
pub(crate) struct Allowed(Vec<PathBuf>);

impl Allowed {
    pub(crate) fn new(dirs: &[PathBuf]) -> Self {
        Self(dirs.to_vec())
    }

    /// Their true paths, those that are there.
    pub(crate) fn dirs(&self) -> Vec<PathBuf> {
        self.0
            .iter()
            .filter_map(|dir| dir.canonicalize().ok())
            .collect()
    }

    /// Refuses a path that leads elsewhere as things are. What does not exist is
    /// judged by the directory that it would be made in.
    pub(crate) fn check(&self, path: &Path) -> Result<(), NotMounted> {
        self.nearest(path).map(drop)
    }

    /// Opens `path`, or makes it; returns it for reading its attributes.
    pub(super) fn open(&self, path: &Path, wanted: Wanted) -> Result<OwnedFd, NotMounted> {
        let (mut fd, missing) = self.nearest(path)?;
        let failed = |source: Errno| NotMounted::io(path, source.into());
        if let Some((last, parents)) = missing.split_last() {
            let make_file = match wanted {
                Wanted::Any | Wanted::Directory { make: true } => false,
                Wanted::File { make: true } => true,
                Wanted::Directory { make: false }
                | Wanted::File { make: false }
                | Wanted::Disk
                | Wanted::DirectoryOrDisk => {
                    return Err(failed(Errno::NOENT));
                }
            };
            for name in parents {
                fd = make_dir(&fd, name).map_err(failed)?;
            }
            fd = match make_file {
                true => make_file_in(&fd, last).map_err(failed)?,
                false => make_dir(&fd, last).map_err(failed)?,
            };
        }
        let stat = rustix::fs::fstat(&fd).map_err(failed)?;
        let found = FileType::from_raw_mode(stat.st_mode);
        let is_disk = matches!(found, FileType::RegularFile | FileType::BlockDevice);
        let (right, what) = match wanted {
            Wanted::Disk => (is_disk, "a block device or regular file"),
            Wanted::DirectoryOrDisk => (
                is_disk || found == FileType::Directory,
                "a directory, block device or regular file",
            ),
            Wanted::Any => (
                matches!(found, FileType::Directory | FileType::RegularFile),
                "a directory or regular file",
            ),
            Wanted::Directory { .. } => (found == FileType::Directory, "a directory"),
            Wanted::File { .. } => (found == FileType::RegularFile, "a regular file"),
        };
        if right {
            return Ok(fd);
        }
        Err(NotMounted::WrongType {
            path: path.to_owned(),
            what,
        })
    }

    /// Opens `path`, or the nearest directory above it, and says which parts are
    /// missing.
    fn nearest<'a>(&self, path: &'a Path) -> Result<(OwnedFd, Vec<&'a OsStr>), NotMounted> {
        let failed = |source: Errno| NotMounted::io(path, source.into());
        let mut missing = Vec::new();
        let mut at = path;
        let fd = loop {
            match open(at) {
                Ok(fd) => break fd,
                Err(Errno::NOENT) => {
                    // Something is there, a link that leads nowhere.
                    if at.symlink_metadata().is_ok() {
                        return Err(failed(Errno::NOENT));
                    }
                    missing.extend(at.file_name());
                    at = at.parent().ok_or_else(|| failed(Errno::NOENT))?;
                }
                Err(error) => return Err(failed(error)),
            }
        };
        missing.reverse();
        let place = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let place = place.read_link().map_err(|e| NotMounted::io(path, e))?;
        if self.dirs().iter().any(|dir| place.starts_with(dir)) {
            return Ok((fd, missing));
        }
        Err(NotMounted::NotAllowed {
            path: path.to_owned(),
            allowed: self.0.clone(),
        })
    }
}

fn open(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
}

/// A new directory, or the one that another has made meanwhile; no link.
fn make_dir(parent: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    match rustix::fs::mkdirat(&parent, name, DIR_MODE) {
        Err(Errno::EXIST) | Ok(()) => {}
        Err(error) => return Err(error),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

fn make_file_in(parent: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, FILE_MODE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_what_lies_beneath_the_allowed_directories_is_given() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        for dir in [&inside, &outside, &dir.path().join("in-other")] {
            fs::create_dir(dir).unwrap();
        }
        symlink(&outside, inside.join("leaves")).unwrap();
        symlink(&inside, outside.join("enters")).unwrap();
        symlink("nowhere", inside.join("dangling")).unwrap();
        let allowed = Allowed::new(std::slice::from_ref(&inside));
        let any = |path: &str| allowed.open(&dir.path().join(path), Wanted::Any).map(drop);
        any("in").unwrap();
        any("out/enters").unwrap();
        for path in ["out", "in/leaves", "in/leaves/new", "in-other", "out/new"] {
            let refused = any(path).unwrap_err();
            assert!(
                matches!(refused, NotMounted::NotAllowed { .. }),
                "{path}: {refused}"
            );
        }
        assert!(matches!(any("in/dangling"), Err(NotMounted::Files { .. })));
        assert!(!outside.join("new").exists());
        assert!(Allowed::default().check(&inside).is_err());
    }

    #[test]
    fn what_is_there_must_be_of_the_type() {
        let dir = tempfile::tempdir().unwrap();
        let allowed = Allowed::new(&[dir.path().to_owned()]);
        let open = |name: &str, kind: &str| {
            allowed
                .open(&dir.path().join(name), Wanted::of(kind))
                .map(drop)
        };
        assert!(matches!(
            open("d", "Directory"),
            Err(NotMounted::Files { .. })
        ));
        open("d/e", "DirectoryOrCreate").unwrap();
        open("d", "Directory").unwrap();
        open("f", "FileOrCreate").unwrap();
        open("f", "FileOrCreate").unwrap();
        open("f", "File").unwrap();
        open("new", "").unwrap();
        let local = |name: &str, wanted| allowed.open(&dir.path().join(name), wanted).is_ok();
        for (name, disk, either) in [("f", true, true), ("d", false, true), ("n", false, false)] {
            assert_eq!(local(name, Wanted::Disk), disk, "{name}");
            assert_eq!(local(name, Wanted::DirectoryOrDisk), either, "{name}");
        }
        assert!(dir.path().join("new").is_dir());
        assert!(matches!(
            open("f", "Directory"),
            Err(NotMounted::WrongType { .. })
        ));
        assert!(matches!(
            open("d", "File"),
            Err(NotMounted::WrongType { .. })
        ));
    }
}
