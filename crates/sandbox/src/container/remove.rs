//! Removing a container: what it used in the VM and of the image store, then
//! its record. Its log file is its caller's.

use crate::Inner;
use crate::error::SandboxError;
use crate::events::Change;
use crate::record::{ContainerState, Step};
use crate::registry::{ContainerEntry, Entry};
use guest_api::proto::{RemoveContainerRequest, client_message::Call};
use std::sync::Arc;
use std::time::Duration;

/// Removes it; a running one is killed first.
pub(crate) async fn remove(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    item: &Arc<ContainerEntry>,
) -> Result<(), SandboxError> {
    // Killed before the record says Removing: so its exit is still announced.
    super::stop(inner, entry, item, Duration::ZERO, None).await?;
    forget(inner, entry, item).await
}

/// Removes it without asking whether it runs.
pub(crate) async fn forget(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    item: &Arc<ContainerEntry>,
) -> Result<(), SandboxError> {
    let _operation = item.operation.lock().await;
    if entry.container(&item.id).is_none() {
        return Ok(());
    }
    forget_locked(inner, entry, item).await
}

/// [`forget`] for callers that hold the container's operation lock.
pub(super) async fn forget_locked(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    item: &Arc<ContainerEntry>,
) -> Result<(), SandboxError> {
    item.record
        .update(|c| c.state = ContainerState::Removing)
        .await?;
    crate::undo::undo_container(inner, entry, item).await?;
    item.record.forget().await?;
    entry.drop_container(&item.id);
    let change = Change::ContainerRemoved(item.id.clone());
    inner.events.announce(&entry.id, change);
    Ok(())
}

/// Takes back one step of a container. What was in a VM ended with it.
pub(crate) async fn undo_container_step(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    item: &ContainerEntry,
    step: &Step,
) -> Result<(), SandboxError> {
    let live = entry.live().filter(|live| live.cause().is_none());
    match (step, live) {
        (Step::Log, Some(live)) => {
            // Of a log that was never attached the VMM knows nothing.
            if let Err(error) = live.vmm.detach_log(&item.id).await {
                tracing::debug!(container = item.id, %error, "its log was not attached");
            }
            Ok(())
        }
        (Step::GuestContainer, Some(live)) => {
            let call = Call::RemoveContainer(RemoveContainerRequest {
                container_id: item.id.clone(),
            });
            let what = "remove the container";
            let limit = inner.config.timeouts.control;
            match live.call_within(what, call, limit).await {
                Ok(_) | Err(SandboxError::VmDied { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        }
        (Step::ImageExtent(image), Some(live)) => {
            let mut images = entry.images.lock().await;
            let shared = entry.containers().iter().any(|other| {
                other.id != item.id
                    && other.record.read(|c| {
                        c.steps
                            .iter()
                            .any(|s| *s == Step::ImageExtent(image.clone()))
                    })
            });
            if !shared && images.remove(image).is_some() {
                live.vmm.detach_disk(image).await?;
            }
            Ok(())
        }
        (Step::Share(name), Some(live)) => crate::shares::detach(entry, item, &live, name).await,
        (Step::BlockDevice(name), Some(live)) => {
            crate::volumes::detach_device(inner, entry, item, &live, name).await
        }
        (Step::ImageLease(_), _) => inner.images.release(&item.id).await,
        _ => Ok(()),
    }
}
