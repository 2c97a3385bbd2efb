//! The cgroup of a sandbox's VMM on the host. A caller may name one that it keeps
//! for the pod (the kubelet's, with the pod's share and limits); the VMM is in it
//! where the whole VM fits, and otherwise in a group of our own: beyond a limit of
//! memory the host's kernel would kill the VM for what its containers may use.

use crate::error::{SandboxError, chain};
use crate::record::Sandbox;
use crate::registry::Entry;
use crate::spec::{Engine, SandboxSpec};
use rustix::process::{Pid, Signal, kill_process};
use std::time::Duration;
use vm_launcher::Cgroup;

/// Where our own groups lie in each hierarchy, and the beginning of the names of
/// those that lie elsewhere.
const OURS: &str = "spherule";
/// Pause between two attempts to remove one.
const RETRY: Duration = Duration::from_millis(10);
const MIB: u64 = 1 << 20;

/// Most memory in MiB that an engine takes besides the guest's own.
pub fn vmm_memory_mib(engine: Engine) -> u64 {
    match engine {
        Engine::Kvm => 32,
        // Its translations of the guest's code, too.
        Engine::Qemu => 256,
    }
}

/// Most memory in MiB that a cgroup lets its members take, `None` without a limit.
/// Blocks for a moment.
pub fn memory_limit_mib(cgroup: &str) -> Option<u64> {
    Some(named(cgroup)?.memory_limit_bytes()? / MIB)
}

/// Whether a VM can be in the group that its caller names, where it names one. Blocks
/// for a moment.
pub(crate) fn fits_parent(spec: &SandboxSpec, engine: Engine) -> bool {
    let parent = spec.cgroup_parent.as_str();
    let needed = spec.memory_mib.saturating_add(vmm_memory_mib(engine));
    let limit = memory_limit_mib(parent).unwrap_or(u64::MAX);
    let exists = named(parent).is_some_and(|group| group.exists());
    let fits = exists && needed <= limit;
    if !fits {
        tracing::info!(
            sandbox = spec.id,
            parent,
            exists,
            limit,
            needed,
            "the VM runs in a cgroup of its own (MiB; a pod overhead makes room for it)"
        );
    }
    fits
}

/// The VMM's group, where the host has any.
pub(crate) fn of(sandbox: &Sandbox) -> Option<Cgroup> {
    if sandbox.in_cgroup_parent {
        inside(&sandbox.spec)
    } else {
        own(&sandbox.spec)
    }
}

/// Takes the VM out of its caller's group: before a limit of its containers sinks,
/// as the group's will, and no VM gives memory back.
pub(crate) async fn leave_parent(entry: &Entry) -> Result<(), SandboxError> {
    let (inside, spec) = entry.record.read(|s| (s.in_cgroup_parent, s.spec.clone()));
    if !inside {
        return Ok(());
    }
    crate::blocking(&entry.id, move || move_out(&spec)).await?;
    entry.record.update(|s| s.in_cgroup_parent = false).await
}

fn move_out(spec: &SandboxSpec) {
    let (Some(from), Some(to)) = (inside(spec), own(spec)) else {
        return;
    };
    for pid in members(&from) {
        if let Err(error) = to.add(pid.as_raw_pid().unsigned_abs()) {
            tracing::warn!(
                sandbox = spec.id,
                error = chain(&error),
                "the VM could not be moved to a cgroup of its own"
            );
        }
    }
}

/// Removes the groups of a VMM that has ended, and ends what is left in them: the
/// engine's child dies with the VMM, but a moment later.
pub(crate) async fn remove(spec: &SandboxSpec, limit: Duration) {
    let deadline = tokio::time::Instant::now() + limit;
    for group in [own(spec), inside(spec)].into_iter().flatten() {
        while let Err(error) = group.remove() {
            if tokio::time::Instant::now() > deadline {
                tracing::warn!(
                    sandbox = spec.id,
                    error = chain(&error),
                    "the cgroup of its VMM stays"
                );
                break;
            }
            for pid in members(&group) {
                let _ = kill_process(pid, Signal::KILL);
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

fn own(spec: &SandboxSpec) -> Option<Cgroup> {
    named(&format!("{OURS}/{}", spec.id))
}

fn inside(spec: &SandboxSpec) -> Option<Cgroup> {
    if spec.cgroup_parent.is_empty() {
        return None;
    }
    Cgroup::inside(&spec.cgroup_parent, &format!("{OURS}-{}", spec.id)).ok()
}

fn named(name: &str) -> Option<Cgroup> {
    Cgroup::named(name)
        .inspect_err(|error| tracing::debug!(%error, "no cgroup for a VMM"))
        .ok()
}

/// The processes of a group.
fn members(group: &Cgroup) -> Vec<Pid> {
    let mut pids: Vec<i32> = group
        .dirs()
        .iter()
        .filter_map(|dir| std::fs::read_to_string(dir.join("cgroup.procs")).ok())
        .flat_map(|text| {
            text.lines()
                .filter_map(|l| l.parse().ok())
                .collect::<Vec<_>>()
        })
        // 0 is a process of another PID namespace, and would mean our own group.
        .filter(|pid| *pid > 1)
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids.into_iter().filter_map(Pid::from_raw).collect()
}
