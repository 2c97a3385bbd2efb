//! StartContainer.

use crate::error::CriError;
use crate::service::RuntimeServer;
use cri_api::v1::{StartContainerRequest, StartContainerResponse};

/// StartContainer: of one that is Created.
pub(crate) async fn start_container(
    server: &RuntimeServer,
    request: StartContainerRequest,
) -> Result<StartContainerResponse, CriError> {
    let found = server.find_container(&request.container_id)?;
    server.sandboxes.start_container(found.id()).await?;
    Ok(StartContainerResponse {})
}
