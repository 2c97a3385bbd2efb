//! Starting one container of a pod: its image, its configuration, its making,
//! its start. Every step can be repeated: an instance that an earlier round
//! began is gone on with.

use crate::engine::{Entry, now_ns};
use crate::env::{self, Vars};
use crate::error::{EngineError, chain};
use crate::images::{self, Missing, Resolved};
use crate::manifest::{Container, ImagePullPolicy};
use crate::pod_task::Task;
use crate::record::{Pod, PodRecord};
use crate::state::{self, CODE_NOT_STARTED, Ended, Role, Slot};
use crate::{mounts, plan};
use image_store::ImageStore;
use sandbox::{ContainerState, DeviceSpec, MountSpec, PathVolume, PidNamespace, SandboxError};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::task::JoinHandle;

/// Reason of a container whose configuration cannot be had: an object that it
/// refers to is missing, or what it asks for is impossible.
pub(crate) const CONFIG_ERROR: &str = "CreateContainerConfigError";

/// Images that are fetched while the VM boots, by their name.
pub(crate) type Prefetched = HashMap<String, JoinHandle<Result<Resolved, Missing>>>;

/// Begins to fetch the images of containers that are yet to start.
pub(crate) fn prefetch(task: &Task, images: &mut Prefetched) {
    let spec = &task.entry.manifest.spec;
    let own = spec.init_containers.iter().chain(&spec.containers);
    let own = own.map(|c| (&c.image, c.image_pull_policy));
    let volumes = spec.volumes.iter().filter_map(|v| v.image.as_ref());
    for (image, policy) in own.chain(volumes.map(|v| (&v.reference, v.pull_policy))) {
        if images.contains_key(image) {
            continue;
        }
        let store = task.inner.images.clone();
        let entry = Arc::clone(&task.entry);
        let name = image.clone();
        let policy = images::policy(policy, &name);
        let fetch = tokio::spawn(async move { resolve(&store, &name, policy, &entry).await });
        images.insert(image.clone(), fetch);
    }
}

fn manifest_of(task: &Task, slot: Slot) -> Result<Container, EngineError> {
    let spec = &task.entry.manifest.spec;
    Ok(match slot.role {
        Role::Init => spec.init_containers[slot.index].clone(),
        Role::Main => spec.containers[slot.index].clone(),
        // Added since.
        Role::Ephemeral => {
            let manifest = task.entry.record.read(PodRecord::manifest)?;
            manifest.spec.ephemeral_containers[slot.index].clone()
        }
    })
}

