//! Paths that hostile images and volumes have a say in, resolved without ever
//! leaving a root directory, and made where they are missing.

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};

/// What a path shall be where it does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// A directory (mode 0755, root's), its parents too.
    Directory,
    /// A directory of that mode (root's), its parents too.
    DirectoryWith(u32),
    /// An empty file (mode 0644, root's); parents are directories.
    File,
}

/// How a symbolic link that points past the root is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Escape {
    /// As if the root were "/": right for paths in a container.
    Contain,
    /// EXDEV: right for a volume's sub-path, which nobody expects elsewhere.
    Refuse,
}

/// A directory that paths are resolved in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rooted<'a> {
    root: BorrowedFd<'a>,
    escape: Escape,
}

/// Most symbolic links followed in one path, as the kernel's own limit.
const MAX_LINKS: usize = 40;
/// Most components looked at, links' targets included.
const MAX_COMPONENTS: usize = 512;

impl<'a> Rooted<'a> {
    /// Paths below the open directory `root`.
    pub(crate) fn new(root: BorrowedFd<'a>, escape: Escape) -> Self {
        Self { root, escape }
    }

    /// Opens what exists at `path` as `flags` say.
    pub(crate) fn open(self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = match self.escape {
            Escape::Contain => ResolveFlags::IN_ROOT,
            Escape::Refuse => ResolveFlags::BENEATH,
        };
        let path = match path.trim_start_matches('/') {
            "" => ".",
            path => path,
        };
        let resolve = resolve | ResolveFlags::NO_MAGICLINKS;
        loop {
            // EAGAIN: a rename elsewhere raced with a ".."; the walk was abandoned.
            match openat2(
                self.root,
                path,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                resolve,
            ) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// An O_PATH descriptor of the directory `path`, which is made if missing.
    /// ELOOP if any part of it is a symbolic link.
    pub(crate) fn open_or_make_plain(self, path: &str) -> Result<OwnedFd, Errno> {
        drop(self.open_or_make(path, Missing::Directory)?);
        let path = path.trim_start_matches('/');
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        openat2(self.root, path, flags, Mode::empty(), resolve)
    }

    /// An O_PATH descriptor of `path`, which is made where it is missing.
    pub(crate) fn open_or_make(self, path: &str, missing: Missing) -> Result<OwnedFd, Errno> {
        match self.open(path, OFlags::PATH) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        let (mut links, mut looked_at) = (0, 0);
        // Components still to walk, last first; components that exist.
        let mut todo: Vec<String> = split(path);
        let mut done: Vec<String> = Vec::new();
        while let Some(name) = todo.pop() {
            looked_at += 1;
            if looked_at > MAX_COMPONENTS {
                return Err(Errno::NAMETOOLONG);
            }
            if name == ".." {
                if done.pop().is_none() && self.escape == Escape::Refuse {
                    return Err(Errno::XDEV);
                }
                continue;
            }
            let parent = self.open(&done.join("/"), OFlags::PATH | OFlags::DIRECTORY)?;
            done.push(name);
            match self.open(&done.join("/"), OFlags::PATH | OFlags::NOFOLLOW) {
                Ok(found) => {
                    let Some(target) = link_target(&found)? else {
                        continue;
                    };
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP);
                    }
                    done.pop();
                    if target.starts_with('/') {
                        if self.escape == Escape::Refuse {
                            return Err(Errno::XDEV);
                        }
                        done.clear();
                    }
                    todo.extend(split(&target));
                }
                Err(Errno::NOENT) => {
                    let name = done.last().map_or("", String::as_str);
                    let is_parent = !todo.is_empty() && missing == Missing::File;
                    let missing = if is_parent {
                        Missing::Directory
                    } else {
                        missing
                    };
                    make(&parent, name, missing)?;
                }
                Err(e) => return Err(e),
            }
        }
        self.open(&done.join("/"), OFlags::PATH)
    }
}

/// Components of a path, last first, without empty ones and ".".
fn split(path: &str) -> Vec<String> {
    path.rsplit('/')
        .filter(|c| !c.is_empty() && *c != ".")
        .map(str::to_owned)
        .collect()
}

/// Where the symbolic link behind an O_PATH descriptor points; `None` if it is
/// no link.
fn link_target(found: &OwnedFd) -> Result<Option<String>, Errno> {
    let stat = rustix::fs::fstat(found)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Symlink {
        return Ok(None);
    }
    let target = rustix::fs::readlinkat(found, "", Vec::new())?;
    target.into_string().map(Some).map_err(|_| Errno::ILSEQ)
}

