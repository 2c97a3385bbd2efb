//! Network namespaces that live as bind mounts of files, and work done in them.
//!
//! A namespace is made by a thread that leaves its own and ends: no other
//! thread of the process, tokio's least of all, ever changes namespace.

use crate::netlink::{Netlink, NetlinkError};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::Mode;
use rustix::mount::UnmountFlags;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// statfs type of a namespace file (linux/magic.h).
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// A network namespace could not be made, entered or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetnsError {
    /// A step on the namespace's file failed.
    #[error("cannot {step} network namespace {path}", path = path.display())]
    Step {
        /// What was tried.
        step: &'static str,
        /// The namespace's file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file is there but holds no namespace: its mount is gone.
    #[error("{path} holds no network namespace any more; was it unmounted from outside?", path = .0.display())]
    Gone(PathBuf),
    /// The loopback interface of the new namespace did not come up.
    #[error("cannot bring up lo in network namespace {path}", path = path.display())]
    Loopback {
        /// The namespace's file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: NetlinkError,
    },
}

fn step<E: Into<io::Error>>(step: &'static str, path: &Path) -> impl FnOnce(E) -> NetnsError {
    move |source| NetnsError::Step {
        step,
        path: path.to_owned(),
        source: source.into(),
    }
}

/// An open network namespace. Holding it keeps the namespace alive.
#[derive(Debug)]
pub(crate) struct Netns {
    path: PathBuf,
    file: File,
}

impl Netns {
    /// Makes the namespace at `path`, lo up, or opens the one that is there.
    pub(crate) fn create(path: &Path) -> Result<Self, NetnsError> {
        if !exists(path)? {
            rustix::fs::open(
                path,
                rustix::fs::OFlags::CREATE
                    | rustix::fs::OFlags::RDONLY
                    | rustix::fs::OFlags::CLOEXEC,
                Mode::from_raw_mode(0o444),
            )
            .map_err(step("create the file of", path))?;
            on_own_thread(|| {
                unshare(CloneFlags::CLONE_NEWNET).map_err(step("make", path))?;
                rustix::mount::mount_bind("/proc/thread-self/ns/net", path)
                    .map_err(step("mount", path))
            })?;
        }
        let netns = Self::open(path)?;
        // Also of a namespace that was there: it may have been left half made.
        netns
            .within(|| Netlink::open().and_then(|mut netlink| netlink.set_up_by_name("lo")))?
            .map_err(|source| NetnsError::Loopback {
                path: path.to_owned(),
                source,
            })?;
        Ok(netns)
    }

    /// Opens the namespace that `path` holds.
    pub(crate) fn open(path: &Path) -> Result<Self, NetnsError> {
        if !exists(path)? {
            return Err(NetnsError::Gone(path.to_owned()));
        }
        let file = File::open(path).map_err(step("open", path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Does `work` on a thread of its own inside the namespace.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        on_own_thread(|| {
            setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
                .map_err(step("enter", &self.path))?;
            Ok(work())
        })
    }
}

/// Whether `path` holds a namespace; a plain file there (a crash between its
/// making and the mount) is none.
pub(crate) fn exists(path: &Path) -> Result<bool, NetnsError> {
    match rustix::fs::statfs(path) {
        Ok(stat) => Ok(stat.f_type == NSFS_MAGIC),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(e) => Err(step("look at", path)(e)),
    }
}

/// Removes the namespace and its file; what is gone already is no error. The
/// kernel keeps the namespace itself as long as a process or an open TAP is in it.
pub(crate) fn remove(path: &Path) -> Result<(), NetnsError> {
    while exists(path)? {
        match rustix::mount::unmount(path, UnmountFlags::DETACH) {
            // Not mounted here, although it was a moment ago.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(step("unmount", path)(e)),
        }
    }
    match rustix::fs::unlink(path) {
        // Unlinking also takes away mounts of it in other mount namespaces.
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(e) => Err(step("unlink", path)(e)),
    }
}

/// Runs `work` on a thread that ends with it, so that nothing it does to its
/// namespaces outlives it.
fn on_own_thread<T: Send>(
    work: impl FnOnce() -> Result<T, NetnsError> + Send,
) -> Result<T, NetnsError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)
            .map_err(step("start a thread for", Path::new("-")))?;
        match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
