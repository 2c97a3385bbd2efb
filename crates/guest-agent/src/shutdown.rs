//! The end of the guest.

use crate::layout;
use crate::log;
use crate::sys::process;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::WaitOptions;
use rustix::system::{RebootCommand, reboot};
use std::time::{Duration, Instant};

/// How long killed processes may take to go.
const PATIENCE: Duration = Duration::from_secs(5);

/// Kills everything, syncs and ends the VM. Only returns where the kernel
/// refuses.
pub(crate) fn end_guest() {
    process::kill_everything();
    reap_all();
    // Scratch and volumes are the pod's and end with it; block volumes outlive it.
    let _ = unmount(layout::SCRATCH, UnmountFlags::DETACH);
    unmount_block_volumes();
    rustix::fs::sync();
    // A restart, not a power-off: the kernel's command line says how to do it
    // (reboot=), and every engine ends its VM at a reset.
    if let Err(e) = reboot(RebootCommand::Restart) {
        log::fatal(&format!("ending the VM failed: {e}"));
    }
}

/// So that their file systems are whole. The kernel may be busy for a moment with
/// the mounts of those that were just killed; after that a sync has to do.
fn unmount_block_volumes() {
    let deadline = Instant::now() + PATIENCE;
    let volumes = std::fs::read_dir(layout::BLOCK_VOLUMES)
        .into_iter()
        .flatten();
    for volume in volumes.flatten().map(|entry| entry.path()) {
        while let Err(error) = unmount(&volume, UnmountFlags::empty()) {
            if error != Errno::BUSY || Instant::now() > deadline {
                log::warn(&format!("{}: {error}", volume.display()));
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn reap_all() {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) => std::thread::sleep(Duration::from_millis(1)),
            Err(_) => return,
        }
    }
}
