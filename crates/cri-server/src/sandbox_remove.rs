//! RemovePodSandbox.

use crate::error::CriError;
use crate::filters::or_gone;
use crate::service::RuntimeServer;
use cri_api::v1::{RemovePodSandboxRequest, RemovePodSandboxResponse};

/// RemovePodSandbox: with its containers, running ones too; idempotent.
pub(crate) async fn remove_pod_sandbox(
    server: &RuntimeServer,
    request: RemovePodSandboxRequest,
) -> Result<RemovePodSandboxResponse, CriError> {
    if let Some(found) = or_gone(server.find_sandbox(&request.pod_sandbox_id))? {
        server.sandboxes.remove_sandbox(found.id()).await?;
    }
    Ok(RemovePodSandboxResponse {})
}
