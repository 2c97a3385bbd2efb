//! CheckpointPod.

use crate::error::CriError;
use crate::service::RuntimeServer;
use cri_api::v1::{CheckpointPodRequest, CheckpointPodResponse};

/// CheckpointPod: refused, with the reason.
pub(crate) async fn checkpoint_pod(
    _server: &RuntimeServer,
    _request: CheckpointPodRequest,
) -> Result<CheckpointPodResponse, CriError> {
    Err(CriError::Unimplemented {
        call: "CheckpointPod",
        reason: "snapshots of a pod's VM are not there yet",
    })
}
