//! StopContainer.

use crate::error::CriError;
use crate::filters::or_gone;
use crate::service::RuntimeServer;
use cri_api::v1::{StopContainerRequest, StopContainerResponse};
use std::time::Duration;

/// StopContainer: its stop signal, the grace asked for, SIGKILL; idempotent.
pub(crate) async fn stop_container(
    server: &RuntimeServer,
    request: StopContainerRequest,
) -> Result<StopContainerResponse, CriError> {
    let seconds = u64::try_from(request.timeout)
        .map_err(|_| CriError::invalid("timeout", "must not be negative"))?;
    if let Some(found) = or_gone(server.find_container(&request.container_id))? {
        let grace = Duration::from_secs(seconds);
        server
            .sandboxes
            .stop_container(found.id(), grace, None)
            .await?;
    }
    Ok(StopContainerResponse {})
}
