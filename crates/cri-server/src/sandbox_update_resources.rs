//! UpdatePodSandboxResources.

use crate::error::CriError;
use crate::service::RuntimeServer;
use crate::sizing::{VmSize, size};
use cri_api::v1::{UpdatePodSandboxResourcesRequest, UpdatePodSandboxResourcesResponse};
use sandbox::SandboxState;

/// UpdatePodSandboxResources: before the kubelet changes its containers' limits
/// it asks whether the pod can have their sum. What the VM holds, it can: the
/// containers' own limits are what counts inside. More than that needs a larger
/// VM, and is refused.
pub(crate) async fn update_pod_sandbox_resources(
    server: &RuntimeServer,
    request: UpdatePodSandboxResourcesRequest,
) -> Result<UpdatePodSandboxResourcesResponse, CriError> {
    let found = server.find_sandbox(&request.pod_sandbox_id)?;
    if found.sandbox.state != SandboxState::Ready {
        return Err(CriError::Precondition(format!(
            "sandbox {} is {:?}; only a ready one can be changed",
            found.id(),
            found.sandbox.state
        )));
    }
    let limits = request.resources.unwrap_or_default();
    let overhead = request.overhead.unwrap_or_default();
    let needed = size("request", &limits, &overhead, &server.config)?;
    let spec = &found.sandbox.spec;
    let has = VmSize {
        vcpus: spec.vcpus,
        memory_mib: spec.memory_mib,
    };
    if needed.vcpus > has.vcpus || needed.memory_mib > has.memory_mib {
        return Err(CriError::Precondition(format!(
            "sandbox {} has a virtual machine of {} vCPUs and {} MiB, which would need {} vCPUs and {} MiB and cannot grow while it runs; recreate the pod",
            found.id(),
            has.vcpus,
            has.memory_mib,
            needed.vcpus,
            needed.memory_mib
        )));
    }
    Ok(UpdatePodSandboxResourcesResponse {})
}
