//! Which container or sandbox a session's caller means.

use super::Pods;
use crate::{convert, status};
use pod_api::v1;
use pod_engine::EngineError;
use tonic::Status;

impl Pods {
    /// A pod of the engine or of another, by id, prefix or name.
    pub(super) fn pod(&self, name: &str) -> Result<v1::Pod, Status> {
        let pod = match self.engine.get(name) {
            Err(EngineError::NoSuchPod(_)) => self.others.find(name),
            pod => pod.map(|pod| convert::pod(&pod)),
        };
        pod.map_err(|e| status::of_engine(&e))
    }

    /// Id of a container of a pod: of its first where none is named.
    pub(super) fn container(&self, pod: &str, name: &str) -> Result<String, Status> {
        let pod = self.pod(pod)?;
        let mut all = containers(&pod);
        let found = match name {
            "" => all.next(),
            name => all.find(|container| container.name == name),
        };
        let Some(container) = found else {
            let known: Vec<_> = containers(&pod).map(|c| c.name.as_str()).collect();
            return Err(Status::not_found(format!(
                "pod {} has no container {name:?}; it has: {}",
                pod.name,
                known.join(", ")
            )));
        };
        if container.id.is_empty() {
            return Err(Status::failed_precondition(format!(
                "container {} of pod {} has not started yet",
                container.name, pod.name
            )));
        }
        Ok(container.id.clone())
    }

    /// Id of a pod's sandbox.
    pub(super) fn sandbox(&self, pod: &str) -> Result<String, Status> {
        let pod = self.pod(pod)?;
        // Of a pod that others made the id is the sandbox's own.
        if self.sandboxes.sandbox(&pod.id).is_ok() {
            return Ok(pod.id);
        }
        let mut made = containers(&pod).filter_map(|c| self.sandboxes.container(&c.id).ok());
        let none = || {
            Status::failed_precondition(format!(
                "pod {} has no virtual machine: it has not started yet, or has ended",
                pod.name
            ))
        };
        let found = made.next().map(|container| container.sandbox_id);
        found.ok_or_else(none)
    }
}

/// All containers; the first one is the pod's first.
fn containers(pod: &v1::Pod) -> impl Iterator<Item = &v1::Container> {
    let main = pod.containers.iter();
    main.chain(&pod.init_containers)
        .chain(&pod.ephemeral_containers)
}