/// Starts the container, or records why it did not start.
pub(crate) async fn start(
    task: &Task,
    slot: Slot,
    sandbox_id: &str,
    images: &mut Prefetched,
) -> Result<(), EngineError> {
    let wanted = &manifest_of(task, slot)?;
    // Recorded before anything of the instance is made.
    let attempt = task.update(|record| {
        let status = record.status_mut(slot);
        state::begin(status);
        status.instances - 1
    })?;
    let record = task.entry.record.get();
    let (status, pod) = (record.status(slot), &record.pod);
    let fetched = match slot.role {
        // Fetched when it was added.
        Role::Ephemeral => {
            let policy = ImagePullPolicy::Never;
            resolve(&task.inner.images, &status.image_id, policy, &task.entry).await
        }
        Role::Init | Role::Main => {
            fetch(task, &wanted.image, wanted.image_pull_policy, images).await
        }
    };
    let volumes = image_volumes(task, wanted, images).await;
    let (image, volumes) = match (fetched, volumes) {
        (Ok(image), Ok(volumes)) => (image, volumes),
        (Err(missing), _) | (_, Err(missing)) => return held_up(task, slot, &missing),
    };
    let disks = match task.inner.sandboxes.sandbox(sandbox_id) {
        Ok(sandbox) => sandbox.spec.block_volumes,
        Err(error) => return not_started(task, slot, "CreateContainerError", &error, None).await,
    };
    let referred = configure(task, pod, wanted, &volumes, &disks);
    let (vars, mounts, devices) = match referred {
        Ok(referred) => referred,
        Err(missing) => return held_up(task, slot, &missing),
    };
    let parts = plan::Parts {
        manifest: &task.entry.manifest,
        container: wanted,
        attempt,
        image: &image,
        vars: &vars,
        mounts,
        devices,
        pid_namespace: match pod.target(status) {
            Some(target) => PidNamespace::Target(target.id.clone()),
            None => PidNamespace::Default,
        },
        pod_name: &pod.name,
        log_dir: &task.entry.log_dir,
    };
    let spec = match plan::container(parts, &task.inner.config.defaults) {
        Ok(spec) => spec,
        Err(error) => {
            return failed(task, slot, CONFIG_ERROR, error.to_string());
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

/// Something that the container needs is not there now: it is tried again.
fn held_up(task: &Task, slot: Slot, missing: &Missing) -> Result<(), EngineError> {
    let Missing { reason, message } = missing;
    tracing::info!(
        pod = task.entry.id,
        slot.index,
        reason,
        message,
        "a container waits"
    );
    task.update(|record| {
        let now = now_ns();
        let status = record.status_mut(slot);
        // From the second time on it is the pause that holds it up.
        let reason = match *reason {
            "ErrImagePull" if status.hold_up_ms > 0 => "ImagePullBackOff",
            reason => reason,
        };
        state::held_up(status, &task.rules, reason, message, now);
    })
}

/// The ids of the images that the container's mounts show, by reference.
async fn image_volumes(
    task: &Task,
    wanted: &Container,
    images: &mut Prefetched,
) -> Result<BTreeMap<String, String>, Missing> {
    let volumes = task.entry.manifest.spec.volumes.iter();
    let mounted = volumes.filter(|v| wanted.volume_mounts.iter().any(|m| m.name == v.name));
    let mut ids = BTreeMap::new();
    for volume in mounted.filter_map(|volume| volume.image.as_ref()) {
        let image = fetch(task, &volume.reference, volume.pull_policy, images).await?;
        ids.insert(volume.reference.clone(), image.id);
    }
    Ok(ids)
}

/// The container's variables, mounts and devices, which refer to objects.
fn configure(
    task: &Task,
    pod: &Pod,
    wanted: &Container,
    images: &BTreeMap<String, String>,
    disks: &[PathVolume],
) -> Result<(Vars, Vec<MountSpec>, Vec<DeviceSpec>), Missing> {
    let missing = |message| Missing {
        reason: CONFIG_ERROR,
        message,
    };
    let facts = task.entry.facts(pod);
    let objects = &task.inner.objects;
    let env = env::Sources { facts, objects };
    let vars = env.vars(wanted).map_err(|error| missing(chain(&error)))?;
    let sources = mounts::Sources {
        facts,
        volumes: &task.inner.volumes,
        objects,
        images,
        disks,
    };
    let failed = |error| missing(chain(&error));
    let mounts = sources.mounts(wanted, &vars).map_err(failed)?;
    let devices = sources.devices(wanted).map_err(failed)?;
    Ok((vars, mounts, devices))
}

/// An image: what was fetched while the VM booted, the first time.
async fn fetch(
    task: &Task,
    image: &str,
    policy: Option<ImagePullPolicy>,
    images: &mut Prefetched,
) -> Result<Resolved, Missing> {
    if let Some(fetched) = images.get_mut(image) {
        let result = fetched.await;
        images.remove(image);
        if let Ok(result) = result {
            return result;
        }
    }
    let policy = images::policy(policy, image);
    resolve(&task.inner.images, image, policy, &task.entry).await
}

/// Finds or pulls an image for a pod.
pub(crate) async fn resolve(
    store: &ImageStore,
    image: &str,
    policy: ImagePullPolicy,
    entry: &Entry,
) -> Result<Resolved, Missing> {
    let resolved = images::resolve(store, image, policy, &entry.id).await;
    // Meanwhile the pod may have ended, and given back what it had by then.
    if entry.is_ending() {
        images::release(store, &entry.id).await?;
    }
    resolved
}

/// The container could not be made or started. If its VM is gone, or may be, that is
/// the cause, and is looked at in the next round.
async fn not_started(
    task: &Task,
    slot: Slot,
    reason: &'static str,
    error: &SandboxError,
    made: Option<&str>,
) -> Result<(), EngineError> {
    if matches!(
        error,
        SandboxError::VmDied { .. }
            | SandboxError::Recovering { .. }
            | SandboxError::WrongState { .. }
    ) {
        // The VM's end is recorded in a moment, if it has ended.
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
