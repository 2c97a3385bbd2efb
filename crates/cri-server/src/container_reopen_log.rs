//! ReopenContainerLog.

use crate::error::CriError;
use crate::service::RuntimeServer;
use cri_api::v1::{ReopenContainerLogRequest, ReopenContainerLogResponse};

/// ReopenContainerLog: what comes from here on goes to a new file of the old
/// path. Of a container that runs.
pub(crate) async fn reopen_container_log(
    server: &RuntimeServer,
    request: ReopenContainerLogRequest,
) -> Result<ReopenContainerLogResponse, CriError> {
    let found = server.find_container(&request.container_id)?;
    if found.container.state != sandbox::ContainerState::Running {
        return Err(CriError::Precondition(format!(
            "container {} is {:?}; only a running one has its log open",
            found.id(),
            found.container.state
        )));
    }
    server.sandboxes.reopen_log(found.id()).await?;
    Ok(ReopenContainerLogResponse {})
}
