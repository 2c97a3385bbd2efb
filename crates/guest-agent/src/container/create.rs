//! CreateContainer: everything that the agent itself prepares, then the fork.

use super::handover::Handover;
use super::mounts::{Source, Wanted};
use super::removal::Leftovers;
use super::request::{Checked, Pids};
use super::rootfs::Sources;
use super::{Caller, Container, Phase, devices, init, layer, stdio};
use crate::cgroup::Cgroup;
use crate::disks::{Disks, Extent};
use crate::error::{AgentError, Doing};
use crate::layout;
use crate::pid_namespace::PidNamespace;
use crate::sandbox::Sandbox;
use crate::stream::Slots;
use crate::sys::process;
use guest_api::proto::Device;
use nix::sched::CloneFlags;
use rustix::io::Errno;
use rustix::process::Pid;
use std::collections::BTreeMap;
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
    others: &BTreeMap<String, Container>,
    disks: &mut Disks,
    caller: Caller,
) -> Result<Container, Box<FailedCreate>> {
    let pids = pid_namespace(&checked.pids, sandbox, others)?;
    let mut leftovers = Leftovers::default();
    prepare(checked, sandbox, &pids, disks, caller, &mut leftovers)
        .map_err(|error| Box::new(FailedCreate { error, leftovers }))
}

