//! What the sandbox crate says, into the pod's record: pure.

use crate::record::{PodRecord, Stage};
use crate::state::{self, Ended, Role, Rules, Slot, VM_DIED};
use sandbox::{Container, ContainerState, Sandbox};

/// A ready sandbox.
pub(crate) fn sandbox(record: &mut PodRecord, sandbox: &Sandbox) {
    let pod = &mut record.pod;
    if pod.started_at_ns == 0 {
        pod.started_at_ns = sandbox.ready_at_ns;
        pod.stages.clone_from(&sandbox.stages);
        if pod.reason == VM_DIED || pod.reason == "FailedCreatePodSandBox" {
            pod.reason.clear();
            pod.message.clear();
        }
    }
    pod.engine = Some(sandbox.engine);
    pod.pod_ips.clone_from(&sandbox.pod_ips);
    if let Some(vm) = &mut pod.vm {
        vm.vmm_pid = sandbox.vmm_pid().unwrap_or(0);
    }
}

/// The containers of the sandbox. Returns the ids of those that have ended and
/// are recorded as such: they can go.
pub(crate) fn containers(
    record: &mut PodRecord,
    rules: &Rules,
    containers: &[Container],
) -> Vec<String> {
    for slot in record.slots() {
        let status = record.status(slot);
        let (name, current) = (status.name.clone(), status.instances);
        if status.instances == status.ended {
            continue;
        }
        let instance = containers
            .iter()
            .find(|c| c.spec.name == name && c.spec.attempt + 1 == current);
        if let Some(container) = instance {
            one(record, rules, slot, container);
        }
    }
    let recorded = |container: &&Container| {
        container.state == ContainerState::Exited
            && record.slots().into_iter().any(|slot| {
                let status = record.status(slot);
                status.name == container.spec.name && container.spec.attempt < status.ended
            })
    };
    containers
        .iter()
        .filter(recorded)
        .map(|c| c.id.clone())
        .collect()
}

/// The newest instance of one container.
fn one(record: &mut PodRecord, rules: &Rules, slot: Slot, container: &Container) {
    let has_run = matches!(
        container.state,
        ContainerState::Running | ContainerState::Exited
    );
    // Those of an ephemeral container are no part of the pod's start.
    if has_run && slot.role != Role::Ephemeral {
        add_stages(record, container);
    }
    let status = record.status_mut(slot);
    status.id.clone_from(&container.id);
    // One that is half made has none yet; an ephemeral container is started by it.
    if !container.image_id.is_empty() {
        status.image_id.clone_from(&container.image_id);
    }
    match (&container.state, &container.exit) {
        (ContainerState::Running, _) if status.state != crate::record::ContainerState::Running => {
            state::started(status, container.started_at_ns);
        }
        (ContainerState::Exited, Some(exit)) => {
            status.started_at_ns = container.started_at_ns;
            let reason = match exit {
                exit if exit.lost.is_some() => VM_DIED,
                exit if exit.oom_killed => "OOMKilled",
                exit if exit.code == 0 => "Completed",
                _ => "Error",
            };
            let message = exit.lost.clone().or_else(|| {
                let error = exit.log_error.as_ref()?;
                Some(format!("its log is not complete: {error}"))
            });
            let how = Ended {
                code: exit.code,
                signal: exit.signal,
                reason,
                message: message.unwrap_or_default(),
                finished_at_ns: exit.finished_at_ns,
            };
            state::ended(status, slot, rules, how);
        }
        _ => {}
    }
}

/// The stages of a container's first start.
fn add_stages(record: &mut PodRecord, container: &Container) {
    let prefix = format!("{}: ", container.spec.name);
    let stages = &mut record.pod.stages;
    if stages.iter().any(|stage| stage.name.starts_with(&prefix)) {
        return;
    }
    stages.extend(container.stages.iter().map(|stage| Stage {
        name: format!("{prefix}{}", stage.name),
        ..stage.clone()
    }));
}
