//! Making a container: image leased and attached, then the agent's part.

use super::image_volumes::image_volumes;
use crate::clock::{Stopwatch, now_ns};
use crate::error::SandboxError;
use crate::images::FoundImage;
use crate::live::Live;
use crate::record::{Container, ContainerState, SandboxState, Stage, Step, UserIds, stages};
use crate::recorded::Recorded;
use crate::registry::{ContainerEntry, Entry};
use crate::spec::{ContainerSpec, DeviceOf, MountSource};
use crate::vm_plan::Mounted;
use crate::{Inner, container, empty_dirs, shares, vm_plan, volumes};
use guest_api::proto::{Identity, client_message::Call, response};
use std::sync::Arc;
use vm_spec::proto::{Bay, Extent};

/// Most containers of a sandbox, ended ones included.
const MAX_CONTAINERS: usize = 1024;
/// Most supplementary groups that a kernel takes (NGROUPS_MAX).
const MAX_GROUPS: usize = 65536;

/// Reserves the name, then makes the container; undoes all of it if that fails.
pub(crate) async fn create(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    spec: ContainerSpec,
) -> Result<Container, SandboxError> {
    let sandbox = entry.record.get();
    if sandbox.state != SandboxState::Ready {
        entry.require_live()?;
        return Err(entry.wrong_state(sandbox.state, "Ready"));
    }
    vm_plan::check_container(&spec, &sandbox.spec, &sandbox.block_volumes)?;
    if entry.containers().len() >= MAX_CONTAINERS {
        return Err(SandboxError::Invalid {
            field: "sandbox",
            message: format!("it has {MAX_CONTAINERS} containers, as many as it can; remove some"),
        });
    }
    let name = format!("container {} (attempt {})", spec.name, spec.attempt);
    let record = Container {
        id: crate::new_id(),
        sandbox_id: entry.id.clone(),
        spec,
        image_id: String::new(),
        user: None,
        state: ContainerState::Creating,
        pid: 0,
        created_at_ns: now_ns(),
        started_at_ns: 0,
        start_error: None,
        exit: None,
        stages: Vec::new(),
        steps: Vec::new(),
    };
    let id = record.id.clone();
    let recorded = Recorded::new(inner.containers.clone(), &id, record);
    let item = Arc::new(ContainerEntry::new(recorded));
    let _operation = item.operation.lock().await;
    entry
        .add_container(Arc::clone(&item))
        .map_err(|id| SandboxError::Exists { name, id })?;
    if let Err(error) = item.record.update(|_| ()).await {
        entry.drop_container(&id);
        return Err(error);
    }
    inner.announce_container(&entry.id, &id, ContainerState::Creating);
    if let Err(error) = try_create(inner, entry, &item).await {
        if let Err(undo) = container::remove::forget_locked(inner, entry, &item).await {
            tracing::error!(container = id, error = %undo, "a failed container could not be undone");
        }
        return Err(error);
    }
    Ok(item.record.get())
}

async fn try_create(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    item: &Arc<ContainerEntry>,
) -> Result<(), SandboxError> {
    let live = entry.require_live()?;
    let spec = item.record.read(|c| c.spec.clone());
    let clock = Stopwatch::start();
    let (image, extent) = use_image(inner, entry, item, &live, &spec.image).await?;
    let image_id = image.id().to_owned();
    item.record.update(|c| c.image_id = image_id).await?;
    let own_volumes = image_volumes(&spec.image, image.volumes(), &spec.mounts)?;
    let mut mounted = Vec::new();
    for mount in &spec.mounts {
        mounted.push(match &mount.source {
            MountSource::Image(name) => {
                Mounted::Image(use_image(inner, entry, item, &live, name).await?.1)
            }
            MountSource::Host(host) => {
                match empty_dirs::attach(inner, entry, item, &live, host).await? {
                    Some(inside) => inside,
                    None => shares::attach(entry, item, &live, host, mount.read_only).await?,
                }
            }
            MountSource::Volume(_) => Mounted::Volume,
        });
    }
    let mut devices = Vec::new();
    for device in &spec.devices {
        devices.push(match device.of {
            DeviceOf::Host => {
                Some(volumes::attach_device(inner, entry, item, &live, device).await?)
            }
            DeviceOf::Guest | DeviceOf::Volume => None,
        });
    }
    let attached = clock.stage(stages::IMAGE_ATTACH);

    let clock = Stopwatch::start();
    item.record
        .update(|c| {
            c.stages.push(attached);
            c.steps.push(Step::GuestContainer);
        })
        .await?;
    let request = vm_plan::create(&item.id, &spec, &extent, &mounted, &devices, own_volumes);
    let call = Call::CreateContainer(request);
    let what = "create the container";
    let answer = live.call(what, call, &inner.config.timeouts).await?;
    let response::Result::CreateContainer(answer) = answer else {
        return Err(live.wrong_answer(what));
    };
    let user = answer.identity.map(user_ids);
    item.record.update(|c| c.user = user).await?;
    created(inner, entry, item, clock.stage(stages::CREATE)).await
}

/// Who the agent says that the process will be.
fn user_ids(told: Identity) -> UserIds {
    let mut groups = told.groups;
    // More than the kernel takes is no truth.
    groups.truncate(MAX_GROUPS);
    groups.push(told.gid);
    groups.sort_unstable();
    groups.dedup();
    UserIds {
        uid: told.uid,
        gid: told.gid,
        groups,
    }
}

async fn created(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    item: &Arc<ContainerEntry>,
    stage: Stage,
) -> Result<(), SandboxError> {
    item.record
        .update(|c| {
            c.stages.push(stage);
            c.state = ContainerState::Created;
        })
        .await?;
    inner.announce_container(&entry.id, &item.id, ContainerState::Created);
    Ok(())
}

/// Leases a local image to the container and attaches it.
async fn use_image(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    item: &Arc<ContainerEntry>,
    live: &Live,
    name: &str,
) -> Result<(FoundImage, Extent), SandboxError> {
    let image = inner.images.find(name).await?;
    item.record
        .update(|c| c.add_step(Step::ImageLease(image.id().to_owned())))
        .await?;
    inner.images.lease(&image, &item.id).await?;
    item.record
        .update(|c| c.add_step(Step::ImageExtent(image.extent())))
        .await?;
    let extent = attach_image(inner, entry, live, &image).await?;
    Ok((image, extent))
}

/// The image's extent, attached if no other container has it yet.
async fn attach_image(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    live: &Live,
    image: &FoundImage,
) -> Result<Extent, SandboxError> {
    let mut images = entry.images.lock().await;
    let name = image.extent();
    if let Some(extent) = images.get(&name) {
        return Ok(extent.clone());
    }
    let file = inner.images.open(image).await?;
    let attached = live.vmm.attach_disk(&name, Bay::ReadOnly, file).await;
    let extent = live.or_death(attached).await?;
    images.insert(name, extent.clone());
    Ok(extent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_a_user_are_sorted_and_have_the_primary_one() {
        let told = Identity {
            uid: 1,
            gid: 7,
            groups: vec![9, 7, 3],
        };
        assert_eq!(user_ids(told).groups, [3, 7, 9]);
        assert_eq!(user_ids(Identity::default()).groups, [0]);
    }
}
