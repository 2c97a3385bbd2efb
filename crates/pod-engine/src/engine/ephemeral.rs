//! Ephemeral containers: added to a pod that runs.

use super::PodEngine;
use super::pods::Inner;
use crate::container_task;
use crate::error::EngineError;
use crate::images;
use crate::manifest::{Container, with_ephemeral};
use crate::record::{ContainerState, ContainerStatus, Pod, PodRecord, Wanted};
use sandbox::SandboxState;
use std::sync::Arc;

impl PodEngine {
    /// Adds a `v1.EphemeralContainer` (YAML or JSON) to a pod. The answer comes when
    /// its image is here and it is recorded; it runs soon after, or once its target
    /// does. It is never started again, and ends with the pod.
    ///
    /// # Errors
    /// As [`PodEngine::get`]; [`EngineError::Manifest`] with every fault of the
    /// container; [`EngineError::NotRunning`] if the pod's VM does not run, or the
    /// target never will; [`EngineError::Image`] if its image cannot be had.
    pub async fn add_ephemeral(
        &self,
        name: &str,
        container: &str,
    ) -> Result<Arc<Pod>, EngineError> {
        let inner = &self.inner;
        let entry = inner.find(name)?;
        // Its image may take long: all else is looked at before it, and again after.
        let mut record = entry.record.get();
        inner.check_runs(&record)?;
        let wanted = add(&mut record, container, "")?;
        let image = &wanted.image;
        let policy = images::policy(wanted.image_pull_policy, image);
        let found = container_task::resolve(&inner.images, image, policy, &entry).await;
        let found = found.map_err(|missing| EngineError::Image {
            reason: missing.reason,
            message: missing.message,
        })?;
        inner.check_runs(&entry.record.get())?;
        entry.update(|record| add(record, container, &found.id).map(drop))??;
        // Its task begins a new round, and finds it.
        entry.wanted.send_modify(|_| ());
        Ok(Arc::new(entry.pod()))
    }
}

impl Inner {
    /// Refuses a pod that has no VM now.
    fn check_runs(&self, record: &PodRecord) -> Result<(), EngineError> {
        let id = record.sandbox_id.as_deref().unwrap_or_default();
        let sandbox = self.sandboxes.sandbox(id);
        if sandbox.is_ok_and(|sandbox| sandbox.state == SandboxState::Ready) {
            return Ok(());
        }
        Err(not_running(
            &record.pod,
            "its virtual machine has not started yet, or has ended",
        ))
    }
}

fn not_running(pod: &Pod, message: impl Into<String>) -> EngineError {
    EngineError::NotRunning {
        pod: pod.full_name(),
        message: message.into(),
    }
}

/// Adds the container, of this image, to the record; leaves that as it is where it
/// cannot be.
fn add(record: &mut PodRecord, container: &str, image_id: &str) -> Result<Container, EngineError> {
    let pod = &mut record.pod;
    if pod.phase.is_final() || record.wanted != Wanted::Run {
        return Err(not_running(pod, "it has ended, or is being stopped"));
    }
    let (wanted, manifest) = with_ephemeral(&pod.manifest, container)?;
    let mut status = ContainerStatus {
        image_id: image_id.to_owned(),
        target: wanted.target_container_name.clone(),
        ..ContainerStatus::new(&wanted.name, &wanted.image)
    };
    let target = pod.target(&status);
    if target.is_some_and(|target| target.state == ContainerState::Terminated) {
        let target = &status.target;
        return Err(not_running(
            pod,
            format!("its target, container {target}, has ended"),
        ));
    }
    if !pod.target_runs(&status) {
        status.message = format!("its target, container {}, does not run now", status.target);
    }
    pod.ephemeral_containers.push(status);
    pod.manifest = manifest.to_string();
    Ok(wanted)
}
