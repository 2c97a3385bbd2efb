//! Starting a process in a container that runs: the agent's part up to the fork,
//! and the child's from there to its program.
//!
//! The child is made in the container's PID namespace and in the session's own
//! cgroup, so it never exists outside either; the container's other namespaces it
//! joins itself. Until it has become the program it is a copy of the agent within
//! reach of the container's processes: it has no descriptor but those it needs,
//! and may not be traced. One that copies files stays so to its end.

use super::copy;
use super::request::{Plan, Work};
use crate::cgroup::Cgroup;
use crate::container::handover::{Handover, Message};
use crate::container::init::{Program, start_program, take_rights};
use crate::container::stdio::{self, AgentStdio, ChildStdio};
use crate::container::user::Identity;
use crate::container::{Container, Phase};
use crate::error::{AgentError, Doing};
use crate::log;
use crate::sys::process;
use nix::sched::{CloneFlags, setns};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Pid, PidfdFlags, pidfd_open};
use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};

/// Names tried for a session's cgroup: a privileged container may have taken
/// some.
const NAMES: u64 = 64;

/// A process on its way to its program.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pid: Pid,
    /// The session's own.
    pub(crate) cgroup: Cgroup,
    /// Says how it went, and brings a terminal's master.
    pub(crate) handover: Handover,
    pub(crate) stdio: AgentStdio,
}

/// Starts what `plan` asks for. `number` makes names of cgroups.
pub(crate) fn start(
    plan: &Plan,
    container: &Container,
    number: &mut u64,
) -> Result<Started, AgentError> {
    let id = &plan.container_id;
    let (first, identity) = running(id, container)?;
    let target = pidfd_open(first, PidfdFlags::empty())
        .doing(|| format!("opening the first process of container {id}"))?;
    let (agent_stdio, child_stdio) = if plan.terminal {
        let child = ChildStdio::Terminal { console: false };
        (AgentStdio::default(), child)
    } else {
        stdio::create(false, plan.stdin).doing(|| "making the process's pipes".into())?
    };
    let (agent_end, child_end) =
        Handover::pair().doing(|| "making the channel to the process".into())?;
    let cgroup = make_cgroup(&container.cgroup, number)?;
    let made = cgroup.open().and_then(|fd| {
        let mut keep = child_stdio.fds();
        keep.extend([child_end.fd(), target.as_fd()]);
        keep.extend(container.users.fd());
        let child = || run(plan, container, identity, &child_stdio, &target, &child_end);
        in_pid_namespace(&target, || {
            process::fork_into(CloneFlags::empty(), Some(fd.as_fd()), &keep, child)
        })
        .map_err(|e| match e {
            // Its first process has no namespaces any more, or its PID namespace
            // takes no more processes.
            Errno::SRCH => not_running(id, "has just ended"),
            Errno::NOMEM if has_ended(first) => not_running(id, "has just ended"),
            source => AgentError::System {
                doing: format!("making a process in container {id}"),
                source,
                remedy: match source {
                    Errno::AGAIN => "raise the container's limit of processes (pids_max)",
                    _ => "",
                },
            },
        })
    });
    match made {
        Ok(pid) => Ok(Started {
            pid,
            cgroup,
            handover: agent_end,
            stdio: agent_stdio,
        }),
        Err(e) => {
            // Nothing was made in it.
            let _ = cgroup.remove();
            Err(e)
        }
    }
}

fn not_running(id: &str, state: &str) -> AgentError {
    AgentError::Precondition {
        problem: format!("container {id} is not running: it {state}"),
        remedy: "",
    }
}

/// The first process of a running container and who it runs as.
fn running<'a>(id: &str, container: &'a Container) -> Result<(Pid, &'a Identity), AgentError> {
    let state = match (&container.phase, container.pid, &container.identity) {
        (Phase::Running, Some(pid), Some(identity)) => return Ok((pid, identity)),
        (Phase::Creating(_), ..) => "is being created",
        (Phase::Created, ..) => "was created but not started",
        (Phase::Starting(_), ..) => "is being started",
        (Phase::Running | Phase::Exited(_), ..) => "has ended",
    };
    Err(not_running(id, state))
}

fn has_ended(first: Pid) -> bool {
    let path = format!("/proc/{}/ns/pid", first.as_raw_nonzero());
    rustix::fs::readlink(path, Vec::new()).is_err()
}

