//! The file that an emptyDir's disk is.
//!
//! Its directory may have been shared with a guest before, which may have put anything
//! there: no link is followed, and only a regular file is opened. What it holds is the
//! same pod's affair; the host looks at no more than its first and last bytes.

use super::EmptyDir;
use crate::disk_template::EMPTY_DIR;
use crate::error::SandboxError;
use crate::volumes;
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, linkat, openat, unlinkat};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Its name in the emptyDir.
const FILE: &str = ".spherule-emptydir.ext4";
/// What of a directory is looked at before it counts as used: a kubelet makes empty
/// directories for subPaths.
const MAX_ENTRIES: usize = 256;
const MAX_DEPTH: usize = 16;

/// The disk of an emptyDir, made where it is missing; `None` if the directory is in
/// other use, or on a file system that cannot have one. Blocks.
pub(super) fn open_or_make(
    root: &Path,
    volume: &EmptyDir,
    mib: u64,
) -> Result<Option<OwnedFd>, SandboxError> {
    let path = volume.path.join(FILE);
    let failed = |e: io::Error| SandboxError::file("cannot open", &path, e);
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match openat(&volume.dir, FILE, flags, Mode::empty()) {
        Ok(fd) => {
            let file = File::from(fd);
            if !file.metadata().map_err(failed)?.is_file() {
                return Ok(None);
            }
            // A host that lost its power may have kept the name alone.
            if !volumes::is_blank(&file).map_err(failed)? {
                return Ok(Some(file.into()));
            }
            unlinkat(&volume.dir, FILE, AtFlags::empty()).map_err(|e| failed(e.into()))?;
        }
        Err(Errno::NOENT) => {}
        // A link, a directory, a socket.
        Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => return Ok(None),
        Err(e) => return Err(failed(e.into())),
    }
    match is_untouched(&volume.dir, &volume.path)? {
        true => make(root, volume, mib, &path),
        false => Ok(None),
    }
}

/// It has its name once it is whole: who is killed before leaves nothing.
fn make(
    root: &Path,
    volume: &EmptyDir,
    mib: u64,
    path: &Path,
) -> Result<Option<OwnedFd>, SandboxError> {
    let failed = |e: Errno| SandboxError::file("cannot make", path, e.into());
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let file = match openat(&volume.dir, ".", flags, mode) {
        Ok(fd) => File::from(fd),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    EMPTY_DIR.copy_to(root, mib, &file, path)?;
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    let follow = AtFlags::SYMLINK_FOLLOW;
    linkat(CWD, open, &volume.dir, FILE, follow).map_err(failed)?;
    Ok(Some(file.into()))
}

/// Whether a directory holds nothing but empty directories. Blocks.
pub(super) fn is_untouched(dir: &OwnedFd, path: &Path) -> Result<bool, SandboxError> {
    let mut left = MAX_ENTRIES;
    nothing_in(dir.as_fd(), &mut left, 0)
        .map_err(|e| SandboxError::file("cannot read the directory", path, e.into()))
}

fn nothing_in(dir: BorrowedFd<'_>, left: &mut usize, depth: usize) -> Result<bool, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if *left == 0 || depth == MAX_DEPTH {
            return Ok(false);
        }
        *left -= 1;
        let below = match openat(dir, name, flags, Mode::empty()) {
            Ok(below) => below,
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(false),
            Err(e) => return Err(e),
        };
        if !nothing_in(below.as_fd(), left, depth + 1)? {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::Medium;
    use super::*;
    use crate::spec::DirectorySpec;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    fn empty_dir(path: &Path) -> EmptyDir {
        EmptyDir {
            name: "v".into(),
            path: path.to_owned(),
            dir: File::open(path).unwrap().into(),
            sub_path: String::new(),
            medium: Medium::Disk { mib: 1024 },
            top: DirectorySpec {
                uid: 0,
                gid: 0,
                mode: 0o777,
            },
        }
    }

    struct Node {
        root: tempfile::TempDir,
        volume: tempfile::TempDir,
    }

    impl Node {
        fn new() -> Self {
            Self {
                root: tempfile::tempdir().unwrap(),
                volume: tempfile::tempdir().unwrap(),
            }
        }
        fn disk(&self) -> Option<fs::Metadata> {
            let volume = empty_dir(self.volume.path());
            let file = open_or_make(self.root.path(), &volume, 1024).unwrap()?;
            Some(File::from(file).metadata().unwrap())
        }
    }

    #[test]
    fn a_disk_is_made_once_and_takes_little() {
        let node = Node::new();
        fs::create_dir_all(node.volume.path().join("sub/path")).unwrap();
        let made = node.disk().unwrap();
        assert!(made.blocks() * 512 < 512 << 10, "{}", made.blocks());
        assert_eq!(node.disk().unwrap().ino(), made.ino());
        let file = node.volume.path().join(FILE);
        // Only its name had been kept.
        fs::remove_file(&file).unwrap();
        File::create(&file).unwrap().set_len(1 << 30).unwrap();
        let again = node.disk().unwrap();
        assert!(again.blocks() > 0 && again.len() == 1 << 30);
        // What is put beside it changes nothing.
        fs::write(node.volume.path().join("file"), "").unwrap();
        assert_eq!(node.disk().unwrap().ino(), again.ino());
    }

    #[test]
    fn a_directory_with_anything_in_it_is_shared() {
        for put in [
            |dir: &Path| fs::write(dir.join("file"), "").unwrap(),
            |dir: &Path| symlink("/etc", dir.join("link")).unwrap(),
            |dir: &Path| {
                fs::create_dir(dir.join("sub")).unwrap();
                fs::write(dir.join("sub").join(FILE), "").unwrap();
            },
            |dir: &Path| (0..300).for_each(|i| fs::create_dir(dir.join(i.to_string())).unwrap()),
            // Put there to have the daemon open it.
            |dir: &Path| symlink("/etc/passwd", dir.join(FILE)).unwrap(),
            |dir: &Path| fs::create_dir_all(dir.join(FILE)).unwrap(),
        ] {
            let node = Node::new();
            put(node.volume.path());
            assert!(node.disk().is_none());
        }
    }
}
