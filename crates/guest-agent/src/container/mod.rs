//! One container: its state machine and what belongs to it.
//!
//! ```text
//! Creating --ready--> Created --start--> Starting --exec--> Running
//!     |                  |                  |                  |
//!   failed             ended              failed             ended
//!     v                  v                  v                  v
//! (removed)            Exited             Exited             Exited
//! ```

mod caps;
mod create;
mod devices;
pub(crate) mod handover;
mod hidden;
mod image_volumes;
pub(crate) mod init;
mod layer;
mod mounts;
#[cfg(test)]
mod on_host;
mod removal;
pub(crate) mod request;
mod rights;
mod rootfs;
pub(crate) mod stdio;
pub(crate) mod user;

pub(crate) use create::{FailedCreate, create};
pub(crate) use removal::{Progress, Removal};
pub(crate) use stdio::of_terminal as stdio_of_terminal;

use crate::cgroup::Cgroup;
use crate::disks::Extent;
use crate::stream::Slots;
use crate::users::Users;
use guest_api::proto::container_state::Phase as WirePhase;
use guest_api::proto::{ContainerState, ExitStatus};
use handover::Handover;
use request::Checked;
use rustix::process::{Pid, WaitStatus};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use user::Identity;

/// Whom to answer: a control connection and the id of its call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) connection: u64,
    pub(crate) call: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Its first process builds it.
    Creating(Caller),
    /// Its first process waits.
    Created,
    /// Its first process is on its way to the exec.
    Starting(Caller),
    Running,
    /// `None` until the process is reaped: its start failed.
    Exited(Option<ExitStatus>),
}

/// The exit code of a container whose program could not be started.
const START_FAILED: u32 = 128;

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) phase: Phase,
    /// What it was made from; processes executed in it later are made alike.
    pub(crate) checked: Rc<Checked>,
    /// Who its processes run as, as its image said when it was made: what the
    /// container writes to its /etc/passwd later makes nobody root.
    pub(crate) identity: Option<Rc<Identity>>,
    pub(crate) users: Rc<Users>,
    /// The first process, until it is reaped.
    pub(crate) pid: Option<Pid>,
    /// As told to the host; stays when the process is gone.
    pub(crate) host_pid: u32,
    pub(crate) started_at_ns: u64,
    /// Until exec, and where it waits in the event loop.
    pub(crate) handover: Option<(Handover, u64)>,
    pub(crate) streams: Slots,
    pub(crate) terminal: bool,
    /// A terminal's master, while its first process lives.
    pub(crate) master: Option<OwnedFd>,
    pub(crate) with_stdin: bool,
    pub(crate) cgroup: Cgroup,
    /// One for each use: its root's and those of its mounts.
    pub(crate) images: Vec<Extent>,
    /// Directory of its writable layer.
    pub(crate) layer: String,
    /// Its PID namespace is not its own, so its processes outlive its first.
    pub(crate) shares_pids: bool,
}

impl Container {
    /// As the wire tells it.
    pub(crate) fn state(&self, id: &str) -> ContainerState {
        let (phase, exit) = match &self.phase {
            Phase::Creating(_) => (WirePhase::Unspecified, None),
            Phase::Created | Phase::Starting(_) => (WirePhase::Created, None),
            Phase::Running => (WirePhase::Running, None),
            Phase::Exited(exit) => (WirePhase::Exited, *exit),
        };
        ContainerState {
            container_id: id.to_owned(),
            phase: phase.into(),
            pid: self.host_pid,
            started_at_ns: self.started_at_ns,
            exit,
        }
    }

    /// No process can write to its pipes any more, so what is in them is all.
    pub(crate) fn output_is_final(&self) -> bool {
        self.pid.is_none() && !self.shares_pids
    }
}

/// What a wait status means; `oom_killed` comes from the cgroup.
pub(crate) fn exit_status(status: WaitStatus, oom_killed: bool, finished_at_ns: u64) -> ExitStatus {
    let signal = status
        .terminating_signal()
        .and_then(|s| u32::try_from(s).ok())
        .unwrap_or(0);
    let code = match status.exit_status() {
        Some(code) => u32::try_from(code & 0xff).unwrap_or(0),
        None => 128 + signal,
    };
    ExitStatus {
        code,
        signal,
        oom_killed,
        finished_at_ns,
    }
}

/// The exit of a container whose program could not be started.
pub(crate) fn start_failed(finished_at_ns: u64) -> ExitStatus {
    ExitStatus {
        code: START_FAILED,
        signal: 0,
        oom_killed: false,
        finished_at_ns,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[expect(clippy::zombie_processes, reason = "reaped by waitpid")]
    fn status_of(script: &str) -> WaitStatus {
        let child = Command::new("/bin/sh")
            .args(["-c", script])
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        let waited = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        waited.unwrap().unwrap().1
    }

    #[test]
    fn an_exit_code_is_told_from_a_signal() {
        let exited = exit_status(status_of("exit 7"), false, 5);
        assert_eq!(
            (exited.code, exited.signal, exited.finished_at_ns),
            (7, 0, 5)
        );
        let killed = exit_status(status_of("kill -9 $$"), true, 5);
        assert_eq!(
            (killed.code, killed.signal, killed.oom_killed),
            (137, 9, true)
        );
    }
}