fn make(parent: &OwnedFd, name: &str, missing: Missing) -> Result<(), Errno> {
    let made = match missing {
        Missing::Directory => rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)),
        Missing::DirectoryWith(mode) => make_with(parent, name, Mode::from_raw_mode(mode)),
        Missing::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    };
    match made {
        // Another container of the pod made it in a shared volume: as good.
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

/// A directory of a mode that no umask changes.
fn make_with(parent: &OwnedFd, name: &str, mode: Mode) -> Result<(), Errno> {
    rustix::fs::mkdirat(parent, name, Mode::RWXU)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    rustix::fs::fchmod(made, mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    fn dir_fd(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    fn same(fd: &OwnedFd, path: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        let stat = rustix::fs::fstat(fd).unwrap();
        let meta = fs::metadata(path).unwrap();
        (stat.st_ino, stat.st_dev) == (meta.ino(), meta.dev())
    }

    #[test]
    fn missing_directories_and_files_are_made() {
        let tmp = tempfile::tempdir().unwrap();
        let root = dir_fd(tmp.path());
        let rooted = Rooted::new(root.as_fd(), Escape::Contain);
        let fd = rooted.open_or_make("/a/b/c", Missing::Directory).unwrap();
        assert!(same(&fd, &tmp.path().join("a/b/c")));
        let fd = rooted.open_or_make("/etc/hosts", Missing::File).unwrap();
        assert!(same(&fd, &tmp.path().join("etc/hosts")));
        assert!(
            fs::metadata(tmp.path().join("etc/hosts"))
                .unwrap()
                .is_file()
        );
    }

    #[test]
    fn directories_of_a_mode_have_it_up_to_the_root() {
        use std::os::unix::fs::PermissionsExt;
        let tmp = tempfile::tempdir().unwrap();
        fs::create_dir(tmp.path().join("old")).unwrap();
        let old = fs::metadata(tmp.path().join("old")).unwrap().permissions();
        let root = dir_fd(tmp.path());
        let rooted = Rooted::new(root.as_fd(), Escape::Refuse);
        let missing = Missing::DirectoryWith(0o2777);
        rooted.open_or_make("old/a/b", missing).unwrap();
        let mode = |path: &str| fs::metadata(tmp.path().join(path)).unwrap().permissions();
        for made in ["old/a", "old/a/b"] {
            assert_eq!(mode(made).mode() & 0o7777, 0o2777, "{made}");
        }
        assert_eq!(mode("old"), old);
    }

    #[test]
    fn a_link_to_the_outside_stays_inside() {
        let (tmp, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(outside.path(), tmp.path().join("data")).unwrap();
        symlink("../../../../etc", tmp.path().join("up")).unwrap();
        let root = dir_fd(tmp.path());
        let rooted = Rooted::new(root.as_fd(), Escape::Contain);
        let fd = rooted.open_or_make("/data/x", Missing::Directory).unwrap();
        let inside = tmp.path().join(outside.path().strip_prefix("/").unwrap());
        assert!(same(&fd, &inside.join("x")));
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        let fd = rooted.open_or_make("/up/f", Missing::File).unwrap();
        assert!(same(&fd, &tmp.path().join("etc/f")));
    }

    #[test]
    fn a_sub_path_through_an_escaping_link_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        fs::create_dir(tmp.path().join("sub")).unwrap();
        symlink("/etc", tmp.path().join("abs")).unwrap();
        symlink("../../..", tmp.path().join("sub/up")).unwrap();
        symlink("../fine", tmp.path().join("sub/ok")).unwrap();
        let root = dir_fd(tmp.path());
        let rooted = Rooted::new(root.as_fd(), Escape::Refuse);
        for path in ["abs", "abs/new", "sub/up", "sub/up/new", "..", "../new"] {
            let got = rooted.open_or_make(path, Missing::Directory);
            assert_eq!(got.unwrap_err(), Errno::XDEV, "{path}");
        }
        let fd = rooted.open_or_make("sub/ok/x", Missing::Directory).unwrap();
        assert!(same(&fd, &tmp.path().join("fine/x")));
    }

    #[test]
    fn a_kernel_mount_point_that_is_a_link_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        symlink("dev", tmp.path().join("proc")).unwrap();
        let root = dir_fd(tmp.path());
        let rooted = Rooted::new(root.as_fd(), Escape::Contain);
        assert_eq!(rooted.open_or_make_plain("/proc").unwrap_err(), Errno::LOOP);
        let fd = rooted.open_or_make_plain("/sys/fs").unwrap();
        assert!(same(&fd, &tmp.path().join("sys/fs")));
    }

    #[test]
    fn links_in_a_circle_end() {
        let tmp = tempfile::tempdir().unwrap();
        symlink("b", tmp.path().join("a")).unwrap();
        symlink("a", tmp.path().join("b")).unwrap();
        let root = dir_fd(tmp.path());
        let rooted = Rooted::new(root.as_fd(), Escape::Contain);
        let got = rooted.open_or_make("/a/x", Missing::Directory);
        assert_eq!(got.unwrap_err(), Errno::LOOP);
    }

    proptest! {
        #[test]
        fn whatever_the_links_say_nothing_appears_outside(
            links in prop::collection::vec(
                ("[abc]", "(/|\\.\\./)?([abc]|\\.\\.)(/([abc]|\\.\\.)){0,3}"), 0..4),
            path in "/?([abc]|\\.\\.)(/([abc]|\\.\\.)){0,3}",
            refuse in any::<bool>(),
        ) {
            let tmp = tempfile::tempdir().unwrap();
            let root_path = tmp.path().join("1/2/root");
            fs::create_dir_all(&root_path).unwrap();
            for (name, target) in &links {
                let _ = symlink(target, root_path.join(name));
            }
            let root = dir_fd(&root_path);
            let escape = if refuse { Escape::Refuse } else { Escape::Contain };
            let _ = Rooted::new(root.as_fd(), escape).open_or_make(&path, Missing::Directory);
            for (dir, only) in [("", "1"), ("1", "2"), ("1/2", "root")] {
                let names: Vec<_> = fs::read_dir(tmp.path().join(dir)).unwrap()
                    .map(|e| e.unwrap().file_name()).collect();
                prop_assert_eq!(names, [only]);
            }
        }
    }
}
