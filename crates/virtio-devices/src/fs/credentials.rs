//! Whose rights a request uses, and what its thread needs.
//!
//! The guest's kernel has checked permissions already; the host's file system
//! must only learn who a new file belongs to. So files are made under the file
//! system ids of the guest's process, with the right to pass permission bits by:
//! FUSE tells of no supplementary groups, by which the process may have been let
//! in (fsGroup). All this is a property of the thread, never of the process.
#![expect(
    unsafe_code,
    reason = "no safe wrapper of setfsuid, setfsgid and unshare"
)]
// UNSAFETY: three system calls on the calling thread's credentials and file
// system context have no safe wrapper. They take and give plain numbers.

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags, capabilities, set_capabilities};
use std::cell::Cell;

thread_local! {
    /// This thread has a file mode creation mask of its own.
    static PREPARED: Cell<bool> = const { Cell::new(false) };
}

/// Gives the calling thread an umask of its own, of zero: the guest's kernel has
/// applied its process's. Once a thread, then free of cost.
///
/// # Errors
/// If the host does not let a thread have one.
pub(super) fn prepare_thread() -> Result<(), Errno> {
    if PREPARED.get() {
        return Ok(());
    }
    // SAFETY: CLONE_FS gives the thread a copy of root, working directory and
    // umask; no memory or descriptor is touched, and nothing in this crate
    // relies on two threads sharing a working directory.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS)? };
    rustix::process::umask(Mode::empty());
    PREPARED.set(true);
    Ok(())
}

/// Does `work` as this user and group of the guest, which a file that it makes
/// then belongs to. Without the right to do so (no root), as this process.
///
/// # Errors
/// Those of `work`; INVAL for an id that is none; PERM if the host refuses.
pub(super) fn as_user<T>(
    uid: u32,
    gid: u32,
    work: impl FnOnce() -> Result<T, Errno>,
) -> Result<T, Errno> {
    if uid == u32::MAX || gid == u32::MAX {
        return Err(Errno::INVAL);
    }
    if !rustix::process::geteuid().is_root() || (uid, gid) == (0, 0) {
        return work();
    }
    let before = capabilities(None)?;
    let _restore = Restore {
        ids: true,
        capabilities: before,
    };
    set_fs_ids(uid, gid)?;
    if uid != 0 {
        // The change took all rights over files away.
        let mut now = capabilities(None)?;
        now.effective |= before.permitted & CapabilitySet::DAC_OVERRIDE;
        set_capabilities(None, now)?;
    }
    work()
}

/// Does `work`, if `kill` without the right to keep set-user-id bits: the
/// kernel takes them off a file that is written or cut.
///
/// # Errors
/// Those of `work`, and of capset(2).
pub(super) fn killing_suid<T>(
    kill: bool,
    work: impl FnOnce() -> Result<T, Errno>,
) -> Result<T, Errno> {
    if !kill {
        return work();
    }
    let before = capabilities(None)?;
    if !before.effective.contains(CapabilitySet::FSETID) {
        return work();
    }
    let _restore = Restore {
        ids: false,
        capabilities: before,
    };
    let mut now = before;
    now.effective -= CapabilitySet::FSETID;
    set_capabilities(None, now)?;
    work()
}

/// Puts the thread's rights back.
struct Restore {
    ids: bool,
    capabilities: CapabilitySets,
}

impl Drop for Restore {
    fn drop(&mut self) {
        // Back to what the process is: the kernel never refuses these.
        if self.ids {
            let _ = set_fs_ids(
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            );
        }
        let _ = set_capabilities(None, self.capabilities);
    }
}

/// Sets the file system ids of the thread.
fn set_fs_ids(uid: u32, gid: u32) -> Result<(), Errno> {
    // SAFETY: the calls take and give numbers and change the calling thread's
    // credentials only. Both return what was before, so the second call of each
    // (with an id that is none, which changes nothing) tells what is.
    let now = unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
        (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX))
    };
    if now == (uid.cast_signed(), gid.cast_signed()) {
        Ok(())
    } else {
        Err(Errno::PERM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn rights_are_back_afterwards() {
        let before = capabilities(None).expect("capget");
        let result: Result<(), Errno> = as_user(1234, 5678, || Err(Errno::NOSPC));
        assert!(matches!(result, Err(Errno::NOSPC | Errno::PERM)));
        killing_suid(true, || Ok(())).expect("capset");
        assert_eq!(capabilities(None).expect("capget"), before);
    }

    #[test]
    fn a_new_file_is_the_user_s() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("f");
        // The directory is root's alone: rights over it are not asked for again.
        as_user(1234, 5678, || {
            std::fs::write(&path, "x").map_err(|_| Errno::IO)
        })
        .expect("made");
        let meta = std::fs::metadata(&path).expect("there");
        assert_eq!((meta.uid(), meta.gid()), (1234, 5678));
        std::fs::write(dir.path().join("g"), "x").expect("made");
        assert_eq!(
            std::fs::metadata(dir.path().join("g"))
                .expect("there")
                .uid(),
            0
        );
    }

    #[test]
    fn no_user_is_no_id() {
        assert_eq!(as_user(u32::MAX, 0, || Ok(())), Err(Errno::INVAL));
    }
}
