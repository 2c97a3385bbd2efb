//! What a block volume is made of on the host: a path or a descriptor, opened,
//! checked and locked.

use super::{format, problem};
use crate::error::SandboxError;
use crate::record::DiskId;
use crate::shares::{check_path, check_within, open as open_path};
use crate::spec::{BlockVolumeSpec, DiskPath};
use rustix::fs::{FileType, FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What a block volume is made of.
#[derive(Debug)]
pub enum VolumeSource {
    /// What a path leads to.
    Path(DiskPath),
    /// An open regular file or block device: for reading, and for writing unless the
    /// volume is read-only.
    Descriptor(OwnedFd),
    /// Such a descriptor, and the path where it was found.
    Found(OwnedFd, PathBuf),
}

impl fmt::Display for VolumeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(at) => at.path.display().fmt(f),
            Self::Descriptor(_) => f.write_str("a descriptor"),
            Self::Found(_, path) => path.display().fmt(f),
        }
    }
}

/// An open file or device.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) id: DiskId,
    is_block_device: bool,
}

/// Opens a volume as its specification wants it. Blocks.
pub(super) fn open(spec: &BlockVolumeSpec, source: VolumeSource) -> Result<Opened, SandboxError> {
    let name = spec.name.as_str();
    let (file, found) = match source {
        VolumeSource::Path(at) => {
            check_path(&at.path)?;
            let path = at.path.as_path();
            let failed = |e: Errno| SandboxError::file("cannot open", path, e.into());
            let fd = open_path(path).map_err(failed)?;
            check_within(&fd, path, &at.within)?;
            let found = identify(name, &fd)?;
            (reopen(&fd, access(spec)).map_err(failed)?, found)
        }
        VolumeSource::Descriptor(fd) | VolumeSource::Found(fd, _) => {
            let found = identify(name, &fd)?;
            (File::from(fd), found)
        }
    };
    let (id, is_block_device) = found;
    if spec.exclusive {
        lock(name, &file, spec.read_only)?;
        if is_block_device {
            // Only looked at now: who makes a file system wants it for itself.
            claim(name, &file, spec)?;
        }
    }
    Ok(Opened {
        file,
        id,
        is_block_device,
    })
}

impl Opened {
    /// The same, held so that the host's kernel mounts it nowhere else.
    pub(super) fn claimed(self, spec: &BlockVolumeSpec) -> Result<Self, SandboxError> {
        if !spec.exclusive || !self.is_block_device {
            return Ok(self);
        }
        let file = claim(&spec.name, &self.file, spec)?;
        let Self {
            file: unclaimed, ..
        } = self;
        // Its lock would be in the way of the other's.
        drop(unclaimed);
        lock(&spec.name, &file, spec.read_only)?;
        Ok(Self { file, ..self })
    }
}

fn access(spec: &BlockVolumeSpec) -> OFlags {
    match spec.read_only {
        true => OFlags::RDONLY,
        false => OFlags::RDWR,
    }
}

/// The file behind a descriptor, opened anew.
fn reopen(fd: impl AsFd, flags: OFlags) -> Result<File, Errno> {
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    let fd = rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?;
    Ok(File::from(fd))
}

/// A block device opened so that nobody mounts it or opens it so meanwhile.
fn claim(name: &str, file: &File, spec: &BlockVolumeSpec) -> Result<File, SandboxError> {
    reopen(file, access(spec) | OFlags::EXCL).map_err(|e| match e {
        Errno::BUSY => problem(
            name,
            "the block device is in use on the host: unmount it, or detach it from the pod that has it",
        ),
        e => problem(name, format!("the block device cannot be opened: {e}")),
    })
}

/// Locks a file as long as it is open: nobody else writes what this one has, and
/// nobody has what this one writes.
fn lock(name: &str, file: &File, read_only: bool) -> Result<(), SandboxError> {
    let operation = match read_only {
        true => FlockOperation::NonBlockingLockShared,
        false => FlockOperation::NonBlockingLockExclusive,
    };
    flock(file, operation).map_err(|e| match e {
        Errno::WOULDBLOCK => problem(
            name,
            "another pod or program of the host has locked it: a volume is in one place at a time unless all only read it",
        ),
        e => problem(name, format!("it cannot be locked: {e}")),
    })
}

fn identify(name: &str, fd: impl AsFd) -> Result<(DiskId, bool), SandboxError> {
    let stat = rustix::fs::fstat(fd).map_err(|e| problem(name, e.to_string()))?;
    let is_block_device = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => false,
        FileType::BlockDevice => true,
        _ => {
            return Err(problem(
                name,
                "it is neither a block device nor a regular file",
            ));
        }
    };
    let id = DiskId {
        dev: stat.st_dev,
        ino: stat.st_ino,
        rdev: stat.st_rdev,
    };
    Ok((id, is_block_device))
}

