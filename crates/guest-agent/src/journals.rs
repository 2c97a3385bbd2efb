//! Keeps the journals of emptyDirs' disks small.
//!
//! What a disk takes of the host counts as use of its volume, and a journal that was
//! written to its end once takes all of its 4 MiB for ever. So a process of the agent
//! has each one written back and discarded now and then: the work waits for a disk,
//! which the agent itself must not.

use crate::block_volumes::tops_of_directories;
use crate::error::{AgentError, Doing};
use crate::sys::{block, process};
use nix::sched::CloneFlags;
use rustix::fs::{Mode, OFlags, fstat, major, minor};
use std::collections::BTreeMap;
use std::time::Duration;

/// A kubelet looks about once a minute.
const PAUSE: Duration = Duration::from_secs(15);

/// Starts the process, which ends with the guest.
pub(crate) fn keep_small() -> Result<(), AgentError> {
    process::fork_into(CloneFlags::empty(), None, &[], keep)
        .map(drop)
        .doing(|| "starting the keeper of journals".into())
}

fn keep() -> i32 {
    process::reset_signals();
    let _ = rustix::thread::set_name(c"journals");
    // What was written to each, when it was last looked at.
    let mut seen = BTreeMap::new();
    loop {
        std::thread::sleep(PAUSE);
        for top in tops_of_directories() {
            shrink(&top, &mut seen);
        }
    }
}

/// Whatever fails is tried again: the volume may be about to go.
fn shrink(top: &str, seen: &mut BTreeMap<String, String>) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(dir) = rustix::fs::open(top, flags, Mode::empty()) else {
        return;
    };
    let Some(written) = fstat(&dir).ok().and_then(|stat| written(stat.st_dev)) else {
        return;
    };
    if seen.get(top) != Some(&written) && block::discard_journal(&dir).is_ok() {
        seen.insert(top.to_owned(), written);
    }
}

/// How much was written to a mounted file system, as text.
fn written(device: u64) -> Option<String> {
    let node = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    let node = std::fs::read_link(node).ok()?;
    let name = node.file_name()?.to_str()?;
    std::fs::read_to_string(format!("/sys/fs/ext4/{name}/session_write_kbytes")).ok()
}
