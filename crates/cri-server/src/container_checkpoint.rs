//! CheckpointContainer.

use crate::error::CriError;
use crate::service::RuntimeServer;
use cri_api::v1::{CheckpointContainerRequest, CheckpointContainerResponse};

/// CheckpointContainer: refused, with the reason.
pub(crate) async fn checkpoint_container(
    _server: &RuntimeServer,
    _request: CheckpointContainerRequest,
) -> Result<CheckpointContainerResponse, CriError> {
    Err(CriError::Unimplemented {
        call: "CheckpointContainer",
        reason: "a micro-VM is saved as a whole, and that is not there yet",
    })
}
