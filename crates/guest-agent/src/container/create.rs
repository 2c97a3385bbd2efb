//! CreateContainer: everything that the agent itself prepares, then the fork.

use super::handover::Handover;
use super::removal::Leftovers;
use super::request::Checked;
use super::rootfs::Sources;
use super::{Caller, Container, Phase, init, layer, stdio};
use crate::cgroup::Cgroup;
use crate::disks::Disks;
use crate::error::{AgentError, Doing};
use crate::layout;
use crate::sandbox::Sandbox;
use crate::stream::Slots;
use crate::sys::process;
use nix::sched::CloneFlags;
use rustix::io::Errno;
use rustix::process::Pid;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

/// Why a container was not made, and what is to be removed of it.
#[derive(Debug)]
pub(crate) struct FailedCreate {
    pub(crate) error: AgentError,
    pub(crate) leftovers: Leftovers,
}

impl From<AgentError> for Box<FailedCreate> {
    /// Of a failure before anything was made.
    fn from(error: AgentError) -> Self {
        let leftovers = Leftovers::default();
        Box::new(FailedCreate { error, leftovers })
    }
}

/// Makes the container; its first process then says when it is ready. After a
/// failure, what was made until then comes back to be removed.
pub(crate) fn create(
    checked: &Rc<Checked>,
    sandbox: &Sandbox,
    disks: &mut Disks,
    caller: Caller,
) -> Result<Container, Box<FailedCreate>> {
    let mut leftovers = Leftovers::default();
    prepare(checked, sandbox, disks, caller, &mut leftovers)
        .map_err(|error| Box::new(FailedCreate { error, leftovers }))
}

fn prepare(
    checked: &Rc<Checked>,
    sandbox: &Sandbox,
    disks: &mut Disks,
    caller: Caller,
    leftovers: &mut Leftovers,
) -> Result<Container, AgentError> {
    let id = &checked.request.container_id;
    let volumes = volume_paths(checked, sandbox)?;
    let resources = checked.request.resources.clone().unwrap_or_default();
    let cgroup = leftovers.cgroup.insert(Cgroup::create(id, &resources)?);
    let cgroup_fd = cgroup.open()?;
    let image = disks.use_image(&checked.image)?;
    leftovers.image = Some(checked.image.clone());
    let layer = format!("{}/{id}", layout::LAYERS);
    leftovers.layer = Some(layer.clone());
    layer::create(&layer, &image)?;
    let sources = Sources {
        image,
        layer: layer.clone(),
        volumes,
        hosts: sandbox.has_hosts(),
        resolv_conf: sandbox.has_resolv_conf(),
    };
    let (terminal, with_stdin) = (checked.process.terminal, checked.process.stdin);
    let (agent_stdio, child_stdio) =
        stdio::create(terminal, with_stdin).doing(|| "making the container's pipes".into())?;
    let (agent_end, child_end) =
        Handover::pair().doing(|| "making the channel to the container".into())?;
    let pid = fork(
        sandbox,
        cgroup_fd.as_fd(),
        checked,
        &sources,
        &child_stdio,
        &child_end,
    )
    .doing(|| "making the container's first process".into())?;
    let Some(cgroup) = leftovers.cgroup.take() else {
        return Err(AgentError::invalid("container_id", "lost its cgroup"));
    };
    *leftovers = Leftovers::default();
    Ok(Container {
        phase: Phase::Creating(caller),
        checked: Rc::clone(checked),
        identity: None,
        pid: Some(pid),
        host_pid: pid.as_raw_nonzero().get().cast_unsigned(),
        started_at_ns: 0,
        handover: Some((agent_end, 0)),
        streams: Slots::new(agent_stdio.stdin, agent_stdio.stdout, agent_stdio.stderr),
        terminal,
        with_stdin,
        cgroup,
        image: checked.image.clone(),
        layer,
        shares_pids: sandbox.pid_namespace.is_some(),
    })
}

fn volume_paths(checked: &Checked, sandbox: &Sandbox) -> Result<Vec<String>, AgentError> {
    let find = |(i, mount): (usize, &guest_api::proto::Mount)| {
        sandbox.volumes.get(&mount.volume).cloned().ok_or_else(|| {
            AgentError::invalid(
                format!("mounts[{i}].volume"),
                format!("the sandbox has no volume \"{}\"", mount.volume),
            )
        })
    };
    checked
        .request
        .mounts
        .iter()
        .enumerate()
        .map(find)
        .collect()
}

fn fork(
    sandbox: &Sandbox,
    cgroup: BorrowedFd<'_>,
    checked: &Checked,
    sources: &Sources,
    stdio: &stdio::ChildStdio,
    agent: &Handover,
) -> Result<Pid, Errno> {
    let mut keep = stdio.fds();
    keep.push(agent.fd());
    let child = || init::run(checked, sources, stdio, agent);
    match &sandbox.pid_namespace {
        Some(shared) => shared
            .inside(|| process::fork_into(CloneFlags::CLONE_NEWNS, Some(cgroup), &keep, child)),
        None => {
            let flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID;
            process::fork_into(flags, Some(cgroup), &keep, child)
        }
    }
}
