//! RemoveContainer.

use crate::error::CriError;
use crate::filters::or_gone;
use crate::service::RuntimeServer;
use cri_api::v1::{RemoveContainerRequest, RemoveContainerResponse};

/// RemoveContainer: a running one is killed; idempotent. Its log stays, it is
/// the kubelet's.
pub(crate) async fn remove_container(
    server: &RuntimeServer,
    request: RemoveContainerRequest,
) -> Result<RemoveContainerResponse, CriError> {
    if let Some(found) = or_gone(server.find_container(&request.container_id))? {
        server.sandboxes.remove_container(found.id()).await?;
    }
    Ok(RemoveContainerResponse {})
}
