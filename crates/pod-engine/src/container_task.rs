//! Starting one container of a pod: its image, its configuration, its making,
//! its start. Every step can be repeated: an instance that an earlier round
//! began is gone on with.

use crate::engine::now_ns;
use crate::error::{EngineError, chain};
use crate::images::{self, Missing, Resolved};
use crate::manifest::Container;
use crate::plan;
use crate::pod_task::Task;
use crate::state::{self, CODE_NOT_STARTED, Ended, Slot};
use sandbox::{ContainerState, SandboxError};
use std::collections::HashMap;
use tokio::task::JoinHandle;

/// Images that are fetched while the VM boots, by their name.
pub(crate) type Prefetched = HashMap<String, JoinHandle<Result<Resolved, Missing>>>;

/// Begins to fetch the images of containers that are yet to start.
pub(crate) fn prefetch(task: &Task, images: &mut Prefetched) {
    for (_, container) in task.entry.manifest.all_containers() {
        if images.contains_key(&container.image) {
            continue;
        }
        let store = task.inner.images.clone();
        let name = container.image.clone();
        let policy = images::policy(container.image_pull_policy, &name);
        let fetch = tokio::spawn(async move { images::resolve(&store, &name, policy).await });
        images.insert(container.image.clone(), fetch);
    }
}

fn manifest_of(task: &Task, slot: Slot) -> &Container {
    let spec = &task.entry.manifest.spec;
    if slot.init {
        &spec.init_containers[slot.index]
    } else {
        &spec.containers[slot.index]
    }
}

/// Starts the container, or records why it did not start.
pub(crate) async fn start(
    task: &Task,
    slot: Slot,
    sandbox_id: &str,
    images: &mut Prefetched,
) -> Result<(), EngineError> {
    let wanted = manifest_of(task, slot);
    // Recorded before anything of the instance is made.
    let attempt = task.update(|record| {
        let status = record.status_mut(slot);
        state::begin(status);
        status.instances - 1
    })?;
    let image = match fetch(task, wanted, images).await {
        Ok(image) => image,
        Err(missing) => {
            tracing::info!(
                pod = task.entry.id,
                container = wanted.name,
                missing.reason,
                missing.message
            );
            return task.update(|record| {
                let now = now_ns();
                let status = record.status_mut(slot);
                // From the second time on it is the pause that holds it up.
                let reason = match missing.reason {
                    "ErrImagePull" if status.hold_up_ms > 0 => "ImagePullBackOff",
                    reason => reason,
                };
                state::held_up(status, &task.rules, reason, &missing.message, now);
            });
        }
    };
    let spec = plan::container(
        &task.entry.manifest,
        wanted,
        attempt,
        &image,
        &task.inner.config.defaults,
        (&task.entry.record.get().pod.name, &task.entry.log_dir),
    );
    let spec = match spec {
        Ok(spec) => spec,
        Err(error) => {
            return failed(task, slot, "CreateContainerConfigError", error.to_string());
        }
    };
    let sandboxes = &task.inner.sandboxes;
    let id = match sandboxes.create_container(sandbox_id, spec).await {
        Ok(container) => container.id,
        // Made in a round that was dropped, or by the daemon before.
        Err(SandboxError::Exists { id, .. }) => id,
        Err(error) => return not_started(task, slot, "CreateContainerError", &error, None).await,
    };
    task.update(|record| {
        let status = record.status_mut(slot);
        status.id.clone_from(&id);
        status.image_id.clone_from(&image.id);
    })?;
    match sandboxes.container(&id).map(|container| container.state) {
        Ok(ContainerState::Created) => {}
        // Its state is taken over in the next round.
        Ok(ContainerState::Running | ContainerState::Exited) => return Ok(()),
        Ok(ContainerState::Creating | ContainerState::Removing) | Err(_) => {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            return Ok(());
        }
    }
    match sandboxes.start_container(&id).await {
        Ok(()) | Err(SandboxError::WrongState { .. }) => Ok(()),
        Err(error) => not_started(task, slot, "StartError", &error, Some(&id)).await,
    }
}

/// The image: what was fetched while the VM booted, the first time.
async fn fetch(
    task: &Task,
    wanted: &Container,
    images: &mut Prefetched,
) -> Result<Resolved, Missing> {
    if let Some(fetched) = images.get_mut(&wanted.image) {
        let result = fetched.await;
        images.remove(&wanted.image);
        if let Ok(result) = result {
            return result;
        }
    }
    let policy = images::policy(wanted.image_pull_policy, &wanted.image);
    images::resolve(&task.inner.images, &wanted.image, policy).await
}

/// The container could not be made or started. If its VM is gone, that is the
/// cause, and is looked at in the next round.
async fn not_started(
    task: &Task,
    slot: Slot,
    reason: &'static str,
    error: &SandboxError,
    made: Option<&str>,
) -> Result<(), EngineError> {
    if matches!(
        error,
        SandboxError::VmDied { .. } | SandboxError::WrongState { .. }
    ) {
        // The VM's end is recorded in a moment.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        return Ok(());
    }
    if let Some(id) = made
        && let Err(error) = task.inner.sandboxes.remove_container(id).await
    {
        tracing::warn!(
            container = id,
            error = chain(&error),
            "a container that did not start stays"
        );
    }
    failed(task, slot, reason, chain(error))
}

fn failed(
    task: &Task,
    slot: Slot,
    reason: &'static str,
    message: String,
) -> Result<(), EngineError> {
    task.update(|record| {
        let how = Ended {
            code: CODE_NOT_STARTED,
            signal: 0,
            reason,
            message,
            finished_at_ns: now_ns(),
        };
        let status = record.status_mut(slot);
        status.started_at_ns = 0;
        state::ended(status, slot, &task.rules, how);
    })
}
