//! Plugins that were running when the daemon was killed.
//!
//! They run on by themselves, and an ADD that ends after the DEL of the daemon's
//! next start would leave behind what DEL took away. They are known by the
//! environment that they were started with, which no pod can choose.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// How long a killed process is waited for.
const DEATH: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

/// A plugin of an earlier run of the daemon could not be ended.
#[derive(Debug, thiserror::Error)]
#[error("cannot end CNI plugin process {pid}, left by an earlier run for sandbox {sandbox}")]
pub struct LeftoverError {
    pid: i32,
    sandbox: String,
    #[source]
    source: io::Error,
}

/// Kills the plugins (and what they started) that work for this sandbox, and
/// waits for their end.
pub(crate) fn end_plugins(sandbox: &str, netns: &Path) -> Result<(), LeftoverError> {
    let marks = [
        format!("CNI_CONTAINERID={sandbox}").into_bytes(),
        format!("CNI_NETNS={}", netns.display()).into_bytes(),
    ];
    // A process may start another between our looking and its death.
    for _ in 0..16 {
        let found: Vec<(i32, OwnedFd)> = processes()
            .filter_map(|pid| Some((pid, identify(pid, &marks)?)))
            .collect();
        if found.is_empty() {
            return Ok(());
        }
        for (pid, pidfd) in found {
            tracing::warn!(pid, sandbox, "ending a CNI plugin of an earlier run");
            end(&pidfd).map_err(|source| LeftoverError {
                pid,
                sandbox: sandbox.to_owned(),
                source,
            })?;
        }
    }
    Ok(())
}

fn processes() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// A descriptor of the process, if it bears all marks. The descriptor comes
/// first: the number may be another process's by the time of the second look.
fn identify(pid: i32, marks: &[Vec<u8>]) -> Option<OwnedFd> {
    let bears = || {
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let all = marks
            .iter()
            .all(|mark| environment.split(|b| *b == 0).any(|v| v == mark.as_slice()));
        all.then_some(())
    };
    bears()?;
    let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    bears()?;
    Some(pidfd)
}

fn end(pidfd: &OwnedFd) -> io::Result<()> {
    match pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(e) => return Err(e.into()),
    }
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    loop {
        match poll(&mut fds, Some(&DEATH)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}