/// The numbers of the block device that a path leads to; `None` if it leads to
/// something else. Blocks.
pub(crate) fn device_numbers(path: &Path) -> Result<Option<(u32, u32)>, SandboxError> {
    let failed = |e: Errno| SandboxError::file("cannot open", path, e.into());
    let fd = open_path(path).map_err(failed)?;
    let stat = rustix::fs::fstat(&fd).map_err(failed)?;
    let is_block = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
    let numbers = (
        rustix::fs::major(stat.st_rdev),
        rustix::fs::minor(stat.st_rdev),
    );
    Ok(is_block.then_some(numbers))
}

/// Makes a volume blank again whose file system was not made to the end. Left
/// alone: what is another by now, whatever is in use, and a file system that is
/// there after all. Blocks.
pub(super) fn wipe_again(path: &Path, id: DiskId) -> Result<(), SandboxError> {
    let name = path.display().to_string();
    let failed = |e: Errno| SandboxError::file("cannot open", path, e.into());
    let fd = open_path(path).map_err(failed)?;
    let (found, is_block_device) = identify(&name, &fd)?;
    if found != id {
        return Err(problem(&name, "it is another file by now"));
    }
    let exclusive = match is_block_device {
        true => OFlags::EXCL,
        false => OFlags::empty(),
    };
    let file = reopen(&fd, OFlags::RDWR | exclusive).map_err(failed)?;
    // A mkfs that still runs has the lock.
    lock(&name, &file, false)?;
    format::wipe_unless_whole(&file).map_err(|e| SandboxError::file("cannot wipe", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{IoLimits, ShownAs};
    use std::os::unix::fs::symlink;

    fn spec(read_only: bool) -> BlockVolumeSpec {
        BlockVolumeSpec {
            name: "v".into(),
            read_only,
            shown_as: ShownAs::Device,
            serial: String::new(),
            group: None,
            group_change: fs_group::Policy::default(),
            limits: IoLimits::default(),
            exclusive: true,
        }
    }

    fn at(path: &Path, within: &[PathBuf]) -> VolumeSource {
        VolumeSource::Path(DiskPath {
            path: path.to_owned(),
            within: within.to_vec(),
        })
    }

    #[test]
    fn a_volume_is_written_in_one_place_and_read_in_many() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, [0; 4096]).unwrap();
        let first = open(&spec(false), at(&path, &[])).unwrap();
        for other in [false, true] {
            let error = open(&spec(other), at(&path, &[])).unwrap_err().to_string();
            assert!(error.contains("one place at a time"), "{error}");
        }
        drop(first);
        let _reader = open(&spec(true), at(&path, &[])).unwrap();
        let _second = open(&spec(true), at(&path, &[])).unwrap();
        assert!(open(&spec(false), at(&path, &[])).is_err());
    }

    #[test]
    fn a_descriptor_is_as_good_as_a_path() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        open(&spec(false), VolumeSource::Descriptor(file.into())).unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        let error = open(&spec(true), VolumeSource::Descriptor(reader.into())).unwrap_err();
        assert!(error.to_string().contains("neither"), "{error}");
    }

    #[test]
    fn what_lies_elsewhere_or_is_no_disk_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        for dir in [&inside, &outside] {
            std::fs::create_dir(dir).unwrap();
            std::fs::write(dir.join("disk"), [0; 4096]).unwrap();
        }
        symlink(outside.join("disk"), inside.join("link")).unwrap();
        let within = [inside.clone()];
        open(&spec(false), at(&inside.join("disk"), &within)).unwrap();
        let error = open(&spec(false), at(&inside.join("link"), &within)).unwrap_err();
        assert!(error.to_string().contains("pods may not have"), "{error}");
        for path in [inside.as_path(), Path::new("/dev/null")] {
            let error = open(&spec(true), at(path, &[])).unwrap_err().to_string();
            assert!(error.contains("neither"), "{error}");
        }
        assert_eq!(device_numbers(&inside.join("disk")).unwrap(), None);
        assert_eq!(device_numbers(Path::new("/dev/null")).unwrap(), None);
    }

    #[test]
    fn what_was_half_formatted_is_wiped_unless_it_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let opened = open(&spec(false), at(&path, &[])).unwrap();
        let id = opened.id;
        assert!(wipe_again(&path, id).is_err(), "it is locked");
        drop(opened);
        let other = DiskId { ino: 1, ..id };
        assert!(wipe_again(&path, other).is_err());
        assert_eq!(std::fs::read(&path).unwrap()[0], 7);
        wipe_again(&path, id).unwrap();
        assert!(std::fs::read(&path).unwrap().iter().all(|byte| *byte == 0));
    }
}