fn make_cgroup(container: &Cgroup, number: &mut u64) -> Result<Cgroup, AgentError> {
    let mut result = Err(Errno::EXIST);
    for _ in 0..NAMES {
        *number += 1;
        result = container.create_below(&format!("exec-{number}"));
        if !matches!(result, Err(Errno::EXIST)) {
            break;
        }
    }
    result.doing(|| "making a cgroup for the process".into())
}

/// Runs `fork` so that the process it makes is in the PID namespace of `target`.
fn in_pid_namespace<T>(
    target: &OwnedFd,
    fork: impl FnOnce() -> Result<T, Errno>,
) -> Result<T, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let own = rustix::fs::open("/proc/self/ns/pid", flags, Mode::empty())?;
    // Only children go there; the agent itself stays where it is.
    setns(target, CloneFlags::CLONE_NEWPID).map_err(to_errno)?;
    let result = fork();
    for _ in 0..1000 {
        if setns(&own, CloneFlags::CLONE_NEWPID).is_ok() {
            return result;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    // The next container would be made inside this one.
    log::fatal("cannot return to the agent's PID namespace");
    process::exit_now(1)
}

fn to_errno(e: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(e as i32)
}

/// Runs in the child; returns its exit code, where it did not become the program.
fn run(
    plan: &Plan,
    container: &Container,
    identity: &Identity,
    stdio: &ChildStdio,
    target: &OwnedFd,
    agent: &Handover,
) -> i32 {
    let Err(error) = become_program(plan, container, identity, stdio, target, agent);
    let mut answer = error.into_wire();
    // Fields are named as in the container's request.
    if let Some(field) = answer.field.strip_prefix("process.") {
        answer.field = field.to_owned();
    }
    // Nobody to tell is nothing to do about.
    let _ = agent.send(&Message::Failed(answer), None);
    1
}

fn become_program(
    plan: &Plan,
    container: &Container,
    identity: &Identity,
    stdio: &ChildStdio,
    target: &OwnedFd,
    agent: &Handover,
) -> Result<Infallible, AgentError> {
    let (checked, users) = (&*container.checked, &*container.users);
    let uid = users.of(identity)?.0;
    // The exec ends this.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .doing(|| "forbidding to trace the process".into())?;
    rustix::process::setsid().doing(|| "making a session".into())?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // By the agent's /proc: the container's may be covered by a volume.
    let adjustment = checked.process.oom_score_adj.to_string();
    std::fs::write("/proc/self/oom_score_adj", adjustment)
        .doing(|| "setting the OOM score adjustment".into())?;
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWCGROUP
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWNET;
    setns(target, namespaces).map_err(|e| match to_errno(e) {
        Errno::SRCH => not_running(&plan.container_id, "has just ended"),
        source => AgentError::System {
            doing: format!("joining the namespaces of container {}", plan.container_id),
            source,
            remedy: "",
        },
    })?;
    let cwd = plan.cwd.as_ref().unwrap_or(&checked.process.cwd);
    let cwd = if cwd.is_empty() { "/" } else { cwd };
    rustix::process::chdir(cwd).map_err(|e| {
        AgentError::invalid("cwd", format!("entering the working directory {cwd}: {e}"))
    })?;
    let master = stdio::install(stdio, uid).doing(|| "setting up stdio".into())?;
    if let Some(master) = &master {
        if let Some(size) = plan.size {
            rustix::termios::tcsetwinsize(master, size)
                .doing(|| "setting the terminal's size".into())?;
        }
        let ready = Message::Ready(identity.clone());
        agent
            .send(&ready, Some(master.as_fd()))
            .doing(|| "telling the agent".into())?;
    }
    drop(master);
    let args = match &plan.work {
        Work::Program(args) => args,
        Work::Copy(files) => {
            take_rights(checked, identity, || users.enter())?;
            checked
                .capabilities
                .settle(identity.uid == 0)
                .doing(|| "dropping capabilities".into())?;
            process::reset_signals();
            agent.done();
            process::exit_now(copy::run(files));
        }
    };
    let program = Program {
        args,
        env: &plan.env,
        terminal: plan.terminal,
    };
    start_program(checked, identity, &program, || users.enter())
}