fn prepare(
    checked: &Rc<Checked>,
    sandbox: &Sandbox,
    pids: &Joined,
    disks: &mut Disks,
    caller: Caller,
    leftovers: &mut Leftovers,
) -> Result<Container, AgentError> {
    let id = &checked.request.container_id;
    let resources = checked.request.resources.clone().unwrap_or_default();
    let cgroup = leftovers.cgroup.insert(Cgroup::create(id, &resources)?);
    let cgroup_fd = cgroup.open()?;
    let devices = find_devices(checked, sandbox)?;
    if !checked.request.privileged {
        devices::forbid_writing(&devices, cgroup_fd.as_fd())?;
    }
    let image = disks.use_image(&checked.image)?;
    leftovers.images.push(checked.image.clone());
    let mounts = find_mounts(checked, sandbox, disks, &mut leftovers.images)?;
    let layer = format!("{}/{id}", layout::LAYERS);
    leftovers.layer = Some(layer.clone());
    layer::create(
        &layer,
        &image,
        &sandbox.users,
        checked.request.writable_layer_max,
    )?;
    let sources = Sources {
        image,
        layer: layer.clone(),
        users: Rc::clone(&sandbox.users),
        mounts,
        devices,
        hosts: sandbox.has_hosts(),
        resolv_conf: sandbox.has_resolv_conf(),
    };
    let (terminal, with_stdin) = (checked.process.terminal, checked.process.stdin);
    let (agent_stdio, child_stdio) =
        stdio::create(terminal, with_stdin).doing(|| "making the container's pipes".into())?;
    let (agent_end, child_end) =
        Handover::pair().doing(|| "making the channel to the container".into())?;
    let pid = fork(
        pids,
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
    let images = std::mem::take(&mut leftovers.images);
    *leftovers = Leftovers::default();
    Ok(Container {
        phase: Phase::Creating(caller),
        checked: Rc::clone(checked),
        identity: None,
        users: sources.users,
        pid: Some(pid),
        host_pid: pid.as_raw_nonzero().get().cast_unsigned(),
        started_at_ns: 0,
        handover: Some((agent_end, 0)),
        streams: Slots::new(agent_stdio.stdin, agent_stdio.stdout, agent_stdio.stderr),
        terminal,
        master: None,
        with_stdin,
        cgroup,
        images,
        layer,
        shares_pids: !matches!(pids, Joined::Own),
    })
}

/// The PID namespace that the container's first process is made in.
enum Joined {
    Own,
    Pod(Rc<PidNamespace>),
    Target(PidNamespace),
}

fn pid_namespace(
    wanted: &Pids,
    sandbox: &Sandbox,
    others: &BTreeMap<String, Container>,
) -> Result<Joined, AgentError> {
    let target = match wanted {
        Pids::Own => return Ok(Joined::Own),
        Pids::Default if !sandbox.shares_pids() => return Ok(Joined::Own),
        Pids::Default | Pids::Pod => return sandbox.pid_namespace().map(Joined::Pod),
        Pids::Target(id) => id,
    };
    let problem = match others.get(target) {
        None => "does not exist",
        Some(Container {
            phase: Phase::Running,
            pid: Some(pid),
            ..
        }) => return PidNamespace::of(*pid).map(Joined::Target),
        Some(_) => "is not running",
    };
    Err(AgentError::Precondition {
        problem: format!(
            "container {target}, whose PID namespace was to be joined (pid_namespace.target), {problem}"
        ),
        remedy: "name a running container of the same pod",
    })
}

/// Where each mount's content is. Images are mounted; each use of one goes to
/// `images`.
fn find_mounts(
    checked: &Checked,
    sandbox: &Sandbox,
    disks: &mut Disks,
    images: &mut Vec<Extent>,
) -> Result<Vec<Source>, AgentError> {
    let mounts = checked.request.mounts.iter().zip(&checked.mounts);
    let mut sources = Vec::with_capacity(checked.mounts.len());
    for (i, (mount, wanted)) in mounts.enumerate() {
        sources.push(match wanted {
            Wanted::Volume => match find_volume(sandbox, &mount.volume) {
                Some(source) => source,
                None => {
                    let problem = format!("the sandbox has no volume \"{}\"", mount.volume);
                    return Err(AgentError::invalid(format!("mounts[{i}].volume"), problem));
                }
            },
            Wanted::Image(extent) => {
                let mount_point = disks.use_image(extent)?;
                images.push(extent.clone());
                Source::Image(mount_point)
            }
            Wanted::Share if sandbox.has_shares() => Source::Share,
            Wanted::Share => {
                let problem = "the sandbox was set up without a device for shares";
                return Err(AgentError::invalid(format!("mounts[{i}].share"), problem));
            }
        });
    }
    Ok(sources)
}

fn find_volume(sandbox: &Sandbox, name: &str) -> Option<Source> {
    let directory = sandbox.volumes.get(name).cloned().map(Source::Volume);
    directory.or_else(|| sandbox.block_volumes.directory(name).map(Source::Disk))
}

/// The requested devices, those of block volumes by the nodes that these have.
fn find_devices(checked: &Checked, sandbox: &Sandbox) -> Result<Vec<Device>, AgentError> {
    let devices = checked.request.devices.iter().enumerate();
    let find = |(i, device): (usize, &Device)| {
        let mut device = device.clone();
        if device.volume.is_empty() {
            return Ok(device);
        }
        let Some((path, read_only)) = sandbox.block_volumes.device(&device.volume) else {
            let problem = format!("the sandbox has no block device \"{}\"", device.volume);
            return Err(AgentError::invalid(format!("devices[{i}].volume"), problem));
        };
        device.path = path;
        device.read_only |= read_only;
        Ok(device)
    };
    devices.map(find).collect()
}

fn fork(
    pids: &Joined,
    cgroup: BorrowedFd<'_>,
    checked: &Checked,
    sources: &Sources,
    stdio: &stdio::ChildStdio,
    agent: &Handover,
) -> Result<Pid, Errno> {
    let mut keep = stdio.fds();
    keep.push(agent.fd());
    keep.extend(sources.users.fd());
    let child = || init::run(checked, sources, stdio, agent);
    let inside = |namespace: &PidNamespace| {
        namespace.inside(|| process::fork_into(CloneFlags::CLONE_NEWNS, Some(cgroup), &keep, child))
    };
    match pids {
        Joined::Pod(namespace) => inside(namespace),
        Joined::Target(namespace) => inside(namespace),
        Joined::Own => {
            let flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID;
            process::fork_into(flags, Some(cgroup), &keep, child)
        }
    }
}
