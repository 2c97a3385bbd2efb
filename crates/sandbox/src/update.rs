//! Changing the limits of what runs.

use crate::Inner;
use crate::error::SandboxError;
use crate::record::{ContainerState, SandboxState};
use crate::registry::{ContainerEntry, Entry};
use crate::spec::ResourceSpec;
use crate::{cgroup, vm_plan};
use guest_api::proto::{UpdateContainerRequest, UpdateSandboxRequest, client_message::Call};
use std::sync::Arc;

/// Changes a container's limits; recorded once the guest has done it.
pub(crate) async fn container(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    item: &Arc<ContainerEntry>,
    limits: ResourceSpec,
) -> Result<(), SandboxError> {
    vm_plan::check_resources(&limits)?;
    // Not the operation's lock: a removal waits for no guest that is silent here.
    let _turn = item.updating.lock().await;
    if !matches!(
        item.state(),
        ContainerState::Created | ContainerState::Running
    ) {
        return Err(item.wrong_state("Created or Running"));
    }
    let call = Call::UpdateContainer(UpdateContainerRequest {
        container_id: item.id.clone(),
        resources: Some(vm_plan::resources(&limits)),
    });
    let live = entry.require_live()?;
    if item.record.read(|c| sinks(&c.spec.resources, &limits)) {
        cgroup::leave_parent(entry).await?;
    }
    let what = "change the container's limits";
    let limit = inner.config.timeouts.control;
    live.call_within(what, call, limit).await?;
    item.record.update(|c| c.spec.resources = limits).await
}

/// Changes the limits of all of a sandbox's containers together.
pub(crate) async fn sandbox(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    limits: ResourceSpec,
) -> Result<(), SandboxError> {
    vm_plan::check_resources(&limits)?;
    let _turn = entry.updating.lock().await;
    let live = entry.require_live()?;
    let state = entry.record.read(|s| s.state);
    if state != SandboxState::Ready {
        return Err(entry.wrong_state(state, "Ready"));
    }
    if entry.record.read(|s| sinks(&s.spec.resources, &limits)) {
        cgroup::leave_parent(entry).await?;
    }
    let call = Call::UpdateSandbox(UpdateSandboxRequest {
        resources: Some(vm_plan::resources(&limits)),
    });
    let what = "change the sandbox's limits";
    let limit = inner.config.timeouts.control;
    live.call_within(what, call, limit).await?;
    entry.record.update(|s| s.spec.resources = limits).await
}

/// Whether less memory is allowed than before; 0 is no limit.
fn sinks(before: &ResourceSpec, after: &ResourceSpec) -> bool {
    after.memory_max != 0 && (before.memory_max == 0 || after.memory_max < before.memory_max)
}
