//! StopPodSandbox.

use crate::error::CriError;
use crate::filters::or_gone;
use crate::service::RuntimeServer;
use cri_api::v1::{StopPodSandboxRequest, StopPodSandboxResponse};

/// StopPodSandbox: the VM ends and every container with it; idempotent.
pub(crate) async fn stop_pod_sandbox(
    server: &RuntimeServer,
    request: StopPodSandboxRequest,
) -> Result<StopPodSandboxResponse, CriError> {
    if let Some(found) = or_gone(server.find_sandbox(&request.pod_sandbox_id))? {
        server.sandboxes.stop_sandbox(found.id()).await?;
    }
    Ok(StopPodSandboxResponse {})
}
